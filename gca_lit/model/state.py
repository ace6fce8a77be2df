"""What one segment gives, and what it hands to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gca_lit.memory import ChunkMemory, Selection
from gca_lit.model.carried import Carried
from gca_lit.model.pasts import Pasts


@dataclass(frozen=True)
class ModelState:
    """The past of a batch of inputs that advance together. A step takes one and returns another; the one it took must
    not be used again, for both have one memory.

    position: text tokens consumed.
    pasts: of each layer, from bottom to top.
    pending: lower hidden states of the rows of the incomplete chunk, in consecutive parts [B, n, M].
    deferred: lower hidden states of the last rows that the upper layers have not run on yet, [B, n, M].
    carried: of all retrieval groups, what serves the next row of the upper layers; () where there are none.
    memory: landmarks and chunk K/V of all whole chunks; None where nothing is kept (training, or no chunks).
    """

    position: int
    pasts: Pasts
    pending: tuple[Tensor, ...]
    deferred: Tensor
    carried: Carried | tuple[()]
    memory: ChunkMemory | None

    def bytes(self) -> dict[str, int]:
        """Bytes held in each tier, "device", "host" and "disk": chunk K/V, landmarks and window K/V."""
        held = {"device": 0, "host": 0, "disk": 0} if self.memory is None else self.memory.bytes()
        held["device"] += _nbytes((self.pasts, self.pending, self.deferred))
        return held


class Step(NamedTuple):
    """What one forward gives.

    hidden: [B, n, M] of the text tokens that were read.
    selections: of each retrieval group; entry j of Q serves chunk `first_chunk` + j.
    first_chunk: chunk number of the selections' first entry.
    state: for the next segment; the state that was passed in must not be used again.
    logits: [B, 1, V] of a single token, where they were made in passing.
    """

    hidden: Tensor
    selections: tuple[Selection, ...]
    first_chunk: int
    state: ModelState
    logits: Tensor | None = None


def behind(waiting: Iterable[Tensor], x: Tensor) -> Tensor:
    """Rows x [B, R, M] behind those that wait, in parts [B, n, M]; x itself, not a copy, where none do."""
    parts = [part.to(x.dtype) for part in waiting if part.shape[1]]
    return torch.cat((*parts, x), 1) if parts else x


def _nbytes(past: Any) -> int:
    if isinstance(past, Tensor):
        return past.nbytes
    return sum(_nbytes(part) for part in past) if isinstance(past, tuple | list) else 0
