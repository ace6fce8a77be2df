"""Fine-tuning on pairs, from a JSONL file to ROUGE."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gca_lit.callbacks import rouge
from gca_lit.data.prepare import main as prepare

Run = Callable[..., None]
TARGET = "the cat is here"


@pytest.fixture
def overlay(tmp_path: Path) -> str:
    """Pairs of all kinds of documents with one target, and a configuration that trains on them."""
    for split in ("train", "val"):
        rows = [{"article": f"{split} {i} " + "ab" * i, "highlights": TARGET} for i in range(9)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = ["--text-column", "article", "--target-column", "highlights"]
        prepare(["--input", str(tmp_path / f"{split}.jsonl"), "--output", str(tmp_path / f"pairs_{split}"), *columns])
    pairs = {"train": str(tmp_path / "pairs_train"), "val": str(tmp_path / "pairs_val"), "separator": ": "}
    config: dict[str, Any] = {
        "data": {
            "tasks": [],
            "pairs": {**pairs, "test": pairs["val"], "max_length": 64},
            "mixture": {"text": 0.0, "loss": "answers"},
        },
        "trainer": {
            "callbacks": [{"class_path": "gca_lit.callbacks.rouge.Rouge", "init_args": {"max_new_tokens": 20}}]
        },
    }
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "pairs.yaml")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "rouge.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: weight for name, weight in state.items() if name.startswith("network.")}


def test_learns_to_answer(run: Run, overlay: str, run_dir: Path) -> None:
    learn = ["--trainer.max_steps", "100", "--trainer.val_check_interval", "100", "--model.optimizer.lr", "0.03"]
    run("fit", "--config", overlay, *learn)
    rows = lines(run_dir)
    assert [(row["split"], row["step"], row["pair"], row["reference"]) for row in rows] == [
        ("val", 100, i, TARGET) for i in range(9)
    ]
    right = [row["prediction"] == TARGET for row in rows]
    assert sum(right) > 7 and all(row["rouge2"] == 1 for row, one in zip(rows, right, strict=True) if one)
    (metrics,) = run_dir.glob("csv/*/metrics.csv")
    (logged,) = [row for row in csv.DictReader(metrics.open()) if row.get("val_rougeL")]
    assert float(logged["val_rougeL"]) == pytest.approx(sum(row["rougeL"] for row in rows) / 9)
    assert {row["tokens"] for row in rows} == {len(TARGET) + 1}
    assert float(logged["val_pairs_loss"]) == pytest.approx(sum(row["loss"] for row in rows) / 9)
    assert float(logged["val_pairs_loss"]) < 0.5


def test_scores(run: Run, overlay: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of "the cat sat" against "the cat is here": 2 words of 3 and 4, 1 pair of 2 and 3, a subsequence of 2."""
    run("fit", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    monkeypatch.setattr(rouge, "generate", lambda *_: iter(b"The cat sat."))
    run("test", "--config", overlay, "--ckpt_path", "last", "--trainer.callbacks.pairs", "2")
    assert len({row["checkpoint_sha256"] for row in lines(run_dir)}) == 1
    found = [(row["split"], row["step"], row["rouge1"], row["rouge2"], row["rougeL"]) for row in lines(run_dir)]
    assert found == [("test", 1, 0.5714, 0.4, 0.5714)] * 2


def test_starts_from_the_weights_of_a_checkpoint(run: Run, overlay: str, run_dir: Path, tmp_path: Path) -> None:
    run("fit")
    start = run_dir / "checkpoints" / "last-step=2.ckpt"
    other = tmp_path / "other"
    still = ["--config", overlay, "--model.init_from", str(start), "--trainer.default_root_dir", str(other)]
    still += ["--model.optimizer.lr", "0", "--seed_everything", "7", "--trainer.limit_val_batches", "0"]
    run("fit", *still)
    tuned = other / "checkpoints" / "last-step=2.ckpt"
    first, second = weights(start), weights(tuned)
    assert first.keys() == second.keys() and all(second[name].equal(weight) for name, weight in first.items())
    start.unlink()  # what goes on from its own checkpoint needs it no more
    run("fit", *still, "--ckpt_path", str(tuned), "--trainer.max_steps", "3")
    assert (other / "checkpoints" / "last-step=3.ckpt").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model.init_from", "lost.ckpt"], "there is no checkpoint lost.ckpt; name another checkpoint with"),
        (["--model.init_from", "{last}", "--model.decoder.layers", "4"], "decoder.layers: 2 in the checkpoint, 4 in"),
        (["--data.pairs.val", "lost"], "data set lost does not exist"),
        (["--data.pairs.train", "{shards}/train"], "train holds no pairs: run"),
        (["--data.pairs.val", "null"], "these settings are missing: data.pairs.val; name them as flags"),
        (["--data.pairs.max_length", "20"], "9 of 9 pairs of"),
        (["--data.pairs.max_length", "65"], "rows of 64 tokens are too short for task pairs, which takes 65"),
        (["--data.pairs.too_long", "drop"], "too_long"),
        (["--data.pairs.too_long", "null"], 'pairs.too_long must be "refuse" or "cut", not None'),
        (["--data.pairs", "null", "--data.mixture.text", "1"], "data.pairs.val is not set"),
        (["--trainer.callbacks.stemmer", "true"], "Rouge: stemmer needs the package nltk: pip install nltk"),
    ],
)
def test_refused(
    tiny: str,
    overlay: str,
    shards: Path,
    run: Run,
    run_dir: Path,
    refused: Callable[..., str],
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rouge, "find_spec", lambda name: None)
    if "{last}" in flags:
        run("fit", "--trainer.limit_val_batches", "0")
    last = run_dir / "checkpoints" / "last-step=2.ckpt"
    given = [flag.format(shards=shards, last=last) for flag in flags]
    assert message in refused("fit", "--config", tiny, "--config", overlay, *given)
