"""A chunk that is longer than a tile, read piece by piece."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_piece(
    k_at, v_at, first, k_c, v_c, filled, C: tl.constexpr, D: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr
):
    """Rows `first` to first + TILE_C of a chunk, whose first TILE_C rows `k_at` and `v_at` point to.

    -> number of each row in the chunk [TILE_C], K and V [TILE_C, TILE_D]: zeros behind the chunk and in an empty slot.
    """
    c = first + tl.arange(0, TILE_C)
    inside = (c < C)[:, None] & (tl.arange(0, TILE_D) < D)[None, :] & filled
    k_tile = tl.load(k_at + first * k_c, mask=inside, other=0.0)
    v_tile = tl.load(v_at + first * v_c, mask=inside, other=0.0)
    return c, k_tile, v_tile
