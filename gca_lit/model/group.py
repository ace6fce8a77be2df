"""A retrieval group: it selects chunks once, and its layers read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from gca_lit.attention.base import Dims, Past, RetrievalBackend, View
from gca_lit.memory import ChunkMemory, ChunkTable, Selection
from gca_lit.model.block import Block, run_blocks
from gca_lit.model.retrieval import Noise, select


@dataclass(frozen=True)
class Run:
    """What all groups share in one run over rows.

    view: of the rows, without table and selection; its block and start say which query chunk a row belongs to.
    first_chunk: the chunk that the first entry of a selection serves.
    skip: entries of a selection before the first query chunk of the view, 0 or 1.
    ends: rows of the landmarks, int64 [m].
    keys: landmarks of all chunks in consecutive parts [B, n, M'].
    own: K/V of the segment's own chunks.
    memory: of the chunks before the segment, or None.
    documents: see `select`.
    noise: seeds of the selection noise [B], or None.
    """

    view: View
    first_chunk: int
    skip: int
    ends: Tensor
    keys: Sequence[Tensor]
    own: ChunkTable
    memory: ChunkMemory | None
    documents: tuple[Tensor, Tensor] | None
    noise: Tensor | None


class Group(nn.Module):
    """A retriever and the layers that read what it selects.

    Args:
        number: of the group, from 0.
        attention: the backend, which makes the retriever.
        dims: widths.
        layers: from bottom to top.
        recompute: gradient checkpointing of the layers.
    """

    def __init__(
        self, number: int, attention: RetrievalBackend, dims: Dims, layers: list[Block], recompute: bool
    ) -> None:
        super().__init__()
        self.number, self.top_k, self.recompute = number, attention.top_k, recompute
        self.index = attention.index
        self.retriever = attention.retriever(dims)
        self.layers = nn.ModuleList(layers)

    def empty_pasts(self, batch_size: int, like: Tensor) -> tuple[Past, ...]:
        return tuple(cast(Block, layer).mixer.empty_past(batch_size, like) for layer in self.layers)

    def no_selection(self, batch_size: int, like: Tensor) -> Selection:
        """One entry with every slot empty."""
        shape = (batch_size, 1, self.top_k)
        return Selection(torch.full(shape, -1, device=like.device), like.new_zeros(shape))

    def forward(
        self, x: Tensor, pasts: tuple[Past, ...], carried: Selection, run: Run
    ) -> tuple[Tensor, tuple[Past, ...], Selection]:
        """x [B, R, M] -> (x, new pasts, the selection [B, 1 + m, K]: carried, then made at landmarks)."""
        noise = None if run.noise is None else Noise(run.noise, self.number)
        queries = self.retriever(x[:, run.ends])
        made = select(queries, run.keys, run.first_chunk, self.top_k, noise, run.documents)
        selection = Selection(
            torch.cat((carried.ids, made.ids), 1),
            torch.cat((carried.weights.to(made.weights.dtype), made.weights), 1),
        )
        table, slots = (run.own, selection) if run.memory is None else run.memory.table(selection, run.own)
        slots = Selection(slots.ids[:, run.skip :], slots.weights[:, run.skip :])
        view = replace(run.view, table=table, selection=slots, index=self.index(table, slots))
        x, pasts = run_blocks(self.layers, pasts, x, view, self.recompute)
        return x, pasts, selection
