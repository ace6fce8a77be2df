"""Page-locked host memory in huge pages, which the system gives and CUDA locks faster than small ones."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor


def page_locked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in host memory that `device`, a CUDA device, copies asynchronously and reads over the bus.

    torch's threads touch the pages before they are locked: the first touch is what takes the time. Nobody may still be
    reading the tensor when the last reference to it goes. Raises MemoryError where CUDA cannot lock so much.
    """
    huge = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge is None:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    pages = _Pages(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages gives small ones
        pages.madvise(huge)
    tensor = torch.frombuffer(pages, dtype=dtype).zero_()
    pages.lock(tensor.data_ptr(), device)
    return tensor.view(shape)


class _Pages(mmap.mmap):
    """Memory that CUDA lets go of before the system does."""

    _address: int | None = None

    def lock(self, address: int, device: torch.device) -> None:
        cuda = torch.cuda.cudart()
        with torch.cuda.device(device):  # a new thread would open device 0
            error = cuda.cudaHostRegister(address, len(self), 0)
        if int(error):
            reason = cuda.cudaGetErrorString(error)
            raise MemoryError(f"CUDA cannot lock {len(self):,} bytes of host memory: {reason}")
        self._address = address

    def __del__(self) -> None:
        if self._address is not None:
            torch.cuda.cudart().cudaHostUnregister(self._address)
