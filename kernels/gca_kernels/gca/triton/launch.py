"""What the launches share: the sizes of a call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gca_kernels.gca.triton.blocks import pad

LOG2_E = 1.4426950408889634
RUNTIME = ["rows", "queries", "slots", "chunks", "block", "start", "packing", "tables", "length"]
"""Kernel arguments that change from call to call: no kernel is compiled again for a value of theirs."""


class Shape(NamedTuple):
    """Sizes of one call; a pair is a query row and one of the query heads of a K/V head."""

    batch: int
    rows: int
    heads: int
    head_width: int
    chunks: int
    chunk_rows: int
    kv_heads: int
    queries: int
    slots: int
    block: int
    start: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, ids: Tensor, block: int, start: int) -> Shape:
        B, R, H, D = q.shape
        _, N, C, J, _ = k.shape
        _, Q, K = ids.shape
        if start + R <= block:  # one query chunk: its tiles need to hold only the rows there are
            block, start = max(R, 1), 0
        return cls(B, R, H, D, N, C, J, Q, K, block, start)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def pairs(self) -> int:
        """Pairs of a query chunk and one K/V head."""
        return self.block * self.group

    @property
    def counts(self) -> tuple[int, ...]:
        """What every kernel is told, in the order of its arguments."""
        return self.rows, self.queries, self.slots, self.chunks, self.block, self.start, self.packing

    @property
    def packing(self) -> int:
        """Sixteens of pairs that are kept for a query chunk and slot: whole tiles, whatever their size."""
        return pad(self.pairs) // 16 if self.pairs <= 128 else -(-self.pairs // 128) * 8

    @property
    def packed(self) -> tuple[int, ...]:
        """Shape of what is kept per pair and slot; every place of it is written, for pairs that do not exist, too."""
        return self.batch, self.kv_heads, self.queries, self.slots, self.packing * 16

    def tiles(self, rows: int) -> int:
        """Tiles of `rows` pairs, a power of two up to 128, for one query chunk and K/V head."""
        return self.packing * 16 // rows
