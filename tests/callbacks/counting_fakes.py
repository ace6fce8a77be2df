"""A model that counts upwards, and tasks whose answers go on counting: right as far as the model's reach."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gca_lit.memory import HostStore
from gca_lit.tasks.base import Episode, Haystack, Task

VOCAB = 16


class Counting(Task):
    """The answer is 7, 8 behind 6; depth is wherever it is asked for."""

    name = "counting"

    def min_length(self) -> int:
        return 8

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        tokens = haystack.take(index, length)
        tokens[-3:] = torch.tensor([6, 7, 8])
        targets = torch.full((length,), -100)
        targets[-3:-1] = tokens[-2:]
        return Episode(tokens, targets, ((1, 3),), length - 4, (length - 2, length), depth or 0.5, length - 5)

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        raise NotImplementedError


class AllScored(Counting):
    """Perplexity of every token."""

    name = "perplexity"

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        tokens = haystack.take(index, length)
        targets = tokens.roll(-1)
        targets[-1] = -100
        return Episode(tokens, targets, (), 0, (1, length), None, 0)


class ZeroHaystack:
    identity = "zeros"

    def take(self, index: int, length: int) -> Tensor:
        return torch.zeros(length, dtype=torch.int64)

    def passes(self, length: int) -> int:
        return 1 + length // 1000


class FakeData(LightningDataModule):
    train_length = 16
    task_names = ("counting",)
    growth: Any = None
    tokenizer = SimpleNamespace(name="fake", identity="0123456789abcdef")

    def tasks(self, placement: str, seed: int) -> list[Task]:
        return [
            task.bind(seed, lambda text: [0], 4 if placement == "chunk" else None) for task in (Counting(), AllScored())
        ]

    def haystack(self, split: str, seed: int) -> ZeroHaystack:
        assert split in ("val", "test")
        return ZeroHaystack()

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([0])

    test_dataloader = train_dataloader = predict_dataloader = val_dataloader


@dataclass(frozen=True)
class Position:
    position: int

    def bytes(self) -> dict[str, int]:
        return {"device": 100, "host": 10 * self.position, "disk": 0}


class FakeModule(LightningModule):
    """Predicts token + 1 at positions below `reach`, and 0 beyond."""

    train_length = 16
    chunk_size = None

    def __init__(self, reach: int = 100, max_length: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.reach, self.max_length = reach, max_length
        self.steps = 0
        self.store = HostStore()

    def describe(self) -> dict[str, Any]:
        return {"backend": "gca", "window": 8, "k": 2, "chunk_size": None, "params": 1, "kv_bytes_per_token": 1}

    def kv_bytes(self, length: int, batch_size: int) -> dict[str, int]:
        return {"store": length * batch_size << 20, "state": 0}

    def new_state(self, batch_size: int, store: object) -> Position:
        return Position(0)

    def step(self, tokens: Tensor, state: Position, read: str | slice = "all") -> SimpleNamespace:
        self.steps += 1
        positions = state.position + torch.arange(tokens.shape[1])
        after = torch.where(positions < self.reach, tokens + 1, 0)
        hidden = after[:, read if isinstance(read, slice) else slice(0, 0), None].float()
        state = Position(int(positions[-1]) + 1)
        return SimpleNamespace(hidden=hidden, selections=(), first_chunk=0, state=state, logits=None)

    def logits(self, hidden: Tensor) -> Tensor:
        return 50 * nn.functional.one_hot(hidden[..., 0].long() % VOCAB, VOCAB).float()

    def validation_step(self, batch: Any, index: int) -> None: ...

    test_step = validation_step

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False)
    settings = quiet | {"accelerator": "cpu", "devices": 1} | settings
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)
