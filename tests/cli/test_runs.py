"""fit, validate, test and predict, again and resumed, by one process and by two."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gca_lit.attention import SlidingWindow
from gca_lit.checkpoints.architecture import refuse_other_tokenizer
from gca_lit.cli import CLI, main
from gca_lit.module import CausalLM

ROOT = Path(__file__).parents[2]
SLIDING_WINDOW = ("--model.attention", "SlidingWindow", "--model.attention.window", "8")
Run = Callable[..., None]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fit_validate_test_predict(run: Run, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run("fit")
    summary = r"gca: [\d,]+ parameters, 144 bytes of K/V per token; chunk_size 4, window 10, top_k 2,"
    assert any(re.match(summary, line) for line in caplog.messages)
    assert not any("litlogger" in line for line in caplog.messages)

    run("validate", "--ckpt_path", "last")
    results = run_dir / "length_generalization.jsonl"
    assert [(row["eval_length"], row["placement"], row["n"]) for row in rows(results)] == [
        (64, "chunk", 2),
        (64, "end", 2),
        (128, "chunk", 2),
        (128, "end", 2),
    ]
    results.unlink()
    run("test", "--ckpt_path", "last")
    assert len(rows(results)) == 4

    run("predict", "--ckpt_path", "last")
    documents = rows(run_dir / "predictions.jsonl")
    assert [row["kind"] for row in documents] == ["document"] * 2
    assert all(row["nll"] > 0 for row in documents)
    run("predict", "--ckpt_path", "last", "--data.predict.source", "episodes")
    episodes = rows(run_dir / "predictions.jsonl")
    assert [(row["kind"], len(row["expected"])) for row in episodes] == [("single_needle", 2)] * 2
    assert all(row["nll"] > 0 and row["selected"] and "answer" in row for row in episodes)
    assert {path.name for path in run_dir.parent.iterdir()} == {"run", "tiny.yaml"}


def test_checkpoints_hold_plain_values_only(run: Run, run_dir: Path) -> None:
    run("fit")
    for path in (run_dir / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["gca_lit"]["train_length"] == 64


def test_resumes_from_the_last_checkpoint(run: Run, run_dir: Path) -> None:
    run("fit", "--ckpt_path", "last")  # nothing there yet: starts at 0
    run("fit", "--ckpt_path", "last", "--trainer.max_steps", "4")
    steps = {torch.load(path, weights_only=True)["global_step"] for path in (run_dir / "checkpoints").glob("last*")}
    assert steps == {2, 4}
    run("fit", "--ckpt_path", "last", "--trainer.max_steps", "4")


def test_a_second_run_into_the_same_directory(run: Run, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    def configs() -> list[str]:
        return sorted(path.name for path in run_dir.glob("config_*"))

    run("fit")
    run("fit")
    assert configs() == ["config_fit.yaml"]
    before = (run_dir / "config_fit.yaml").read_text()
    with caplog.at_level(logging.INFO):
        run("fit", "--data.batch_size", "1")
    assert configs() == ["config_fit.1.yaml", "config_fit.yaml"]
    assert (run_dir / "config_fit.yaml").read_text() == before
    assert any("-  batch_size: 2\n+  batch_size: 1" in line for line in caplog.messages)
    run("fit")
    run("validate", "--ckpt_path", "last")
    assert configs() == ["config_fit.1.yaml", "config_fit.yaml", "config_validate.yaml"]


def test_the_saved_configuration_runs_again(run: Run, run_dir: Path) -> None:
    run("fit", *SLIDING_WINDOW)
    saved = run_dir / "config_fit.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    main(["fit", "--config", str(saved)])
    assert [path.name for path in run_dir.glob("config_*")] == ["config_fit.yaml"]


def test_configuration_and_flags_beat_the_checkpoint(
    run: Run, run_dir: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("fit", *SLIDING_WINDOW)
    path = run_dir / "checkpoints" / "last-step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    remembered = {"attention": {"class_path": "FullAttention"}, "schedule": {"warmup_steps": 99}}
    torch.save(checkpoint | {"hyper_parameters": remembered}, path)
    used: list[CLI] = []
    monkeypatch.setattr(CLI, "after_validate", lambda cli: used.append(cli), raising=False)
    run("validate", *SLIDING_WINDOW, "--model.attention.window", "6", "--ckpt_path", str(path))
    model: Any = used[0].model
    assert isinstance(model.attention, SlidingWindow) and model.attention.window == 6
    assert model.schedule.warmup_steps == 0


def test_a_checkpoint_of_another_tokenizer_is_refused(run: Run, run_dir: Path) -> None:
    run("fit")
    path = run_dir / "checkpoints" / "last-step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["gca_lit"]["tokenizer"].startswith("byte ")
    checkpoint["gca_lit"]["tokenizer"] = "mine/tokenizer.json 0123"
    torch.save(checkpoint, path)
    for subcommand in ("fit", "validate", "predict"):
        with pytest.raises(SystemExit):
            run(subcommand, "--ckpt_path", str(path))
    with pytest.raises(ValueError, match=r"trained with tokenizer mine/tokenizer.json 0123, this run has byte "):
        module = CausalLM(SlidingWindow(8), 257, tokenizer="byte 4567")
        module.on_load_checkpoint(checkpoint)
    refuse_other_tokenizer("mine/tokenizer.json 0123", "a copy/tokenizer.json 0123")


def test_two_processes_with_rows_of_any_number_of_chunks(tiny: str, run_dir: Path) -> None:
    """Rows of 0, 1, 2 and 16 chunks: every parameter has a gradient on both ranks, or the reduction would not end."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    trainer = str(ROOT / "configs/trainer/ddp_cpu.yaml")
    short = ["--data.stages", "[[0, 2], [1, 4], [2, 8], [3, 64]]", "--data.mixture.text", "1.0"]
    for subcommand, *flags in (["fit", *short, "--trainer.max_steps", "6"], ["validate", "--ckpt_path", "last"]):
        command = [sys.executable, "lightning_cli.py", subcommand, "--config", tiny, "--config", trainer, *flags]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    state = torch.load(run_dir / "checkpoints" / "last-step=6.ckpt", weights_only=True)
    assert state["ArrowDataModule"]["position"] == 6 * 2 * 2  # steps, blocks of a rank, ranks
    assert [row["n"] for row in rows(run_dir / "length_generalization.jsonl")] == [2] * 4


@pytest.mark.slow
@pytest.mark.parametrize("free, status", [([1 << 40, 0], "done"), ([0, 1 << 40], "skipped")])
def test_rank_0_decides_what_a_sweep_of_two_processes_runs(
    run: Run, tiny: str, run_dir: Path, free: list[int], status: str
) -> None:
    """The ranks measure different memory: that of rank 0 counts for both, and neither waits for the other."""
    run("fit")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    memory = json.dumps({"class_path": "tests.resume.callbacks.HostMemory", "init_args": {"free": free}})
    flags = ["--config", tiny, "--config", "configs/trainer/ddp_cpu.yaml", "--ckpt_path", "last"]
    command = [sys.executable, "lightning_cli.py", "validate", *flags, f"--trainer.callbacks+={memory}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = rows(run_dir / "length_generalization.jsonl")
    assert [(row["status"], row["n"]) for row in results] == [(status, 2 if status == "done" else 0)] * 4
    assert status == "done" or re.match(r"needs .* KiB of host memory, has 0 B", results[0]["reason"])
