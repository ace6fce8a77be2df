"""The inverse index of a selection: which slots chose each chunk, in pieces of bounded length.

The gradient of a chunk's K and V gathers from every slot that chose it. With the slots sorted by chunk, one program
owns one chunk, or one piece of a very popular one, so nothing is added atomically and two runs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST_PIECE = 16
PIECE_OVER_MEAN = 8


class GCAIndex(NamedTuple):
    """Which slots chose each chunk; made by `gca_index`, shared by all layers that read one selection.

    A chunk's run is the part of `entries` that chose it. A run longer than `piece_length` is cut at the multiples of
    that length that lie inside it.

    entries: of each batch row the places in its flattened [Q, K] ids, sorted by chunk, empty slots last,
        int32 [B, Q, K].
    runs: begin and end of each chunk's run, int32 [B, N, 2].
    cuts: int32 [B, M], the chunk whose run is cut at m * piece_length, or -1.
    """

    entries: Tensor
    runs: Tensor
    cuts: Tensor


def piece_length(queries: int, slots: int, chunks: int) -> int:
    """Entries that one program takes at most: eight times the mean run, for ids [B, queries, slots]."""
    return max(SHORTEST_PIECE, PIECE_OVER_MEAN * queries * slots // max(chunks, 1))


def cut_places(queries: int, slots: int, chunks: int) -> int:
    """Places where a run can be cut, M."""
    return -(-queries * slots // piece_length(queries, slots, chunks))


def gca_index(chunk_ids: Tensor, chunks: int) -> GCAIndex:
    """Sort the slots by the chunk that they chose. Nothing waits for the device.

    Args:
        chunk_ids: int [B, Q, K], -1 in empty slots.
        chunks: entries of the chunk table, N.

    Raises:
        ValueError: chunk_ids are not as described, or chunks is negative.
    """
    if chunk_ids.ndim != 3 or chunk_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"chunk_ids must be int64 or int32 [B, Q, K], got {chunk_ids.dtype} {tuple(chunk_ids.shape)}")
    if chunks < 0:
        raise ValueError(f"chunks must not be negative, got {chunks}")
    if chunk_ids.is_cuda:
        from gca_kernels.gca.triton.index import gca_index as on_device

        return on_device(chunk_ids, chunks)
    _, Q, K = chunk_ids.shape
    filled = (chunk_ids >= 0) & (chunk_ids < chunks)
    chosen, entries = torch.where(filled, chunk_ids, chunks).flatten(1).long().sort(stable=True)
    first = torch.searchsorted(chosen, torch.arange(chunks + 1).repeat(len(chosen), 1))
    runs = torch.stack((first[:, :-1], first[:, 1:]), -1)

    length = piece_length(Q, K, chunks)
    place = torch.arange(cut_places(Q, K, chunks)) * length
    chunk = chosen[:, place]
    bounds = torch.cat((first, first[:, -1:]), 1)  # the empty slots read as a run of no length
    begin, end = bounds.gather(1, chunk), bounds.gather(1, chunk + 1)
    cut = (begin < place) & (end - begin > length)
    return GCAIndex(entries.int().view_as(chunk_ids), runs.int(), torch.where(cut, chunk, -1).int())
