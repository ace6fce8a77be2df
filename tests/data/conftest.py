"""Small data sets and a task that only marks its row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gca_lit.data.shards import ShardReader, ShardWriter
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.tasks.base import Episode, Haystack, Task


class MarkTask(Task):
    """Writes its index over the first token of the text and asks for it once, at the end."""

    name = "mark"

    def min_length(self) -> int:
        return 8

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        return self.row(length, index, haystack.take(index, length))

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        tokens = text.clone()
        tokens[0] = tokens[-1] = index % 251
        targets = torch.full_like(tokens, -100)
        targets[-2] = tokens[-1]
        return Episode(tokens, targets, ((0, 1),), length - 3, (length - 1, length), 0.0, length - 2)


@pytest.fixture
def mark_task() -> Task:
    return MarkTask()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write documents of the given sizes (random bytes, then the end of the document); returns the directory."""

    def make(name: str = "train", sizes: tuple[int, ...] = (700, 1, 900, 500), shard_tokens: int = 1000) -> str:
        random = np.random.default_rng(len(sizes))
        with ShardWriter(tmp_path / name, ByteTokenizer(), shard_tokens) as writer:
            for size in sizes:
                writer.add([*random.integers(0, 256, size - 1).tolist(), 256])
        return str(tmp_path / name)

    return make


@pytest.fixture
def reader(write: Callable[..., str]) -> ShardReader:
    return ShardReader(write())
