"""Chunks that were fetched for a few rows: a table of them, and selections that index it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gca_lit.memory.base import ChunkTable, Selection

Fetched = tuple[ChunkTable, Selection]
"""K/V of chunks, and a selection whose ids index them."""


def fetch(selection: Selection, read: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Fetched:
    """The chunks of one entry [B, 1, K] as a table of K in the order of the slots, any chunk where a slot is empty, and
    the entry renumbered to that table. `read` takes their numbers [B, K]; at least one chunk is kept. Nothing else
    waits for the device."""
    ids = selection.ids[:, 0]
    table = ChunkTable(*(part.contiguous() for part in read(ids.clamp(min=0))))
    slot = torch.arange(ids.shape[1], device=ids.device)
    return table, Selection(torch.where(ids < 0, ids, slot)[:, None], selection.weights)


def both(first: Selection, second: Selection) -> Selection:
    """The entries of one selection [..., Q, K], then those of another, whose type the weights take."""
    weights = first.weights.to(second.weights.dtype)
    return Selection(torch.cat((first.ids, second.ids), -2), torch.cat((weights, second.weights), -2))


def in_one_table(first: Fetched, second: Fetched) -> Fetched:
    """The chunks of both, then the entries of both."""
    (table, slots), (other, later) = first, second
    joined = ChunkTable(torch.cat((table.k, other.k), 1), torch.cat((table.v, other.v), 1))
    ids = torch.where(later.ids < 0, later.ids, later.ids + table.k.shape[1])
    return joined, both(slots, Selection(ids, later.weights))
