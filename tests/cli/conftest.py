"""A tiny run: its configuration, and the command line in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gca_lit.cli import CLI, Begun, main

TINY = """
model:
  attention:
    class_path: GroupedCrossAttention
    init_args: {{chunk_size: 4, window: 10, top_k: 2, lower_layers: 1, encoder_layers: 1}}
  decoder: {{width: 16, heads: 2, kv_heads: 2, layers: 2, mlp_width: 16}}
data:
  train: {shards}/train
  val: {shards}/val
  test: {shards}/val
  train_length: 64
  batch_size: 2
  align: 4
  tasks:
    - class_path: SingleNeedle
      init_args: {{needle: "|{{value}}", question: "?", digits: 2}}
  mixture: {{text: 0.5}}
  predict: {{count: 2, length: 48}}
trainer:
  default_root_dir: {run}
  accelerator: cpu
  max_steps: 2
  limit_val_batches: 1
  limit_test_batches: 1
  check_val_every_n_epoch: null
  val_check_interval: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
checkpoint: {{save_last: true}}
length_generalization:
  factors: [1, 2]
  episodes: [[0, 2]]
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def tiny(tmp_path: Path, shards: Path, run_dir: Path) -> str:
    """The configuration file of a tiny run in `run_dir`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(shards=shards, run=run_dir))
    return str(path)


@pytest.fixture
def run(tiny: str) -> Callable[..., None]:
    """run(subcommand, *flags): a tiny run to its end."""

    def command(subcommand: str, *flags: str) -> None:
        main([subcommand, "--config", tiny, *flags])

    return command


@pytest.fixture
def instantiate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CLI]:
    """instantiate(*arguments): all objects of a command line, which then does not run."""
    monkeypatch.setattr(CLI, "_run_subcommand", lambda *_: None)
    return lambda *arguments: CLI(Begun(), list(arguments))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*arguments): the line of a command that ends with exit code 2 and no traceback."""

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("error: ")

    return command
