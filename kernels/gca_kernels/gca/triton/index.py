"""The inverse index in one launch: one program per chunk counts and places the slots that chose it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gca_kernels.gca.index import GCAIndex, cut_places, piece_length


@triton.jit(do_not_specialize=["places", "chunks", "length", "cut_count"])
def index_kernel(ids, entries, runs, cuts, places, chunks, length, cut_count, TILE: tl.constexpr):
    """Program (c, b); the one behind the last chunk takes the empty slots."""
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    ids += batch * places
    entries += batch * places
    before = tl.zeros([TILE], dtype=tl.int32)
    mine = tl.zeros([TILE], dtype=tl.int32)
    for at in range(0, places, TILE):
        place = at + tl.arange(0, TILE)
        chosen = tl.load(ids + place, mask=place < places, other=-1)
        chosen = tl.where((chosen < 0) | (chosen >= chunks), chunks, chosen)
        before += (chosen < chunk).to(tl.int32)
        mine += ((chosen == chunk) & (place < places)).to(tl.int32)
    begin = tl.sum(before)
    end = begin + tl.sum(mine)

    found = begin
    for at in range(0, places, TILE):
        place = at + tl.arange(0, TILE)
        chosen = tl.load(ids + place, mask=place < places, other=-1)
        chosen = tl.where((chosen < 0) | (chosen >= chunks), chunks, chosen)
        match = (chosen == chunk) & (place < places)
        rank = tl.cumsum(match.to(tl.int32), 0)
        tl.store(entries + found + rank - 1, place, mask=match)
        found += tl.sum(match.to(tl.int32))

    if chunk < chunks:
        tl.store(runs + (batch * chunks + chunk) * 2, begin)
        tl.store(runs + (batch * chunks + chunk) * 2 + 1, end)
    for cut in range(tl.cdiv(begin, length), tl.cdiv(end, length)):
        inside = (cut * length > begin) & (end - begin > length) & (chunk < chunks)
        tl.store(cuts + batch * cut_count + cut, tl.where(inside, chunk, -1))


def gca_index(chunk_ids: Tensor, chunks: int) -> GCAIndex:
    """See `gca_kernels.gca.index.gca_index`."""
    B, Q, K = chunk_ids.shape
    count = cut_places(Q, K, chunks)
    entries = chunk_ids.new_empty((B, Q, K), dtype=torch.int32)
    runs = chunk_ids.new_empty((B, chunks, 2), dtype=torch.int32)
    cuts = chunk_ids.new_empty((B, count), dtype=torch.int32)
    tile = min(1024, triton.next_power_of_2(max(Q * K, 1)))
    index_kernel[(chunks + 1, B)](
        chunk_ids.contiguous(), entries, runs, cuts, Q * K, chunks, piece_length(Q, K, chunks), count, TILE=tile
    )
    return GCAIndex(entries, runs, cuts)
