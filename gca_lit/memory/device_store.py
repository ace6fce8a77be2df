"""Chunk K/V on the device that computes them: no copies between tiers, as long as the device has room."""

from __future__ import annotations

from torch import Tensor

from gca_lit.memory.base import ChunkStore
from gca_lit.memory.reader import unpack
from gca_lit.memory.slabs import ChunkSlabs


class DeviceStore(ChunkStore):
    """Keep chunk K/V where they are computed.

    Args:
        slab_mib: upper bound of the size of one slab in MiB.
    """

    def __init__(self, slab_mib: int = 64) -> None:
        if slab_mib < 1:
            raise ValueError(f"DeviceStore: slab_mib must be at least 1, got {slab_mib}")
        self._slab_bytes = slab_mib << 20
        self._slabs: ChunkSlabs | None = None

    def write(self, k: Tensor, v: Tensor) -> None:
        slabs = self._slabs
        if slabs is None or (slabs.rows == 0 and not slabs.fits(k)):
            slabs = self._slabs = ChunkSlabs(k, k.device, self._slab_bytes)
        if not slabs.fits(k):
            raise ValueError("DeviceStore: chunks of another batch size, shape or dtype: call reset() first")
        slabs.append(slabs.pack(k, v))

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._slabs is None:
            raise RuntimeError("DeviceStore: nothing has been written yet")
        return unpack(self._slabs.gather(ids), ids, self._slabs.shape)

    def bytes(self) -> dict[str, int]:
        return {"device": self._slabs.nbytes() if self._slabs else 0, "host": 0, "disk": 0}

    def needs(self, size: int) -> dict[str, int]:
        return {"device": size}

    def reset(self) -> None:
        if self._slabs is not None:
            self._slabs.reset()

    def close(self) -> None:
        self._slabs = None
