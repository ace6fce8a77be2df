"""The memory of an input: landmarks of all its chunks on the device, their K/V in a store."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.memory.base import ChunkStore, ChunkTable, Selection

FEWEST, MOST = 256, 65_536
"""Landmarks of one block."""


class ChunkMemory:
    """Everything before the current segment: `count` chunks.

    Landmarks lie in blocks, each as long as all before it: none is ever copied again.

    Args:
        store: where the chunk K/V go; empty.
    """

    def __init__(self, store: ChunkStore) -> None:
        self.store = store
        self.count = 0
        self._blocks: list[Tensor] = []
        self._room = 0

    def landmarks(self) -> list[Tensor]:
        """Keys of all chunks, in consecutive parts [B, n, M'] whose n together are `count`."""
        if not self._blocks:
            return []
        *full, last = self._blocks
        return [*full, last[:, : last.shape[1] - self._room]]

    def blocks(self) -> tuple[Tensor, ...]:
        """The same parts with the room behind the last key, which holds anything: they stay where they are."""
        return tuple(self._blocks)

    def append(self, landmarks: Tensor, table: ChunkTable) -> None:
        """Keep a detached copy of a segment's chunks: landmarks [B, n, M'] and their K/V."""
        waiting = landmarks.detach()
        if waiting.shape[1]:
            self.store.write(table.k, table.v)
        while n := waiting.shape[1]:
            if self._room == 0:
                self._room = min(max(n, self.count, FEWEST), MOST)
                self._blocks.append(waiting.new_empty(len(waiting), self._room, waiting.shape[2]))
            n = min(n, self._room)
            self._blocks[-1][:, -self._room :][:, :n] = waiting[:, :n]
            waiting = waiting[:, n:]
            self.count += n
            self._room -= n

    def table(self, selection: Selection, own: ChunkTable) -> tuple[ChunkTable, Selection]:
        """The chunks that a selection names, fetched old ones first and then all `own` ones, and the selection
        renumbered to that table. Each old chunk is fetched once per batch row."""
        ids, old = selection.ids, (selection.ids >= 0) & (selection.ids < self.count)
        fetched, slot = _unique_per_row(ids, old)
        U = fetched.shape[1]
        if U:
            k, v = self.store.read(fetched)
            own = ChunkTable(torch.cat((k, own.k), 1), torch.cat((v, own.v), 1)) if own.k.shape[1] else ChunkTable(k, v)
        renumbered = torch.where(old, slot, torch.where(ids < 0, ids, ids - self.count + U))
        return own, Selection(renumbered, selection.weights)

    def bytes(self) -> dict[str, int]:
        """Bytes held in each tier: the store's, and the landmarks on the device."""
        held = dict(self.store.bytes())
        held["device"] += sum(block.nbytes for block in self._blocks)
        return held


def _unique_per_row(ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The different wanted ids of each batch row, padded with 0 to [B, U], and the slot in U of each place of `ids`."""
    B = len(ids)
    beyond = torch.iinfo(ids.dtype).max
    ordered, order = torch.where(wanted, ids, beyond).flatten(1).sort(1)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = first.cumsum(1) - 1
    wanted_rank = torch.where(ordered == beyond, -1, rank)
    U = int(wanted_rank.max()) + 1 if ids.numel() else 0
    unique = ids.new_zeros(B, U + 1)
    unique.scatter_(1, torch.where(ordered == beyond, U, rank.clamp(max=U)), torch.where(ordered == beyond, 0, ordered))
    slot = torch.empty_like(rank).scatter_(1, order, rank).view_as(ids)
    return unique[:, :U], slot
