"""Slabs of which the newest are in host memory and all older ones in a file."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gca_lit.memory.copies import Copies
from gca_lit.memory.slabs import ChunkSlabs
from gca_lit.whole_file import NotSaved

READERS = 8
"""Threads that read rows at once: a disk answers many small reads together much faster than one by one."""


class SpillingSlabs(ChunkSlabs):
    """Keep `resident` slabs in host memory; for one more the oldest goes to disk, and its memory is used again.

    The next slab to go is written while the present one is filled. The file has no name: whatever ends the process
    gives its space back.

    Args:
        like, slab_bytes, pin: see ChunkSlabs.
        resident: slabs in host memory, at least 2.
        directory: where the file lies.
        copies: that fill the slabs; waited for before a slab is written.
    """

    def __init__(
        self, like: Tensor, slab_bytes: int, pin: bool, resident: int, directory: Path, copies: Copies
    ) -> None:
        super().__init__(like, torch.device("cpu"), slab_bytes, pin, most=resident)
        self._resident, self._directory, self._copies = resident, directory, copies
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  (closed by `close`)
        self._threads = ThreadPoolExecutor(READERS)
        self._going: Future[None] | None = None
        self.spilled = 0
        """Slabs on disk: the oldest ones."""

    def new_slab(self) -> Tensor:
        if len(self.slabs) - self.spilled < self._resident:
            return super().new_slab()
        going = self._going or self._spill(self.spilled)
        going.result()
        freed = self.slabs[self.spilled]
        self.slabs[self.spilled] = freed.new_empty(0)
        self.spilled += 1
        self._going = self._spill(self.spilled)
        return freed

    def take(self, slab: int, at: Tensor) -> Tensor:
        if slab >= self.spilled:
            return super().take(slab, at)
        rows = torch.empty(len(at), self.width, dtype=self.dtype)
        numbers = (slab * self.rows_per_slab + at).tolist()
        list(self._threads.map(self._read, map(_bytes, rows), numbers))
        return rows

    def bytes_on_disk(self) -> int:
        return self.spilled * self.rows_per_slab * self.row_bytes

    def reset(self) -> None:
        """Forget all rows, and keep the slabs in host memory; nothing stays on disk."""
        self._settle()
        self.slabs, self.spilled = self.slabs[self.spilled :], 0
        self._file.truncate(0)
        super().reset()

    def close(self) -> None:
        self._settle()
        self._threads.shutdown()
        self._file.close()
        super().close()

    def _spill(self, slab: int) -> Future[None]:
        self._copies.wait()
        return self._threads.submit(self._write, slab, self.slabs[slab])

    def _write(self, slab: int, rows: Tensor) -> None:
        data, at = _bytes(rows), slab * self.rows_per_slab * self.row_bytes
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise NotSaved(
                f"chunk K/V could not be written to {self._directory}, which holds {at:,} bytes of them already: "
                f"{error.strerror}; make room, or name another directory"
            ) from error

    def _read(self, data: memoryview, number: int) -> None:
        at = number * self.row_bytes
        while data:
            got = os.preadv(self._file.fileno(), [data], at)
            if not got:
                raise OSError(f"the file of chunk K/V in {self._directory} ends at byte {at:,}: it was changed")
            data, at = data[got:], at + got

    def _settle(self) -> None:
        """Wait for a slab on its way to the disk, and forget that it went: it is still in host memory."""
        if self._going is not None:
            self._going.exception()
            self._going = None


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
