"""The forward kernel for one query row, which is what decoding asks for: one program for each query head.

There is nothing to tile and little to compute, so time is waiting for memory: a program loads the chunks of several
slots at once, all of them where they fit its registers, and takes their softmaxes side by side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gca_kernels.gca.triton.blocks import pad
from gca_kernels.gca.triton.launch import LOG2_E, Shape

MOST = 32_768
"""Elements of K that a program holds at a time."""


@triton.jit(do_not_specialize=["slots", "chunks"])
def one_row_kernel(
    q, k, v, ids, weights, out, lse,
    q_b, q_h, k_b, k_n, k_c, k_h, v_b, v_n, v_c, v_h, slots, chunks, scale_log2, offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr, D: tl.constexpr, OFFSET: tl.constexpr,
    PACKED: tl.constexpr, TILE_K: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = (tl.program_id(0) % HEADS).to(tl.int64)
    kv_head, pair = head // GROUP, head % GROUP
    c = tl.arange(0, TILE_C)[None, :, None]
    d = tl.arange(0, TILE_D)
    in_chunk = (c < C) & (d < D)[None, None, :]
    # the last head also fills the places of pairs that do not exist
    place = tl.arange(0, PACKED)[None, :]
    own_place = (place == pair) | ((pair == GROUP - 1) & (place > pair))

    q_row = tl.load(q + batch * q_b + head * q_h + d, mask=d < D, other=0.0).to(tl.float32)
    k_at = k + batch * k_b + kv_head * k_h + c * k_c + d[None, None, :]
    v_at = v + batch * v_b + kv_head * v_h + c * v_c + d[None, None, :]
    lse_at = lse + (batch * (HEADS // GROUP) + kv_head) * slots * PACKED
    total = tl.zeros([TILE_D], dtype=tl.float32)
    for first in range(0, slots, TILE_K):
        slot = first + tl.arange(0, TILE_K)
        chunk = tl.load(ids + batch * slots + slot, mask=slot < slots, other=-1).to(tl.int64)
        filled = (chunk >= 0) & (chunk < chunks)
        inside = filled[:, None, None] & in_chunk
        k_tile = tl.load(k_at + chunk[:, None, None] * k_n, mask=inside, other=0.0)
        v_tile = tl.load(v_at + chunk[:, None, None] * v_n, mask=inside, other=0.0)
        weight = tl.load(weights + batch * slots + slot, mask=filled, other=0.0).to(tl.float32)
        score = tl.sum(k_tile.to(tl.float32) * q_row[None, None, :], 2) * scale_log2
        if C < TILE_C:
            score = tl.where(tl.arange(0, TILE_C)[None, :] < C, score, float("-inf"))
        top = tl.max(score, 1)
        if OFFSET:
            top = tl.maximum(top, 0.0)
        p = tl.exp2(score - top[:, None])
        norm = tl.sum(p, 1)
        if OFFSET:
            norm += offset * tl.exp2(-top)
        kept = (top + tl.log2(norm))[:, None] + tl.zeros([TILE_K, PACKED], dtype=tl.float32)
        tl.store(lse_at + slot[:, None] * PACKED + place, kept, mask=(slot < slots)[:, None] & own_place)
        p = p * (weight / norm)[:, None]
        total += tl.sum(tl.sum(p[:, :, None] * v_tile.to(tl.float32), 1), 0)
    out_at = out + (batch * HEADS + head) * D + d
    tl.store(out_at, total.to(out.dtype.element_ty), mask=d < D)


@lru_cache(maxsize=256)
def plan(shape: Shape, offset: bool) -> tuple[tuple[int], dict[str, Any]] | None:
    """-> (grid, constants and tiles), or None where the sizes of a call are not for this kernel."""
    C, D = _power(shape.chunk_rows), _power(shape.head_width)
    if (shape.rows, shape.queries) != (1, 1) or shape.slots == 0 or shape.group > 128 or C * D > MOST:
        return None
    slots = min(_power(shape.slots), MOST // (C * D))
    constants = {
        "HEADS": shape.heads, "GROUP": shape.group, "C": shape.chunk_rows, "D": shape.head_width, "OFFSET": offset,
        "PACKED": pad(shape.pairs), "TILE_K": slots, "TILE_C": C, "TILE_D": D,
        "num_warps": min(16, max(4, slots * C * D // 2048)),
    }  # fmt: skip
    return (shape.batch * shape.heads,), constants


def forward(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, shape: Shape, scale: float, offset: float
) -> tuple[Tensor, Tensor] | None:
    """-> (output [B, 1, H, D], log-sum-exp, packed), or None where the call is not for this kernel."""
    planned = plan(shape, offset > 0)
    if planned is None:
        return None
    grid, constants = planned
    out = q.new_empty(q.shape)
    lse = q.new_empty(shape.packed, dtype=torch.float32)
    one_row_kernel[grid](
        q, k, v, ids, weights, out, lse, q.stride(0), q.stride(2), *k.stride()[:4], *v.stride()[:4],
        shape.slots, shape.chunks, scale * LOG2_E, offset, **constants,
    )  # fmt: skip
    return out, lse


def _power(n: int) -> int:
    """The power of two from n on."""
    return 1 << (n - 1).bit_length()
