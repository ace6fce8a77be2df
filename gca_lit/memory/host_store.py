"""Chunk K/V in host memory: only what is read comes back to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.memory.copies import Copies, InlineCopies, StreamCopies
from gca_lit.memory.slabs import ChunkSlabs


class HostStore:
    """Keep chunk K/V in host memory.

    With a CUDA device the slabs and the staging buffers are pinned, a write is copied on a side stream while the next
    segment computes, and a read is one gather on the CPU and one asynchronous copy.

    Args:
        slab_mib: upper bound of the size of one slab in MiB.
    """

    def __init__(self, slab_mib: int = 64) -> None:
        if slab_mib < 1:
            raise ValueError(f"HostStore: slab_mib must be at least 1, got {slab_mib}")
        self._slab_bytes = slab_mib << 20
        self._slabs: ChunkSlabs | None = None
        self._copies: Copies = InlineCopies()
        self._device = torch.device("cpu")

    def write(self, k: Tensor, v: Tensor) -> None:
        slabs = self._slabs
        if slabs is None or (slabs.rows == 0 and not slabs.fits(k)):
            slabs = self._open(k)
        if not slabs.fits(k):
            raise ValueError("HostStore: chunks of another batch size, shape or dtype: call reset() first")
        rows = slabs.pack(k, v)
        self._copies.run(lambda: slabs.append(rows), rows)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._slabs is None:
            raise RuntimeError("HostStore: nothing has been written yet")
        self._copies.wait()
        rows = self._slabs.gather(ids)
        return self._slabs.unpack(rows.to(self._device, non_blocking=True))

    def bytes(self) -> dict[str, int]:
        self._copies.wait()
        return {"device": 0, "host": self._slabs.nbytes() if self._slabs else 0, "disk": 0}

    def reset(self) -> None:
        self._copies.wait()
        if self._slabs is not None:
            self._slabs.reset()

    def close(self) -> None:
        self._copies.wait()
        self._slabs = None

    def _open(self, k: Tensor) -> ChunkSlabs:
        self._copies.wait()
        cuda = k.device.type == "cuda"
        self._device = k.device
        self._copies = StreamCopies(k.device) if cuda else self._copies
        self._slabs = ChunkSlabs(k, torch.device("cpu"), self._slab_bytes, pin=cuda)
        return self._slabs
