"""The memory of an input: landmarks of all its chunks on the device, their K/V in a store."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.memory.base import ChunkStore, ChunkTable, Selection


class ChunkMemory:
    """Everything before the current segment: `count` chunks.

    Args:
        store: where the chunk K/V go; empty.
    """

    def __init__(self, store: ChunkStore) -> None:
        self.store = store
        self.count = 0
        self._landmarks: Tensor | None = None

    def landmarks(self) -> Tensor | None:
        """Keys of all chunks, [B, count, M'], or None while there are none."""
        return None if self._landmarks is None else self._landmarks[:, : self.count]

    def append(self, landmarks: Tensor, table: ChunkTable) -> None:
        """Keep a detached copy of a segment's chunks: landmarks [B, n, M'] and their K/V."""
        B, n, width = landmarks.shape
        if n == 0:
            return
        needed = self.count + n
        if self._landmarks is None or self._landmarks.shape[1] < needed:
            grown = landmarks.new_empty(B, max(needed, 3 * self.count // 2), width)
            if self._landmarks is not None:
                grown[:, : self.count] = self._landmarks[:, : self.count]
            self._landmarks = grown
        self._landmarks[:, self.count : needed] = landmarks.detach()
        self.store.write(table.k, table.v)
        self.count = needed

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
        held["device"] += 0 if self._landmarks is None else self._landmarks.nbytes
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
