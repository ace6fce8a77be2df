"""Chunk K/V in host memory: only what is read comes back to the device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch
from torch import Tensor

from gca_lit.memory.base import ChunkStore
from gca_lit.memory.copies import Copies, InlineCopies, StreamCopies
from gca_lit.memory.reader import ChunkReader, unpack
from gca_lit.memory.slabs import ChunkSlabs

if TYPE_CHECKING:
    from gca_kernels.gather import RowGather

Gather = Literal["auto", "staged", "direct"]
T = TypeVar("T")


class HostStore(ChunkStore):
    """Keep chunk K/V in host memory.

    With a CUDA device the slabs are pinned, the next ones ahead of their need (`bytes` counts them, `needs` does not),
    and a write is copied on a side stream while the next segment computes.
    A staged read is one gather on the CPU into a pinned buffer and one asynchronous copy; the host waits for the writes
    and for `ids`. In a direct read a kernel takes the rows from the slabs over the bus; the host waits for nothing, and
    ids on the device are not checked: they must be numbers of chunks written. Call `close` before dropping the store,
    for kernels may still be reading.

    Args:
        slab_mib: upper bound of the size of one slab in MiB.
        gather: "staged", "direct" (needs a CUDA device and triton), or "auto" for direct where it can run.
    """

    def __init__(self, slab_mib: int = 64, gather: Gather = "auto") -> None:
        if slab_mib < 1:
            raise ValueError(f"HostStore: slab_mib must be at least 1, got {slab_mib}")
        if gather not in get_args(Gather):
            raise ValueError(f'HostStore: gather must be "auto", "staged" or "direct", not {gather!r}')
        self._slab_bytes = slab_mib << 20
        self._gather = gather
        self._slabs: ChunkSlabs | None = None
        self._direct: RowGather | None = None
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
        slabs, reader = self._slabs, self.reader()
        if slabs is None:
            raise RuntimeError("HostStore: nothing has been written yet")
        if reader is not None:
            if ids.device.type == "cpu":
                slabs.check(ids)
            there = ids.to(self._device, non_blocking=True)
            return self.ordered(lambda: reader(there))
        self._copies.wait()
        return unpack(slabs.gather(ids).to(self._device, non_blocking=True), ids, slabs.shape)

    def reader(self) -> ChunkReader | None:
        if self._slabs is None or self._direct is None:
            return None
        return ChunkReader(self._direct.now(), self._slabs.shape)

    def ordered(self, read: Callable[[], T]) -> T:
        return self._copies.read(read)

    def bytes(self) -> dict[str, int]:
        self._copies.wait()
        host, disk = (self._slabs.nbytes(), self._slabs.bytes_on_disk()) if self._slabs else (0, 0)
        return {"device": 0, "host": host, "disk": disk}

    def needs(self, size: int) -> dict[str, int]:
        return {"host": size}

    def reset(self) -> None:
        self._copies.wait()
        if self._slabs is not None:
            self._slabs.reset()

    def close(self) -> None:
        self._copies.wait()
        if self._slabs is not None:
            self._slabs.close()
        self._slabs = self._direct = None

    def _open(self, k: Tensor) -> ChunkSlabs:
        self.close()
        self._copies = StreamCopies(k.device) if k.device.type == "cuda" else self._copies
        self._slabs = slabs = self._new_slabs(k)
        self._direct = _row_gather(self._gather, slabs, k.device)
        self._device = k.device
        return slabs

    def _new_slabs(self, k: Tensor) -> ChunkSlabs:
        return ChunkSlabs(k, torch.device("cpu"), self._slab_bytes, pin=k.device.type == "cuda")


def _row_gather(gather: Gather, slabs: ChunkSlabs, device: torch.device) -> RowGather | None:
    """What reads the slabs directly, or None where every read is staged."""
    missing = "a CUDA device" if device.type != "cuda" else "triton" if find_spec("triton") is None else None
    if gather == "direct" and missing:
        raise RuntimeError(f'HostStore: gather="direct" needs {missing}: take gather="auto" or gather="staged"')
    if gather == "staged" or missing:
        return None
    from gca_kernels.gather import RowGather

    return RowGather(slabs.slabs, device)
