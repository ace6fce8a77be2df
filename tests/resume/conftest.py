"""Runs with everything that resuming must restore: stages, tasks, noise, accumulation, a schedule, short epochs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
model:
  attention:
    class_path: GroupedCrossAttention
    init_args: {{chunk_size: 4, window: 10, top_k: 2, lower_layers: 1, encoder_layers: 1, noise: gumbel}}
  decoder: {{width: 16, heads: 2, kv_heads: 2, layers: 2, mlp_width: 16}}
  schedule: {{warmup_steps: 4, decay: cosine, final: 0.1}}
data:
  train: {shards}/train
  val: {shards}/val
  train_length: 64
  batch_size: 4
  align: 4
  tasks:
    - class_path: SingleNeedle
      init_args: {{needle: "|{{value}}", question: "?", digits: 2}}
  mixture: {{text: 0.5}}
  stages: [[0, 16], [5, 32], [9, 64]]
trainer:
  default_root_dir: {run}
  accelerator: cpu
  max_steps: 25
  accumulate_grad_batches: 2
  gradient_clip_val: 1.0
  limit_val_batches: 1
  check_val_every_n_epoch: null
  val_check_interval: 3
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [tests.resume.callbacks.Record]
checkpoint: {{save_last: true, save_top_k: 0, every_n_train_steps: 4, save_on_exception: true}}
length_generalization: {{enabled: false}}
"""
Lines = list[dict[str, Any]]


class Run:
    """A run directory and the commands in it."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        self.config = folder.with_suffix(".yaml")
        self.config.write_text(CONFIG.format(shards=shards, run=folder), encoding="utf-8")

    def arguments(self, *flags: str) -> list[str]:
        return ["fit", "--config", str(self.config), *flags]

    def start(self, *flags: str, **environment: str) -> subprocess.Popen[str]:
        """`lightning_cli.py fit` in a process of its own."""
        variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"} | environment
        command = [sys.executable, "lightning_cli.py", *self.arguments(*flags)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=variables, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")

    def finish(self, *flags: str, **environment: str) -> tuple[int, str]:
        """The exit code of a whole process, and what it wrote to stderr."""
        process = self.start(*flags, **environment)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    def lines(self, rank: int = 0) -> Lines:
        path = self.folder / f"batches.{rank}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fault(at: int, kind: str, **more: int) -> str:
    settings = {"class_path": "tests.resume.callbacks.Fault", "init_args": {"at": at, "kind": kind, **more}}
    return f"--trainer.callbacks+={json.dumps(settings)}"


def assert_same(broken: Lines, unbroken: Lines) -> None:
    """Every batch of a run in pieces, and each repeated one, is that of the unbroken run; none is missing."""
    whole = {line["batch"]: line for line in unbroken}
    assert len(whole) == len(unbroken)
    assert {line["batch"] for line in broken} == set(whole)
    for line in broken:
        assert line == whole[line["batch"]]


@pytest.fixture
def make_run(tmp_path: Path, shards: Path) -> Callable[[str], Run]:
    return lambda name: Run(tmp_path / name, shards)
