"""What memory, model and attention exchange: a selection of chunks, a table of their K/V, and where K/V bytes live.

What modules return are tuples all the way down: FSDP finds the tensors in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from gca_lit.memory.reader import ChunkReader

T = TypeVar("T")


class Selection(NamedTuple):
    """Chunks picked for consecutive query chunks.

    ids: int64 [B, Q, K], chunk numbers in order of falling score; -1 is an empty slot.
    weights: [B, Q, K], zero where the slot is empty.
    """

    ids: Tensor
    weights: Tensor


class ChunkTable(NamedTuple):
    """Keys and values of chunks, [B, N, C, J, D] each; a selection's ids index N."""

    k: Tensor
    v: Tensor


class ChunkStore(Protocol):
    """Keeps the K/V of whole chunks; every chunk is written once. It knows no attention."""

    def write(self, k: Tensor, v: Tensor) -> None:
        """Append chunks: k and v are [B, n, C, J, D] of one dtype, the same at every call until `reset`."""

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [B, U, C, J, D] of chunks `ids` int64 [B, U], on the device of the tensors written."""

    def reader(self) -> ChunkReader | None:
        """Reads the chunks written so far with device work alone; None where the host takes part in a read."""
        return None

    def ordered(self, read: Callable[[], T]) -> T:
        """What `read` gives: device work with `reader()`, after all writes so far and before later ones."""
        return read()

    def bytes(self) -> dict[str, int]:
        """Bytes allocated in each tier: "device", "host", "disk"."""

    def needs(self, size: int) -> dict[str, int]:
        """Bytes in each tier that `size` bytes of chunk K/V will take."""

    def reset(self) -> None:
        """Forget the chunks and keep the slabs for the next episode."""

    def close(self) -> None:
        """Release everything."""
