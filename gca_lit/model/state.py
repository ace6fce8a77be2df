"""What one segment hands to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gca_lit.memory import ChunkMemory
from gca_lit.model.group import Carried
from gca_lit.model.pasts import Pasts


@dataclass(frozen=True)
class ModelState:
    """The past of a batch of inputs that advance together. A plain value: a step takes one and returns another.

    position: text tokens consumed.
    lower: the past of each lower layer.
    upper: the past of each upper layer.
    pending: lower hidden states of the rows of the incomplete chunk, in consecutive parts [B, n, M].
    deferred: lower hidden states of the last rows that the upper layers have not run on yet, [B, n, M].
    carried: of each retrieval group, what serves the next row of the upper layers.
    memory: landmarks and chunk K/V of all whole chunks; None where nothing is kept (training, or no chunks).
    """

    position: int
    lower: Pasts
    upper: Pasts
    pending: tuple[Tensor, ...]
    deferred: Tensor
    carried: tuple[Carried, ...]
    memory: ChunkMemory | None

    def bytes(self) -> dict[str, int]:
        """Bytes held in each tier, "device", "host" and "disk": chunk K/V, landmarks and window K/V."""
        held = {"device": 0, "host": 0, "disk": 0} if self.memory is None else self.memory.bytes()
        held["device"] += _nbytes((self.lower, self.upper, self.pending, self.deferred))
        return held


def behind(waiting: Iterable[Tensor], x: Tensor) -> Tensor:
    """Rows x [B, R, M] behind those that wait, in parts [B, n, M]; x itself, not a copy, where none do."""
    parts = [part.to(x.dtype) for part in waiting if part.shape[1]]
    return torch.cat((*parts, x), 1) if parts else x


def _nbytes(past: Any) -> int:
    if isinstance(past, Tensor):
        return past.nbytes
    return sum(_nbytes(part) for part in past) if isinstance(past, tuple | list) else 0
