"""The forward kernels for one query row, which is what decoding asks for: one program for each query head and slot.

There is little to compute, so time is waiting for memory: many small programs wait side by side. Each writes its
slot's share of the output in fp32, and a second kernel adds the shares of a head.
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

WARP = 8192
"""Bytes of a tile that a warp holds: 64 registers of each thread."""

MOST = 16 * WARP
"""Bytes of a chunk's K that a program holds beside as many of V."""

MOST_SLOTS = 65_535
"""Programs that the second dimension of a grid holds."""


@triton.jit(do_not_specialize=["slots", "chunks"])
def slot_kernel(
    q, k, v, ids, weights, shares, lse,
    q_b, q_h, k_b, k_n, k_c, k_h, v_b, v_n, v_c, v_h, slots, chunks, scale_log2, offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr, D: tl.constexpr, OFFSET: tl.constexpr,
    PACKED: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = (tl.program_id(0) % HEADS).to(tl.int64)
    slot = tl.program_id(1)
    kv_head, pair = head // GROUP, head % GROUP
    c = tl.arange(0, TILE_C)
    d = tl.arange(0, TILE_D)

    chunk = tl.load(ids + batch * slots + slot).to(tl.int64)
    filled = (chunk >= 0) & (chunk < chunks)
    inside = (c < C)[:, None] & (d < D)[None, :] & filled
    k_at = k + batch * k_b + chunk * k_n + kv_head * k_h + c[:, None] * k_c + d[None, :]
    v_at = v + batch * v_b + chunk * v_n + kv_head * v_h + c[:, None] * v_c + d[None, :]
    k_tile = tl.load(k_at, mask=inside, other=0.0)
    v_tile = tl.load(v_at, mask=inside, other=0.0)
    q_row = tl.load(q + batch * q_b + head * q_h + d, mask=d < D, other=0.0).to(tl.float32)
    weight = tl.load(weights + batch * slots + slot, mask=filled, other=0.0).to(tl.float32)

    score = tl.sum(k_tile.to(tl.float32) * q_row[None, :], 1) * scale_log2
    if C < TILE_C:
        score = tl.where(c < C, score, float("-inf"))
    top = tl.max(score, 0)
    if OFFSET:
        top = tl.maximum(top, 0.0)
    p = tl.exp2(score - top)
    norm = tl.sum(p, 0)
    if OFFSET:
        norm += offset * tl.exp2(-top)
    p = p * (weight / norm)
    share_at = shares + ((batch * HEADS + head) * slots + slot) * D + d
    tl.store(share_at, tl.sum(p[:, None] * v_tile.to(tl.float32), 0), mask=d < D)

    # the last head also fills the places of pairs that do not exist
    place = tl.arange(0, PACKED)
    own_place = (place == pair) | ((pair == GROUP - 1) & (place > pair))
    lse_at = lse + ((batch * (HEADS // GROUP) + kv_head) * slots + slot) * PACKED + place
    tl.store(lse_at, tl.zeros([PACKED], dtype=tl.float32) + (top + tl.log2(norm)), mask=own_place)


@triton.jit(do_not_specialize=["slots"])
def sum_kernel(shares, out, slots, D: tl.constexpr, TILE_K: tl.constexpr, TILE_D: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)  # of the whole batch
    d = tl.arange(0, TILE_D)
    total = tl.zeros([TILE_D], dtype=tl.float32)
    for first in range(0, slots, TILE_K):
        slot = first + tl.arange(0, TILE_K)
        share_at = shares + (head * slots + slot[:, None]) * D + d[None, :]
        total += tl.sum(tl.load(share_at, mask=(slot < slots)[:, None] & (d < D)[None, :], other=0.0), 0)
    tl.store(out + head * D + d, total.to(out.dtype.element_ty), mask=d < D)


@lru_cache(maxsize=256)
def plan(shape: Shape, itemsize: int, offset: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """-> constants and tiles of either kernel, or None where the sizes of a call are not for them."""
    C, D = _power(shape.chunk_rows), _power(shape.head_width)
    size = C * D * itemsize
    if (shape.rows, shape.queries) != (1, 1) or not 0 < shape.slots <= MOST_SLOTS or shape.group > 128 or size > MOST:
        return None
    slot = {
        "HEADS": shape.heads, "GROUP": shape.group, "C": shape.chunk_rows, "D": shape.head_width, "OFFSET": offset,
        "PACKED": pad(shape.pairs), "TILE_C": C, "TILE_D": D, "num_warps": max(1, size // WARP),
    }  # fmt: skip
    TILE_K = min(_power(shape.slots), WARP // (4 * D))
    return slot, {"D": shape.head_width, "TILE_K": TILE_K, "TILE_D": D, "num_warps": 1}


def forward(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, shape: Shape, scale: float, offset: float
) -> tuple[Tensor, Tensor] | None:
    """-> (output [B, 1, H, D], log-sum-exp, packed), or None where the call is not for these kernels."""
    planned = plan(shape, q.element_size(), offset > 0)
    if planned is None:
        return None
    slot_options, sum_options = planned
    heads = shape.batch * shape.heads
    out = q.new_empty(q.shape)
    lse = q.new_empty(shape.packed, dtype=torch.float32)
    shares = q.new_empty((heads, shape.slots, shape.head_width), dtype=torch.float32)
    slot_kernel[heads, shape.slots](
        q, k, v, ids, weights, shares, lse, q.stride(0), q.stride(2), *k.stride()[:4], *v.stride()[:4],
        shape.slots, shape.chunks, scale * LOG2_E, offset, **slot_options,
    )  # fmt: skip
    sum_kernel[(heads,)](shares, out, shape.slots, **sum_options)
    return out, lse


def _power(n: int) -> int:
    """The power of two from n on."""
    return 1 << (n - 1).bit_length()
