"""Chunk K/V on disk: the length of an input is bounded by the disk alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import Tensor

from gca_lit.memory.host_store import HostStore
from gca_lit.memory.spilling_slabs import SpillingSlabs


class DiskStore(HostStore):
    """A HostStore whose newest chunks are in host memory and whose older ones are in a file.

    The disk talks to host memory only. Every read is staged: rows are gathered on the CPU and copied to the device.

    Args:
        host_mib: most that all slabs take of host memory in MiB, at least two slabs.
        directory: where the file lies; it has no name, and its space comes back when the process ends, however it
            ends. None is the system's directory for temporary files.
        slab_mib: upper bound of the size of one slab in MiB.
    """

    def __init__(self, host_mib: int = 1024, directory: str | None = None, slab_mib: int = 64) -> None:
        super().__init__(slab_mib, gather="staged")
        if host_mib < 2 * slab_mib:
            raise ValueError(f"DiskStore: host_mib must be at least two slabs, {2 * slab_mib} MiB, got {host_mib}")
        self.host_bytes = host_mib << 20
        self.directory = Path(directory or tempfile.gettempdir())
        if not self.directory.exists():
            raise FileNotFoundError(f"DiskStore: directory {self.directory} does not exist: make it, or name another")
        if not self.directory.is_dir():
            raise NotADirectoryError(f"DiskStore: {self.directory} is not a directory: name another")
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(f"DiskStore: directory {self.directory} cannot be written: name another")

    def needs(self, size: int) -> dict[str, int]:
        return {"host": min(size, self.host_bytes), "disk": max(0, size - self.host_bytes)}

    def _new_slabs(self, k: Tensor) -> SpillingSlabs:
        resident = max(2, self.host_bytes // self._slab_bytes)
        pin = k.device.type == "cuda"
        return SpillingSlabs(k, self._slab_bytes, pin, resident, self.directory, self._copies)
