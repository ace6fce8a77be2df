"""Growing storage of chunk K/V in slabs of fixed size: written at the end, read by number, never moved."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gca_lit.memory.ahead import MadeAhead
from gca_lit.memory.page_locked import page_locked
from gca_lit.memory.reader import row_numbers

AHEAD = 512 << 20
"""Bytes of the slabs that are made ahead, at most; one slab in any case."""


class ChunkSlabs:
    """Chunks of equal shape, kept in slabs of as many as fit.

    One chunk of one batch row is one contiguous row of a slab: K, then V, [2, C, J, D]. Growing by whole slabs copies
    nothing.

    Args:
        like: K of some chunks [B, n, C, J, D]: batch size, shape and dtype of everything to come.
        device: where the slabs live.
        slab_bytes: upper bound of the size of a slab (one chunk at least).
        pin: page-lock the slabs, for asynchronous copies with the device of `like`. This takes long: from the second
            slab on the next ones are made ahead, in a thread, half as many as are in use.
        most: slabs that are ever needed at once, none is made beyond them; None for any number.
    """

    def __init__(
        self, like: Tensor, device: torch.device, slab_bytes: int, pin: bool = False, most: int | None = None
    ) -> None:
        self.signature = _signature(like)
        self.batch_size, self.shape, self.dtype = like.shape[0], tuple(like.shape[2:]), like.dtype
        self.width = 2 * like.shape[2:].numel()
        self.row_bytes = self.width * self.dtype.itemsize
        self.rows_per_slab = max(1, slab_bytes // self.row_bytes)
        self.device, self.pin = device, pin
        shape = (self.rows_per_slab, self.width)
        self._make = (
            partial(page_locked, shape, self.dtype, like.device)
            if pin
            else partial(torch.empty, shape, dtype=self.dtype, device=device)
        )
        self.most_ahead = max(1, AHEAD // (self.rows_per_slab * self.row_bytes))
        self._ahead = MadeAhead(self._make, self.most_ahead, most) if pin else None
        self.slabs: list[Tensor] = []
        self.rows = 0

    def fits(self, k: Tensor) -> bool:
        """Whether chunks like `k` can go on where these slabs stand."""
        return self.signature == _signature(k)

    def pack(self, k: Tensor, v: Tensor) -> Tensor:
        """K and V [B, n, C, J, D] -> slab rows [n * B, width] on the same device, in the order of their numbers."""
        return torch.stack((k.detach(), v.detach()), 2).transpose(0, 1).reshape(-1, self.width)

    def append(self, rows: Tensor) -> None:
        """Copy packed rows behind the last one; asynchronously when the slabs are pinned."""
        while len(rows):
            slab, at = divmod(self.rows, self.rows_per_slab)
            if slab == len(self.slabs):
                self.slabs.append(self.new_slab())
            n = min(len(rows), self.rows_per_slab - at)
            self.slabs[slab][at : at + n].copy_(rows[:n], non_blocking=self.pin)
            self.rows += n
            rows = rows[n:]

    def check(self, ids: Tensor) -> None:
        """Raise IndexError when a chunk number has not been written. Waits for the device of `ids`."""
        chunks = self.rows // self.batch_size
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < chunks:
            raise IndexError(f"chunk numbers must lie in [0, {chunks}), got {ids.tolist()}")

    def gather(self, ids: Tensor) -> Tensor:
        """Rows [B * U, width] of chunks `ids` int64 [B, U], on the slabs' device (and pinned like them)."""
        ids = ids.to(self.device)
        self.check(ids)
        row = row_numbers(ids)
        out = torch.empty((len(row), self.width), dtype=self.dtype, device=self.device, pin_memory=self.pin)
        if len(self.slabs) == 1:
            return torch.index_select(self.slabs[0], 0, row, out=out)
        slab, at = row // self.rows_per_slab, row % self.rows_per_slab
        for number in slab.unique().tolist():
            where = (slab == number).nonzero().flatten()
            out.index_copy_(0, where, self.take(number, at[where]))
        return out

    def new_slab(self) -> Tensor:
        """Room for the next rows."""
        return self._make() if self._ahead is None else self._ahead.take()

    def take(self, slab: int, at: Tensor) -> Tensor:
        """Rows `at` of one slab."""
        return self.slabs[slab].index_select(0, at)

    def nbytes(self) -> int:
        """Bytes of the slabs in memory, with those that are made ahead."""
        waiting = 0 if self._ahead is None else self._ahead.waiting
        return sum(slab.nbytes for slab in self.slabs) + waiting * self.rows_per_slab * self.row_bytes

    def bytes_on_disk(self) -> int:
        return 0

    def reset(self) -> None:
        """Forget all rows and keep the slabs."""
        self.rows = 0

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self.slabs = []


def _signature(k: Tensor) -> tuple[object, ...]:
    return k.shape[0], tuple(k.shape[2:]), k.dtype, k.device
