"""The forward kernel: one program owns a tile of query rows and walks the slots of their query chunk.

A tile counts pairs (row, query head) of one K/V head, row slowest, so that all heads of a group read K and V once.
Where a chunk fits one tile its softmax is taken at once, else piece by piece.
The log-sum-exp of each pair and slot, base 2, is kept for the backward pass, packed by pairs (see `launch.Shape`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gca_kernels.gca.triton import one_row
from gca_kernels.gca.triton.blocks import forward_blocks, pad
from gca_kernels.gca.triton.launch import LOG2_E, RUNTIME, Shape
from gca_kernels.gca.triton.pairs import tile_pairs
from gca_kernels.gca.triton.pieces import load_piece


@triton.jit
def attend_in_pieces(
    q_tile, k_at, v_at, k_c, v_c, filled, scale_log2, offset,
    C: tl.constexpr, D: tl.constexpr, OFFSET: tl.constexpr,
    TILE: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """The softmax of one slot over a chunk that is longer than a tile, whose first rows `k_at` and `v_at` point to.

    -> largest score of each pair, base 2, the norm, and the output times the norm: both relative to that score.
    """
    top = tl.full([TILE], 0.0 if OFFSET else float("-inf"), dtype=tl.float32)
    norm = tl.zeros([TILE], dtype=tl.float32) + offset
    total = tl.zeros([TILE, TILE_D], dtype=tl.float32)
    for first in range(0, C, TILE_C):
        c, k_tile, v_tile = load_piece(k_at, v_at, first, k_c, v_c, filled, C, D, TILE_C, TILE_D)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        score = tl.where((c < C)[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1) * scale_log2)
        shrink = tl.exp2(top - higher)
        p = tl.exp2(score * scale_log2 - higher[:, None])
        norm = norm * shrink + tl.sum(p, 1)
        total = tl.dot(p.to(v_tile.dtype), v_tile, total * shrink[:, None], input_precision="ieee")
        top = higher
    return top, norm, total


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    q, k, v, ids, weights, out, lse,
    q_b, q_r, q_h, k_b, k_n, k_c, k_h, v_b, v_n, v_c, v_h,
    rows, queries, slots, chunks, block, start, packing, scale_log2, offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr, D: tl.constexpr, OFFSET: tl.constexpr,
    TILE: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    tiles = packing * 16 // TILE
    query = tl.program_id(0) // tiles
    batch = (tl.program_id(1) // (HEADS // GROUP)).to(tl.int64)
    kv_head = (tl.program_id(1) % (HEADS // GROUP)).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pair, live, row_in_block, head, first_row = tile_pairs(query, tile, kv_head, block, start, rows, GROUP, TILE)
    c = tl.arange(0, TILE_C)
    d = tl.arange(0, TILE_D)
    inside = live[:, None] & (d < D)[None, :]
    in_chunk = (c < C)[:, None] & (d < D)[None, :]

    q_tile = tl.load(
        q + batch * q_b + first_row * q_r + row_in_block * q_r + head * q_h + d[None, :], mask=inside, other=0.0
    )
    k_at = k + batch * k_b + kv_head * k_h + c[:, None] * k_c + d[None, :]
    v_at = v + batch * v_b + kv_head * v_h + c[:, None] * v_c + d[None, :]
    slot_at = (batch * queries + query) * slots
    lse_at = lse + ((batch * (HEADS // GROUP) + kv_head) * queries + query) * slots * (packing * 16) + pair
    total = tl.zeros([TILE, TILE_D], dtype=tl.float32)
    for slot in range(slots):
        chunk = tl.load(ids + slot_at + slot).to(tl.int64)
        filled = (chunk >= 0) & (chunk < chunks)
        weight = tl.load(weights + slot_at + slot, mask=filled, other=0.0).to(tl.float32)
        if C <= TILE_C:
            k_tile = tl.load(k_at + chunk * k_n, mask=in_chunk & filled, other=0.0)
            v_tile = tl.load(v_at + chunk * v_n, mask=in_chunk & filled, other=0.0)
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
            if C < TILE_C:
                score = tl.where((c < C)[None, :], score, float("-inf"))
            top = tl.max(score, 1) * scale_log2
            if OFFSET:
                top = tl.maximum(top, 0.0)
            p = tl.exp2(score * scale_log2 - top[:, None])
            norm = tl.sum(p, 1)
            if OFFSET:
                norm += offset * tl.exp2(-top)
            tl.store(lse_at + slot * (packing * 16), top + tl.log2(norm))
            p = p * (weight / norm)[:, None]
            total = tl.dot(p.to(v_tile.dtype), v_tile, total, input_precision="ieee")
        else:
            top, norm, part = attend_in_pieces(
                q_tile, k_at + chunk * k_n, v_at + chunk * v_n, k_c, v_c, filled, scale_log2, offset,
                C, D, OFFSET, TILE, TILE_C, TILE_D,
            )  # fmt: skip
            tl.store(lse_at + slot * (packing * 16), top + tl.log2(norm))
            total += part * (weight / norm)[:, None]
    out_at = ((batch * rows + first_row) * HEADS + row_in_block * HEADS + head) * D + d[None, :]
    tl.store(out + out_at, total.to(out.dtype.element_ty), mask=inside)


@lru_cache(maxsize=256)
def plan(shape: Shape, itemsize: int, offset: bool) -> tuple[tuple[int, int], dict[str, Any]]:
    """-> (grid, constants and tiles), which the sizes of a call decide."""
    blocks = forward_blocks(shape.pairs, shape.chunk_rows, shape.head_width, itemsize)
    constants = {
        "HEADS": shape.heads, "GROUP": shape.group, "C": shape.chunk_rows, "D": shape.head_width, "OFFSET": offset,
        "TILE_D": pad(shape.head_width),
    }  # fmt: skip
    return (shape.queries * shape.tiles(blocks.rows), shape.batch * shape.kv_heads), constants | blocks.options


def forward(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, block: int, start: int, scale: float, offset: float
) -> tuple[Tensor, Tensor]:
    """-> (output [B, R, H, D], log-sum-exp, packed)."""
    shape = Shape.of(q, k, ids, block, start)
    if (done := one_row.forward(q, k, v, ids, weights, shape, scale, offset)) is not None:
        return done
    grid, constants = plan(shape, q.element_size(), offset > 0)
    out = q.new_empty(q.shape)
    lse = q.new_empty(shape.packed, dtype=torch.float32)
    forward_kernel[grid](
        q, k, v, ids, weights, out, lse, *q.stride()[:3], *k.stride()[:4], *v.stride()[:4], *shape.counts,
        scale * LOG2_E, offset, **constants,
    )  # fmt: skip
    return out, lse
