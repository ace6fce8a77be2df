"""The pairs of a tile: which query rows and heads it holds, for all kernels alike."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_pairs(query, tile, kv_head, block, start, rows, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Pairs (row, query head), row slowest, of tile `tile` of a query chunk.

    -> number of each pair in the query chunk [TILE], whether it exists [TILE], its row counted from the first row of
    the query chunk [TILE, 1], its query head [TILE, 1], and that first row, int64: start rows before row 0 in chunk 0.
    """
    pair = tile * TILE + tl.arange(0, TILE)
    row_in_block = pair // GROUP
    first_row = query * block - start
    row = first_row + row_in_block
    live = (pair < block * GROUP) & (row >= 0) & (row < rows)
    head = kv_head * GROUP + pair % GROUP
    return pair, live, row_in_block[:, None], head[:, None], first_row.to(tl.int64)
