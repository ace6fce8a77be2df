"""A retrieval group: it selects chunks once, and its layers read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from gca_lit.attention.base import Dims, Past, RetrievalBackend, View
from gca_lit.memory import ChunkMemory, ChunkTable, Fetched, Selection, both
from gca_lit.model.block import Block, run_blocks
from gca_lit.model.carried import Carried
from gca_lit.model.pasts import Pasts
from gca_lit.model.retrieval import Noise, select, select_one


@dataclass(frozen=True)
class Run:
    """What all groups share in one run over rows.

    view: of the rows, without table and selection; its block and start say which query chunk a row belongs to.
    first_chunk: the chunk that the first entry of a selection serves.
    skip: entries of a selection before the first query chunk of the view, 0 or 1.
    ends: rows of the landmarks.
    landmarks: how many they are, m.
    keys: landmarks of all chunks in consecutive parts [B, n, M'].
    own: K/V of the segment's own chunks.
    memory: of the chunks before the segment, or None.
    documents: see `select`.
    noise: seeds of the selection noise [B], or None.
    """

    view: View
    first_chunk: int
    skip: int
    ends: slice
    landmarks: int
    keys: Sequence[Tensor]
    own: ChunkTable
    memory: ChunkMemory | None
    documents: tuple[Tensor, Tensor] | None
    noise: Tensor | None

    @property
    def selects(self) -> bool:
        """Whether a selection is made here; otherwise what was carried serves all rows."""
        return self.memory is None or self.landmarks > 0


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
        self.retriever, self.slope = attention.retriever(dims), attention.slope()
        self.layers = nn.ModuleList(layers)

    def empty_pasts(self, batch_size: int, like: Tensor) -> tuple[Past, ...]:
        return tuple(cast(Block, layer).mixer.empty_past(batch_size, like) for layer in self.layers)

    def no_selection(self, batch_size: int, like: Tensor) -> Carried:
        """One entry with every slot empty."""
        shape = (batch_size, 1, self.top_k)
        return Carried(Selection(torch.full(shape, -1, device=like.device), like.new_zeros(shape)))

    def forward(
        self, x: Tensor, pasts: Pasts, carried: Carried, run: Run
    ) -> tuple[Tensor, tuple[Past, ...], Selection, Carried]:
        """x [B, R, M] -> (x, new pasts, selection [B, 1 + m, K]: carried, then made at landmarks; what to carry on)."""
        selection, (table, slots) = self._select(x, carried, run)
        served = Selection(slots.ids[:, run.skip :], slots.weights[:, run.skip :])
        view = replace(run.view, table=table, selection=served, index=self.index(table, served))
        x, pasts = run_blocks(self.layers, pasts, x, view, self.recompute)
        if run.selects:
            carried = Carried(Selection(selection.ids[:, -1:], selection.weights[:, -1:]))
        return x, pasts, selection, carried

    def select(self, x: Tensor, chunk: Tensor, held: tuple[Tensor, ...]) -> Selection:
        """What the landmark x [B, 1, M] of chunk number `chunk` [1] selects, of keys in blocks with room: a function of
        shapes alone."""
        return select_one(self.retriever(x), held, chunk, self.top_k, self.slope)

    def row(self, x: Tensor, view: View, pasts: Pasts, fetched: Fetched) -> tuple[Tensor, tuple[Past, ...]]:
        """A few rows x [B, R, M] -> (x, new pasts); a function of shapes alone.

        view: of the rows, without table and selection.
        fetched: the entries of its selection serve as many rows each.
        """
        table, slots = fetched
        rows = x.shape[1] // slots.ids.shape[1]
        view = replace(view, table=table, selection=slots, block=rows, index=self.index(table, slots))
        return run_blocks(self.layers, pasts, x, view, False)

    def _select(self, x: Tensor, carried: Carried, run: Run) -> tuple[Selection, Fetched]:
        """The selection of these rows, and what it selects; what was fetched for a row serves all rows of its chunk."""
        if not run.selects:
            assert run.memory is not None
            none = ChunkTable(run.own.k[:, :0], run.own.v[:, :0])
            return carried.selection, carried.fetched or run.memory.table(carried.selection, none)
        noise = None if run.noise is None else Noise(run.noise, self.number)
        queries = self.retriever(x[:, run.ends])
        made = select(queries, run.keys, run.first_chunk, self.top_k, noise, run.documents, self.slope)
        selection = both(carried.selection, made)
        return selection, (run.own, selection) if run.memory is None else run.memory.table(selection, run.own)
