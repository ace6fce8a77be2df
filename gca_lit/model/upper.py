"""The upper half of a retrieval decoder: encode chunks; per group, select chunks and run the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from gca_lit.attention.base import Dims, LayerPlan, Past, RetrievalBackend, View
from gca_lit.memory import ChunkMemory, ChunkTable, Selection
from gca_lit.model.block import Block, row_view
from gca_lit.model.carried import Carried, together
from gca_lit.model.chunks import ChunkEncoder, EncodedChunks, Layout
from gca_lit.model.group import Group, Run
from gca_lit.model.pasts import Pasts, divided
from gca_lit.model.span import Span, plan_span
from gca_lit.model.state import ModelState, behind


@dataclass(frozen=True)
class Documents:
    """Document numbers of a whole input: of each text token [B, T] and of each row [B, R]."""

    tokens: Tensor
    rows: Tensor


class UpperHalf(nn.Module):
    """Chunk encoder, retrievers and the layers of the retrieval groups.

    Args:
        dims: widths.
        attention: the backend.
        blocks: the upper layers, from bottom to top.
        plan: their plans.
        encoder: of chunks.
        recompute: gradient checkpointing of the layers.
    """

    def __init__(
        self,
        dims: Dims,
        attention: RetrievalBackend,
        blocks: list[Block],
        plan: tuple[LayerPlan, ...],
        encoder: ChunkEncoder,
        recompute: bool,
    ) -> None:
        super().__init__()
        numbers = sorted({p.group for p in plan if p.group is not None})
        self.dims, self.noisy = dims, attention.noise == "gumbel"
        self.shift = int(attention.landmark_reads == "own")
        self.encoder, self.chunk_size = encoder, attention.chunk_size
        self.groups = nn.ModuleList()
        for number in numbers:
            layers = [block for block, p in zip(blocks, plan, strict=True) if p.group == number]
            self.groups.append(Group(number, attention, dims, layers, recompute))
        block = attention.chunk_size + 1
        self.reach = sum(p.window or 0 for p in plan) + 2 * len(numbers) * block
        """Rows to run before a row that is read: the windows, and two blocks a group."""

    def empty_pasts(self, batch_size: int, like: Tensor) -> tuple[Past, ...]:
        """Of each layer, at the start of an input."""
        return tuple(past for group in self.groups for past in cast(Group, group).empty_pasts(batch_size, like))

    def by_group(self, pasts: Pasts) -> tuple[list[Group], tuple[Pasts, ...]]:
        """The groups, and the pasts of each one's layers."""
        groups = [cast(Group, group) for group in self.groups]
        return groups, divided(pasts, [len(group.layers) for group in groups])

    def no_selections(self, batch_size: int, like: Tensor) -> Carried:
        """Of all groups, one entry with every slot empty."""
        return together([cast(Group, group).no_selection(batch_size, like) for group in self.groups])

    def blank(self, x: Tensor, chunks: int) -> ChunkTable:
        """A table of `chunks` that nobody selects, like those that become of x [B, R, M]."""
        none = self.encoder.nothing(x, self.chunk_size).table
        return ChunkTable(*(part.new_zeros(len(part), chunks, *part.shape[2:]) for part in none))

    def forward(
        self,
        x: Tensor,
        pasts: Pasts,
        layout: Layout,
        state: ModelState,
        wanted: tuple[int, int],
        view: View,
        documents: Documents | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Pasts, tuple[Selection, ...], int, ModelState]:
        """Run on the rows that are read, and keep what later segments need.

        Args:
            x: lower hidden states of the segment's rows, [B, R, M].
            pasts: of these layers.
            layout: of the segment.
            state: what the segments before left.
            wanted: [first, last) text tokens of the segment that are read.
            view: of the segment's rows.
            documents: of a whole input, or None.
            noise: int64 [B], seeds of the selection noise, or None.

        Returns:
            hidden states of the wanted tokens [B, n, M], new pasts, the selections of each group, the chunk that their
            first entry serves, the new state.
        """
        own, pending = self._encode(x, layout, state.pending)
        at_hand = behind([state.deferred], x)
        span = plan_span(layout, state.deferred.shape[1], wanted, self.reach)
        rows = at_hand[:, span.begin : span.stop]
        carried = state.carried
        if span.begin > 0:
            pasts, carried = self.empty_pasts(len(x), x), self.no_selections(len(x), x)
        selections: tuple[Selection, ...] = ()
        if span.stop > span.begin:
            if not span.is_all_of(layout):
                view = row_view(span.first_row, rows, self.dims, None)
            run = self._run(view, span, layout, own, state.memory, documents, noise)
            done = []
            for group, past, served in zip(*self.by_group(pasts), cast(Carried, carried).by_group(), strict=True):
                rows, *after = group(rows, past, served, run)
                done.append(after)
            new, selections, after = zip(*done, strict=True)
            pasts, carried = tuple(chain.from_iterable(new)), together(after) if run.selects else carried
        if state.memory is not None:
            state.memory.append(own.landmarks, own.table)
        state = replace(state, pending=pending, deferred=at_hand[:, span.stop :].clone(), carried=carried)
        text = layout.text_of(rows, span.first_row, wanted)
        return text, pasts, selections, span.first_row // layout.block, state

    def _encode(
        self, x: Tensor, layout: Layout, pending: tuple[Tensor, ...]
    ) -> tuple[EncodedChunks, tuple[Tensor, ...]]:
        rows = behind(pending, x)
        whole = layout.chunks * layout.block
        if whole == 0 and not torch.is_grad_enabled():
            return self.encoder.nothing(x, layout.block - 1), (rows,)
        blocks = rows[:, :whole].unflatten(1, (layout.chunks, layout.block))
        return self.encoder(blocks, self.encoder.rotation(blocks)), (rows[:, whole:].clone(),)

    def _run(
        self,
        view: View,
        span: Span,
        layout: Layout,
        own: EncodedChunks,
        memory: ChunkMemory | None,
        documents: Documents | None,
        noise: Tensor | None,
    ) -> Run:
        """What the groups share over the rows of `span`, whose view is given."""
        S = layout.block
        chunk = span.first_row // S
        ends = slice((chunk + 1) * S - 1 - span.first_row, None, S)
        shifted = span.first_row + self.shift
        view = replace(view, block=S, start=shifted % S)
        visible = None
        if documents is not None:
            of_rows = documents.rows[:, span.begin : span.stop]
            visible = of_rows[:, ends], documents.tokens[:, :: S - 1][:, : layout.chunks]
            view = replace(view, documents=of_rows, served=self._served(of_rows, visible[0], span, S))
        old = [] if memory is None else memory.landmarks()
        return Run(
            view=view,
            first_chunk=chunk,
            skip=shifted // S - chunk,
            ends=ends,
            landmarks=span.last_row // S - chunk,
            keys=[*old, own.landmarks],
            own=own.table,
            memory=memory,
            documents=visible,
            noise=noise if self.noisy else None,
        )

    def _served(self, row_documents: Tensor, at_landmark: Tensor, span: Span, S: int) -> Tensor:
        """Whether each row is of the document of the landmark that made its selection, [B, R']."""
        chunk = span.first_row // S
        row = torch.arange(span.first_row, span.last_row, device=row_documents.device)
        entry = (row + self.shift) // S - chunk
        none = torch.full_like(row_documents[:, :1], -1)
        return torch.cat((none, at_landmark), 1)[:, entry] == row_documents
