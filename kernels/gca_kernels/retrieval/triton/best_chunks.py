"""The kernels: order keys of all landmarks, and the best of many order keys, level by level until one program has them.

An order key is an int64 that sorts like (score, lower chunk number first): the score's bits, made to sort like signed
integers, above the low 32 bits, which hold LOW_BITS - chunk. Of a hidden chunk it is NOTHING.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 16
"""Parts of keys that a launch takes."""
ROWS, MOST_COLUMNS = 32, 256
"""Landmarks and columns of a tile: 64 elements for each thread of 4 warps."""
PROGRAMS, MOST_TILES = 4096, 8
"""A program scores several tiles where this many programs are left, up to so many."""
FEWEST_ORDERS, MOST_ORDERS = 512, 4096
"""Order keys that a program holds at a time."""
NOTHING = tl.constexpr(-(2**63))
LOW_BITS = tl.constexpr(2**32 - 1)


@triton.jit
def _length(number):
    return (number - 3) >> 1


@triton.jit(do_not_specialize=["first", "tiles", "landmarks"])
def order_kernel(
    query, keys, count, slope, orders, numbers, first, tiles, landmarks,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    visible = tl.minimum(tl.load(count), 2**31 - 1).to(tl.int32)
    # which part is ours: those before it have `taken` programs, and `begin` is its first chunk
    run = ROWS * tiles
    part, length, taken, begin = keys[0], _length(numbers[0]), 0, first
    next_taken, next_begin = tl.cdiv(length, run), first + length
    for i in tl.static_range(1, len(keys)):
        later = tl.program_id(0) >= next_taken
        part = tl.where(later, keys[i], part)
        length = tl.where(later, _length(numbers[i]), length)
        taken = tl.where(later, next_taken, taken)
        begin = tl.where(later, next_begin, begin)
        next_taken += tl.cdiv(_length(numbers[i]), run)
        next_begin += _length(numbers[i])

    for tile in range(tiles):
        row = (tl.program_id(0) - taken) * run + tile * ROWS + tl.arange(0, ROWS)
        chunk = begin + row
        inside = row < length
        seen = inside & (chunk < visible)
        score = tl.zeros([ROWS], dtype=tl.float32)
        for left in tl.static_range(0, WIDTH, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            read = seen[:, None]
            if WIDTH % COLUMNS != 0:
                read = read & (column < WIDTH)[None, :]
            key = tl.load(
                part + (batch * length + row)[:, None] * WIDTH + column[None, :], mask=read, other=0.0
            ).to(tl.float32)  # fmt: skip
            asked = tl.load(query + batch * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            score += tl.sum(key * asked[None, :], 1)
        if slope is not None:
            score -= tl.load(slope).to(tl.float32) * tl.log2(tl.maximum(visible - chunk, 1).to(tl.float32))
        bits = score.to(tl.int32, bitcast=True)
        bits = tl.where(score == 0.0, 0, bits)  # that of -0.0, too
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        order = (bits.to(tl.int64) << 32) | (LOW_BITS - chunk.to(tl.int64))
        order = tl.where(seen & (score != float("-inf")), order, NOTHING)
        tl.store(orders + batch * landmarks + chunk, order, mask=inside)


@triton.jit(do_not_specialize=["count", "slots"])
def best_kernel(orders, out, weights, count, slots, TILE: tl.constexpr, SLOTS: tl.constexpr):
    """The best of each tile, as order keys; with `weights`, as ids and weights."""
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    left = tl.load(orders + batch * count + at, mask=at < count, other=NOTHING)
    slot = tl.arange(0, SLOTS)
    best = tl.full([SLOTS], NOTHING, dtype=tl.int64)
    for i in range(slots):
        top = tl.max(left, 0)
        best = tl.where(slot == i, top, best)
        left = tl.where(left == top, NOTHING, left)
    place = (batch * tl.num_programs(0) + tl.program_id(0)) * slots + slot
    if weights is not None:
        filled = best != NOTHING
        bits = (best >> 32).to(tl.int32)
        score = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        highest = tl.max(tl.where(filled, score, float("-inf")), 0)
        share = tl.where(filled, tl.exp(score - highest), 0.0)
        share = tl.where(filled, share / tl.sum(share, 0), 0.0)
        tl.store(weights + place, share, mask=slot < slots)
        best = tl.where(filled, LOW_BITS - (best & LOW_BITS), -1)
    tl.store(out + place, best, mask=slot < slots)


def best_chunks(
    query: Tensor, keys: Sequence[Tensor], count: Tensor, top_k: int, slope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """query [B, M'], keys in parts [B, n, M'], count int64 [1], slope [1] -> ids, weights [B, 1, K]."""
    with torch.cuda.device_of(query):
        return best_of(order_keys(query, keys, count, slope), top_k)


def order_keys(query: Tensor, keys: Sequence[Tensor], count: Tensor, slope: Tensor | None) -> Tensor:
    """Order keys [B, N] of all landmarks, scored for query [B, M']."""
    (B, width), landmarks = query.shape, sum(part.shape[1] for part in keys)
    query, keys = query.contiguous(), [part.contiguous() for part in keys if part.shape[1]]
    orders = torch.empty((B, landmarks), dtype=torch.int64, device=query.device)
    tiles = max(1, min(B * landmarks // (ROWS * PROGRAMS), MOST_TILES))
    first = 0
    for at in range(0, len(keys) if B else 0, PARTS):
        parts = keys[at : at + PARTS]
        lengths = [part.shape[1] for part in parts]
        spare = PARTS - len(parts)
        # Triton compiles anew for each pattern of ones and multiples of 16 in a tuple: odd numbers from 3 on have none
        numbers = [2 * length + 3 for length in (*lengths, *[0] * spare)]
        order_kernel[(sum(triton.cdiv(length, ROWS * tiles) for length in lengths), B)](
            query, (*parts, *parts[:1] * spare), count, slope, orders, tuple(numbers), first, tiles, landmarks,
            WIDTH=width, ROWS=ROWS, COLUMNS=_columns(width), num_warps=4,
        )  # fmt: skip
        first += sum(lengths)
    return orders


def best_of(orders: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """ids, weights [B, 1, K] of order keys [B, N]."""
    B = len(orders)
    ids = torch.empty((B, 1, top_k), dtype=torch.int64, device=orders.device)
    weights = torch.empty(ids.shape, dtype=torch.float32, device=orders.device)
    programs = 2
    while B and programs > 1:
        count = orders.shape[1]
        tile = min(max(triton.next_power_of_2(count), FEWEST_ORDERS), MOST_ORDERS)
        programs = max(1, triton.cdiv(count, tile))
        out = ids if programs == 1 else orders.new_empty(B, programs * top_k)
        best_kernel[(programs, B)](
            orders, out, weights if programs == 1 else None, count, top_k,
            TILE=tile, SLOTS=triton.next_power_of_2(top_k), num_warps=max(4, tile // 256),
        )  # fmt: skip
        orders = out
    return ids, weights


def _columns(width: int) -> int:
    """Columns of a tile: a power of two that divides the width, or, where that is too small, covers it."""
    divisor = width & -width
    return min(divisor if divisor >= 64 else triton.next_power_of_2(width), MOST_COLUMNS)
