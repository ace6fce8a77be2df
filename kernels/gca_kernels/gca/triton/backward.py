"""The backward kernels: one over query tiles for q and the weights, one over pieces of the index for K and V.

There is one softmax per slot, so the subtracted row sum is per slot too: delta = rowsum(P * dP), P and dP of one slot.
The first kernel takes it, keeps it in the packed layout of the log-sum-exp, and its sum is the gradient of the weight.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gca_kernels.gca.index import GCAIndex, cut_places, gca_index, piece_length
from gca_kernels.gca.triton.blocks import chunk_blocks, pad, query_blocks
from gca_kernels.gca.triton.launch import LOG2_E, RUNTIME, Shape
from gca_kernels.gca.triton.pairs import tile_pairs
from gca_kernels.gca.triton.pieces import load_piece

SUMMED = 4096
"""Elements of one table entry that one program of the last kernel sums."""


@triton.jit
def probabilities(
    q_tile, g_tile, k_tile, v_tile, row_lse, c, scale, C: tl.constexpr, TILE_C: tl.constexpr, LOG2_E: tl.constexpr
):  # fmt: skip
    """-> of each pair the probabilities of the rows `c` of a chunk, a tile of them, and the gradients of those."""
    score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
    p = tl.exp2(score * (scale * LOG2_E) - row_lse[:, None])
    if C % TILE_C:
        p = tl.where((c < C)[None, :], p, 0.0)
    return p, tl.dot(g_tile, tl.trans(v_tile), input_precision="ieee")


@triton.jit
def gradients_in_pieces(
    q_tile, g_tile, k_at, v_at, k_c, v_c, filled, row_lse, weight, total, scale,
    C: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr,
    LOG2_E: tl.constexpr,
):  # fmt: skip
    """One slot whose chunk is longer than a tile: it is walked twice, for delta is a sum over all of it.

    -> delta of each pair, and `total` with the slot's share of the gradient of q.
    """
    row_delta = tl.zeros([TILE], dtype=tl.float32)
    for first in range(0, C, TILE_C):
        c, k_tile, v_tile = load_piece(k_at, v_at, first, k_c, v_c, filled, C, D, TILE_C, TILE_D)
        p, grad_p = probabilities(q_tile, g_tile, k_tile, v_tile, row_lse, c, scale, C, TILE_C, LOG2_E)
        row_delta += tl.sum(p * grad_p, 1)
    for first in range(0, C, TILE_C):
        c, k_tile, v_tile = load_piece(k_at, v_at, first, k_c, v_c, filled, C, D, TILE_C, TILE_D)
        p, grad_p = probabilities(q_tile, g_tile, k_tile, v_tile, row_lse, c, scale, C, TILE_C, LOG2_E)
        grad_score = p * (grad_p - row_delta[:, None]) * weight
        total = tl.dot(grad_score.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    return row_delta, total


@triton.jit(do_not_specialize=RUNTIME)
def query_kernel(
    q, k, v, ids, weights, lse, grad, grad_q, delta, grad_weights,
    q_b, q_r, q_h, k_b, k_n, k_c, k_h, v_b, v_n, v_c, v_h,
    rows, queries, slots, chunks, block, start, packing, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    tiles = packing * 16 // TILE
    query = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(1) // (HEADS // GROUP)).to(tl.int64)
    kv_head = (tl.program_id(1) % (HEADS // GROUP)).to(tl.int64)
    pair, live, row_in_block, head, first_row = tile_pairs(query, tile, kv_head, block, start, rows, GROUP, TILE)
    c = tl.arange(0, TILE_C)
    d = tl.arange(0, TILE_D)
    inside = live[:, None] & (d < D)[None, :]
    in_chunk = (c < C)[:, None] & (d < D)[None, :]

    q_tile = tl.load(
        q + batch * q_b + first_row * q_r + row_in_block * q_r + head * q_h + d[None, :], mask=inside, other=0.0
    )
    out_at = ((batch * rows + first_row) * HEADS + row_in_block * HEADS + head) * D + d[None, :]
    g_tile = tl.load(grad + out_at, mask=inside, other=0.0)
    k_at = k + batch * k_b + kv_head * k_h + c[:, None] * k_c + d[None, :]
    v_at = v + batch * v_b + kv_head * v_h + c[:, None] * v_c + d[None, :]
    slot_at = (batch * queries + query) * slots
    packed_at = ((batch * (HEADS // GROUP) + kv_head) * queries + query) * slots * (packing * 16) + pair
    total = tl.zeros([TILE, TILE_D], dtype=tl.float32)
    for slot in range(slots):
        chunk = tl.load(ids + slot_at + slot).to(tl.int64)
        filled = (chunk >= 0) & (chunk < chunks)
        weight = tl.load(weights + slot_at + slot, mask=filled, other=0.0).to(tl.float32)
        if C <= TILE_C:
            k_tile = tl.load(k_at + chunk * k_n, mask=in_chunk & filled, other=0.0)
            v_tile = tl.load(v_at + chunk * v_n, mask=in_chunk & filled, other=0.0)
            row_lse = tl.load(lse + packed_at + slot * (packing * 16))
            p, grad_p = probabilities(q_tile, g_tile, k_tile, v_tile, row_lse, c, scale, C, TILE_C, LOG2_E)
            row_delta = tl.sum(p * grad_p, 1)
        else:
            row_lse = tl.load(lse + packed_at + slot * (packing * 16))
            row_delta, total = gradients_in_pieces(
                q_tile, g_tile, k_at + chunk * k_n, v_at + chunk * v_n, k_c, v_c, filled, row_lse, weight, total, scale,
                C, D, TILE, TILE_C, TILE_D, LOG2_E,
            )  # fmt: skip
        tl.store(delta + packed_at + slot * (packing * 16), row_delta)
        part = (slot_at + slot) * (HEADS // GROUP) * tiles + kv_head * tiles + tile
        tl.store(grad_weights + part, tl.sum(row_delta, 0))
        if C <= TILE_C:
            grad_score = p * (grad_p - row_delta[:, None]) * weight
            total = tl.dot(grad_score.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    tl.store(grad_q + out_at, (total * scale).to(grad_q.dtype.element_ty), mask=inside)


@triton.jit
def add_product(total, a, b, weight):
    """total + weight * a b, with a in fp32. An fp32 product is summed by itself first, for a long sum loses more."""
    if b.dtype == tl.float32:
        total += tl.dot(a, b, input_precision="ieee") * weight
    else:
        total = tl.dot((a * weight).to(b.dtype), b, total)
    return total


@triton.jit(do_not_specialize=RUNTIME)
def chunk_kernel(
    q, k, v, weights, lse, grad, delta, entries, runs, cuts, grad_k, grad_v, partial,
    q_b, q_r, q_h, k_b, k_n, k_c, k_h, v_b, v_n, v_c, v_h,
    rows, queries, slots, chunks, block, start, packing, scale, tables, length,
    HEADS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, TILE_C: tl.constexpr, TILE_D: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    KV_HEADS: tl.constexpr = HEADS // GROUP
    kv_head = tl.program_id(1).to(tl.int64)
    cut_count = tl.cdiv(queries * slots, length)
    all_cuts = tables // chunks * cut_count
    piece = tl.program_id(0)
    if piece < all_cuts:  # a later piece of a long run
        batch = (piece // cut_count).to(tl.int64)
        chunk = tl.load(cuts + piece).to(tl.int64)
        if chunk < 0:
            return
        begin = piece % cut_count * length
        end = tl.minimum(begin + length, tl.load(runs + (batch * chunks + chunk) * 2 + 1))
        partial_number = piece
    else:  # a whole run, or the first piece of a long one
        batch = ((piece - all_cuts) // chunks).to(tl.int64)
        chunk = ((piece - all_cuts) % chunks).to(tl.int64)
        begin = tl.load(runs + (batch * chunks + chunk) * 2)
        end = tl.load(runs + (batch * chunks + chunk) * 2 + 1)
        partial_number = -1
        if end - begin > length:
            end = (begin // length + 1) * length
            partial_number = all_cuts + (batch * cut_count).to(tl.int32) + begin // length
    c = tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    d = tl.arange(0, TILE_D)
    in_chunk = (c < C)[:, None] & (d < D)[None, :]
    k_at = k + batch * k_b + chunk * k_n + kv_head * k_h + c[:, None] * k_c + d[None, :]
    v_at = v + batch * v_b + chunk * v_n + kv_head * v_h + c[:, None] * v_c + d[None, :]
    k_tile = tl.load(k_at, mask=in_chunk, other=0.0)
    v_tile = tl.load(v_at, mask=in_chunk, other=0.0)

    pairs = block * GROUP
    tiles = tl.cdiv(pairs, TILE)
    q_at = q + batch * q_b + d[None, :]
    g_at = grad + batch * rows * (HEADS * D) + d[None, :]
    packed = (batch * KV_HEADS + kv_head) * queries * slots
    total_k = tl.zeros([TILE_C, TILE_D], dtype=tl.float32)
    total_v = tl.zeros([TILE_C, TILE_D], dtype=tl.float32)
    entries += batch * queries * slots
    weights += batch * queries * slots
    for step in range(begin * tiles, end * tiles):
        entry = tl.load(entries + step // tiles)
        query = entry // slots
        pair, live, row_in_block, head, first_row = tile_pairs(
            query, step % tiles, kv_head, block, start, rows, GROUP, TILE
        )
        inside = live[:, None] & (d < D)[None, :]
        in_use = first_row < rows
        packed_at = (packed + entry) * (packing * 16) + pair
        q_tile = tl.load(q_at + first_row * q_r + (row_in_block * q_r + head * q_h), mask=inside, other=0.0)
        g_tile = tl.load(g_at + (first_row * HEADS + (row_in_block * HEADS + head)) * D, mask=inside, other=0.0)
        row_lse = tl.load(lse + packed_at)
        row_delta = tl.load(delta + packed_at)
        weight = tl.load(weights + entry, mask=in_use, other=0.0).to(tl.float32)
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")
        p = tl.exp2(score * (scale * LOG2_E) - row_lse[None, :])
        total_v = add_product(total_v, p, g_tile, weight)
        grad_p = tl.dot(v_tile, tl.trans(g_tile), input_precision="ieee")
        grad_score = p * (grad_p - row_delta[None, :])
        total_k = add_product(total_k, grad_score, q_tile, weight)

    total_k = total_k * scale
    at = (c[:, None] * KV_HEADS + kv_head) * D + d[None, :]
    if partial_number < 0:
        table_at = (batch * chunks + chunk) * (C * KV_HEADS * D) + at
        tl.store(grad_k + table_at, total_k.to(grad_k.dtype.element_ty), mask=in_chunk)
        tl.store(grad_v + table_at, total_v.to(grad_v.dtype.element_ty), mask=in_chunk)
    else:
        partial_at = partial + partial_number.to(tl.int64) * (2 * C * KV_HEADS * D) + at
        tl.store(partial_at, total_k, mask=in_chunk)
        tl.store(partial_at + C * KV_HEADS * D, total_v, mask=in_chunk)


@triton.jit(do_not_specialize=["places", "chunks", "tables", "length"])
def sum_kernel(
    runs, partial, grad_k, grad_v, places, chunks, tables, length, SIZE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    table = tl.program_id(0).to(tl.int64)
    begin = tl.load(runs + table * 2)
    end = tl.load(runs + table * 2 + 1)
    if end - begin <= length:
        return
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    cut_count = tl.cdiv(places, length)
    first_cut = table // chunks * cut_count
    from_part = partial + (tables // chunks * cut_count + first_cut + begin // length) * (2 * SIZE) + at
    total_k = tl.load(from_part, mask=at < SIZE, other=0.0)
    total_v = tl.load(from_part + SIZE, mask=at < SIZE, other=0.0)
    for cut in range(begin // length + 1, tl.cdiv(end, length)):
        from_part = partial + (first_cut + cut) * (2 * SIZE) + at
        total_k += tl.load(from_part, mask=at < SIZE, other=0.0)
        total_v += tl.load(from_part + SIZE, mask=at < SIZE, other=0.0)
    tl.store(grad_k + table * SIZE + at, total_k.to(grad_k.dtype.element_ty), mask=at < SIZE)
    tl.store(grad_v + table * SIZE + at, total_v.to(grad_v.dtype.element_ty), mask=at < SIZE)


class Plan(NamedTuple):
    """What the sizes of a call decide about its launches: grids, constants and tiles of each kernel.

    parts: sums that the gradient of a weight is made of.
    length: entries of the index that one program takes at most.
    """

    query_grid: tuple[int, int]
    query: dict[str, Any]
    parts: int
    chunk_grid: tuple[int, int, int]
    chunk: dict[str, Any]
    sum_grid: tuple[int, int]
    sum: dict[str, Any]
    length: int


@lru_cache(maxsize=256)
def plan(shape: Shape, itemsize: int) -> Plan:
    sizes = shape.pairs, shape.chunk_rows, shape.head_width, itemsize
    by_query, by_chunk = query_blocks(*sizes), chunk_blocks(*sizes)
    constants = {
        "HEADS": shape.heads, "GROUP": shape.group, "C": shape.chunk_rows, "D": shape.head_width,
        "TILE_D": pad(shape.head_width), "LOG2_E": LOG2_E,
    }  # fmt: skip
    tiles = shape.tiles(by_query.rows)
    tables, cuts = shape.batch * shape.chunks, shape.batch * cut_places(shape.queries, shape.slots, shape.chunks)
    size = shape.chunk_rows * shape.kv_heads * shape.head_width
    return Plan(
        query_grid=(shape.queries * tiles, shape.batch * shape.kv_heads),
        query=constants | by_query.options,
        parts=shape.kv_heads * tiles,
        chunk_grid=(cuts + tables, shape.kv_heads, -(-shape.chunk_rows // by_chunk.chunk_rows)),
        chunk=constants | by_chunk.options,
        sum_grid=(tables, -(-size // SUMMED)),
        sum={"SIZE": size, "TILE": SUMMED, "num_warps": 8},
        length=piece_length(shape.queries, shape.slots, shape.chunks),
    )


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, lse: Tensor, index: GCAIndex | None,
    block: int, start: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> gradients of q, k, v and the weights, each contiguous and in the dtype of what it belongs to.

    grad, ids and weights are contiguous. The index is made here when there is none, once the first kernel is under way.
    """
    shape = Shape.of(q, k, ids, block, start)
    launch = plan(shape, q.element_size())
    sizes = *q.stride()[:3], *k.stride()[:4], *v.stride()[:4], *shape.counts, scale
    grad_q, delta, grad_weights = q.new_empty(q.shape), torch.empty_like(lse), lse.new_empty(*ids.shape, launch.parts)
    query_kernel[launch.query_grid](
        q, k, v, ids, weights, lse, grad, grad_q, delta, grad_weights, *sizes, **launch.query
    )

    index = gca_index(ids, shape.chunks) if index is None else index
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    if shape.chunks:
        tables = shape.batch * shape.chunks
        partial = lse.new_empty(2 * index.cuts.numel(), 2, *k.shape[2:])
        chunk_kernel[launch.chunk_grid](
            q, k, v, weights, lse, grad, delta, *index, grad_k, grad_v, partial, *sizes, tables, launch.length,
            **launch.chunk,
        )  # fmt: skip
        sum_kernel[launch.sum_grid](
            index.runs, partial, grad_k, grad_v, shape.queries * shape.slots, shape.chunks, tables, launch.length,
            **launch.sum,
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_weights.sum(-1).to(weights.dtype)
