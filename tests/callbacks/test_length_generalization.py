"""The sweep inside a real Trainer: what is written, what is skipped, what runs again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gca_lit.callbacks import LengthGeneralization, sweep
from gca_lit.results.file import Row
from tests.callbacks.counting_fakes import FakeData, FakeModule, trainer

FILE = "length_generalization.jsonl"
SETTINGS: dict[str, Any] = {
    "factors": [1, 4],
    "episodes": [[0, 3], [4, 2]],
    "tasks": ["counting"],
    "placements": ["end"],
}


def validate(
    folder: Path, model: FakeModule | None = None, ckpt_path: Path | None = None, **settings: Any
) -> list[Row]:
    """The rows that one more validation writes."""
    before = len(rows(folder))
    callback = LengthGeneralization(**(SETTINGS | settings))
    trainer(folder, callback).validate(model or FakeModule(), FakeData(), ckpt_path=ckpt_path, verbose=False)
    return rows(folder)[before:]


def rows(folder: Path) -> list[Row]:
    path = folder / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rows(tmp_path):
    short, long = validate(tmp_path, FakeModule(reach=62))
    assert (short["eval_length"], short["n"], short["correct"], short["accuracy"]) == (16, 3, 3, 1.0)
    assert (long["eval_length"], long["factor"], long["n"], long["train_length"]) == (64, 4, 2, 16)
    assert (long["correct"], long["first_hits"], long["last_hits"]) == (0, 2, 0)  # the reach ends within the answer
    assert 0 == long["ci_low"] < long["ci_high"] < 1
    assert long["host_bytes"] == 640 and long["state_bytes"] == 100 and long["peak_device_bytes"] is None
    assert long["recall_at_k"] is None and long["tokens_per_second"] > 0
    assert {"task", "placement", "backend", "status", "reason", "depth", "recall_at_1", "disk_bytes"} <= long.keys()
    assert {"seed", "checkpoint_sha256", "global_step", "precision", "segment", "window", "k", "params"} <= long.keys()
    assert {"haystack_passes", "tokenizer", "command", "commit", "hardware", "versions"} <= long.keys()
    assert (tmp_path / "length_generalization_counting.png").stat().st_size > 0


def test_all_tasks_placements_and_depths(tmp_path):
    written = validate(tmp_path, tasks=None, placements=["chunk", "end"], depths=3, factors=[1])
    assert [(row["task"], row["placement"], row["depth"]) for row in written] == [
        *(("counting", "chunk", depth) for depth in (0.0, 0.5, 1.0)),
        ("perplexity", None, None),
        *(("counting", "end", depth) for depth in (0.0, 0.5, 1.0)),
    ]


def test_perplexity(tmp_path):
    (row,) = validate(tmp_path, FakeModule(reach=8), tasks=["perplexity"], factors=[1])
    # 8 of 15 predictions per episode are 1 where 0 follows, at 50 nats, the others are right
    assert row["accuracy"] is None and row["scored_tokens"] == 45
    assert row["nll"] == pytest.approx(50 * 8 / 15) and row["perplexity"] == pytest.approx(math.exp(50 * 8 / 15))
    buckets = [(bucket["start"], bucket["stop"], bucket["scored_tokens"]) for bucket in row["position_buckets"]]
    assert buckets == [(0, 1, 3), (1, 2, 3), (2, 4, 6), (4, 8, 12), (8, 16, 21)]
    assert [bucket["nll"] for bucket in row["position_buckets"]] == pytest.approx([50, 50, 50, 50, 0])


def test_episodes_at_once_follow_the_budget(tmp_path):
    model = FakeModule()
    validate(tmp_path, model, factors=[1], batch_tokens=32, segment=8)  # batches of 2 and 1, two segments each
    assert model.steps == 4


def test_a_finished_point_is_not_run_again(tmp_path):
    assert len(validate(tmp_path)) == 2
    model = FakeModule()
    assert validate(tmp_path, model) == [] and model.steps == 0
    (longer,) = validate(tmp_path, factors=[1, 2, 4])
    assert longer["factor"] == 2


def test_another_seed_n_or_checkpoint_is_run(tmp_path):
    validate(tmp_path)
    assert len(validate(tmp_path, seed=1)) == 2
    assert [row["n"] for row in validate(tmp_path, episodes=[[0, 3], [4, 5]])] == [5]
    trained = FakeModule()
    trained.weight.data += 1
    assert len(validate(tmp_path, trained)) == 2


def test_identity_and_step_come_from_the_checkpoint_file(tmp_path):
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(FakeModule(), FakeData())
    path = tmp_path / "some.ckpt"
    fit.save_checkpoint(path)
    row, _ = validate(tmp_path, FakeModule(), path)
    assert row["global_step"] == 2 and row["checkpoint_sha256"] != validate(tmp_path)[0]["checkpoint_sha256"]
    assert validate(tmp_path, FakeModule(), path) == []


def test_a_partial_point_is_tried_again(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    short, _ = validate(tmp_path, max_seconds=2.5, batch_tokens=1, factors=[1, 4], episodes=[[0, 3]])
    assert short["status"] == "partial" and 0 < short["n"] < 3 and short["accuracy"] == 1
    assert short["reason"] == f"the 2.5 s of this length ran out after {short['n']} of 3 episodes"
    monkeypatch.undo()
    again, _ = validate(tmp_path, episodes=[[0, 3]])
    assert again["status"] == "done" and again["n"] == 3


def test_spent_seconds_skip_the_other_points_of_the_length(tmp_path):
    written = validate(tmp_path, max_seconds=1e-9, depths=2, factors=[1])
    assert [row["status"] for row in written] == ["skipped", "skipped"]
    assert written[0]["reason"] == "the 1e-09 s of this length are spent" and written[0]["accuracy"] is None


def test_skipped_for_host_memory(tmp_path):
    short, long = validate(tmp_path, max_host_bytes=100 << 20)
    assert short["status"] == "done"  # 3 episodes x 16 tokens x 1 MiB
    assert (long["status"], long["n"], long["reason"]) == (
        "skipped",
        0,
        "needs 128.0 MiB of host memory, has 100.0 MiB; --model.store DiskStore needs less",
    )


def test_skipped_beyond_max_length(tmp_path):
    short, long = validate(tmp_path, FakeModule(max_length=20))
    assert short["status"] == "done"
    assert long["reason"] == "max_length: this backend takes at most 20 tokens, not 64"


def test_skipped_when_too_short_for_the_task(tmp_path):
    (row,) = validate(tmp_path, factors=[0.25])
    assert row["reason"] == "counting takes at least 8 tokens, not 4: evaluate it from factor 0.5 on"
    (row,) = validate(tmp_path, factors=[0.44])
    assert row["reason"] == "counting takes at least 8 tokens, not 7: evaluate it from factor 0.5 on"


def test_skipped_when_the_device_is_full(tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(FakeModule, "step", full)
    monkeypatch.setattr(sweep, "device_bytes", lambda device: 80 << 30)
    row, _ = validate(tmp_path)
    assert (row["status"], row["reason"]) == ("skipped", "needs more device memory than there is, 80.0 GiB")


def test_inside_fit_only_when_asked_for(tmp_path):
    def fit(**settings: Any) -> list[Row]:
        callback = LengthGeneralization(**(SETTINGS | settings))
        trainer(tmp_path, callback, max_epochs=4, num_sanity_val_steps=1).fit(FakeModule(), FakeData())
        return rows(tmp_path)

    assert fit() == []
    assert [row["global_step"] for row in fit(during_fit_every=2)] == [2, 2, 4, 4]


def test_test_loop_and_disabled(tmp_path):
    trainer(tmp_path, LengthGeneralization(**SETTINGS, enabled=False)).test(FakeModule(), FakeData(), verbose=False)
    assert rows(tmp_path) == []
    trainer(tmp_path, LengthGeneralization(**SETTINGS)).test(FakeModule(), FakeData(), verbose=False)
    assert len(rows(tmp_path)) == 2


def test_a_cut_off_last_line_runs_again(tmp_path):
    validate(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-30])
    callback = LengthGeneralization(**SETTINGS)
    with pytest.warns(UserWarning, match="cut off"):
        trainer(tmp_path, callback).validate(FakeModule(), FakeData(), verbose=False)
    assert [row["factor"] for row in rows(tmp_path)] == [1, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factors": []}, "factors"),
        ({"factors": [0]}, "factors"),
        ({"episodes": [[2, 10]]}, "no number for factor 1"),
        ({"placements": ["middle"]}, "middle"),
        ({"depths": 0}, "at least 1"),
        ({"depths": [1.5]}, "between 0 and 1"),
        ({"episodes": []}, r"pairs with n at least 1, got \[\]"),
        ({"episodes": [[0, 3], [4, 0]]}, r"pairs with n at least 1, got \[\[0, 3\], \[4, 0\]\]"),
        ({"segment": 0}, "segment must be at least 1, got 0"),
        ({"batch_tokens": -5}, "batch_tokens must be at least 1, got -5"),
        ({"max_seconds": 0}, "max_seconds must be positive, or null for no limit, got 0"),
        ({"max_host_bytes": -1}, "max_host_bytes must not be negative, got -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LengthGeneralization(**(SETTINGS | settings))


def test_unknown_task(tmp_path):
    with pytest.raises(ValueError, match="no task riddle"):
        validate(tmp_path, tasks=["riddle"])
