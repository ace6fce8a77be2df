"""Speed by a clock that the test moves, the norm of known gradients, and counts that go on in the next run."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from gca_lit.callbacks import Throughput, throughput
from gca_lit.callbacks.throughput import dense_peak
from gca_lit.cli import main
from tests.callbacks.counting_fakes import FakeData, FakeModule, trainer
from tests.cli.conftest import TINY


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throughput, "time", made)
    return made


class Batches(FakeData):
    """`steps` batches of 2 rows of 8 tokens, half a second each."""

    def __init__(self, clock: Clock, steps: int) -> None:
        super().__init__()
        self.clock, self.steps = clock, steps

    def train_dataloader(self) -> Any:
        def batch(_: Any) -> Any:
            self.clock.now += 0.5
            return SimpleNamespace(tokens=torch.zeros(2, 8, dtype=torch.int64))

        return DataLoader(range(self.steps), collate_fn=batch)


class Known(FakeModule):
    """A step takes a second; its gradient is (3, 4)."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = nn.Parameter(torch.zeros(2))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.clock.now += 1
        return self.weight @ torch.tensor([3.0, 4.0])

    def flops_per_token(self, length: int) -> float:
        return 10.0 * length


class Slow(Callback):
    """Takes its time after steps and in validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 100

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.clock.now += 1000


def fit(folder: Path, clock: Clock, callback: Throughput, steps: int = 4, **settings: Any) -> list[dict[str, float]]:
    """What was logged, a row each time."""
    settings = {"max_epochs": 1, "log_every_n_steps": 2, "logger": CSVLogger(folder)} | settings
    trainer(folder, Slow(clock), callback, **settings).fit(Known(clock), Batches(clock, steps))
    with open(next(folder.rglob("metrics.csv")), encoding="utf-8", newline="") as lines:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in rows if "throughput/tokens_seen" in row]


def test_time_of_steps_and_of_their_data(tmp_path: Path, clock: Clock) -> None:
    """Not that of validation, here after each step, and of callbacks that stand before."""
    rows = fit(tmp_path, clock, Throughput(), val_check_interval=1)
    assert [row["throughput/tokens_seen"] for row in rows] == [32, 64]
    assert [row["throughput/tokens_per_second"] for row in rows] == [16 / 1.5] * 2
    assert "throughput/mfu" not in rows[0]


def test_share_of_the_peak(tmp_path: Path, clock: Clock) -> None:
    """3 forwards of 80 FLOPs for each of 16 tokens in 1.5 s."""
    rows = fit(tmp_path, clock, Throughput(peak_flops=5120.0))
    assert [row["throughput/mfu"] for row in rows] == [pytest.approx(3 * 80 * 16 / 1.5 / 5120)] * 2


def test_the_norm_is_that_before_clipping(tmp_path: Path, clock: Clock) -> None:
    rows = fit(tmp_path, clock, Throughput(), gradient_clip_val=0.1)
    assert [row["grad_norm"] for row in rows] == [5.0, 5.0]


def test_accumulated_gradients(tmp_path: Path, clock: Clock) -> None:
    """A step is two batches, and the fifth alone."""
    rows = fit(tmp_path, clock, Throughput(), steps=5, accumulate_grad_batches=2, log_every_n_steps=1)
    assert [row["throughput/tokens_seen"] for row in rows] == [32, 64, 80]
    assert [row["grad_norm"] for row in rows] == [5.0, 5.0, 2.5]


def test_no_norm_without_gradients(tmp_path: Path, clock: Clock) -> None:
    class Nothing(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            pl_module.zero_grad(set_to_none=True)

    callback = Throughput()
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "logger": CSVLogger(tmp_path)}
    trainer(tmp_path, Nothing(), callback, **settings).fit(Known(clock), Batches(clock, 2))
    text = next(tmp_path.rglob("metrics.csv")).read_text(encoding="utf-8")
    assert callback.tokens_seen == 32 and "grad_norm" not in text and "tokens_seen" in text


def test_tokens_of_the_runs_before_count(tmp_path: Path, shards: Path) -> None:
    """Through the command line, where it is always there: 2 rows of 64 tokens a step."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(shards=shards, run=tmp_path / "run"), encoding="utf-8")
    for more in ([], ["--ckpt_path", "last", "--trainer.max_steps", "4"]):
        main(["fit", "--config", str(config), *more])
    seen = []
    for file in sorted(tmp_path.rglob("metrics.csv")):
        with open(file, encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["throughput/tokens_seen"]]
        seen.append([float(row["throughput/tokens_seen"]) for row in rows])
        assert all(float(row["grad_norm"]) > 0 and row["train_loss"] for row in rows)
    assert seen == [[128, 256], [384, 512]]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert dense_peak(name) == peak


def test_wrong_peak() -> None:
    with pytest.raises(ValueError, match="peak_flops must be positive, got 0"):
        Throughput(peak_flops=0)
