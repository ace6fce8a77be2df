"""Decoding: a step of one token as functions of tensors whose shapes stay the same, each replayed as one CUDA graph.

Rows run alone here. The landmark of a chunk goes through the lower layers behind the chunk's last token, in the same
step, and through the upper ones before the next token, as in any other segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gca_lit.attention.base import Past
from gca_lit.memory import Selection, fetch
from gca_lit.model.block import run_blocks, view_at
from gca_lit.model.chunks import EncodedChunks, Layout
from gca_lit.model.group import Carried, Fetched, Group
from gca_lit.model.replay import Replayed
from gca_lit.model.state import ModelState, behind
from gca_lit.model.upper import UpperHalf

if TYPE_CHECKING:
    from gca_lit.model.decoder import Decoder

Pasts = tuple[Past, ...]


class Decoding:
    """One token at a time.

    Args:
        decoder: whose layers run; it is looked at in every step.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._text, self._landmark = Replayed(self.text_row, decoder), Replayed(self.landmark_row, decoder)
        self._selecting = Replayed(self.selecting_row, decoder)

    def takes(self, layout: Layout, wanted: tuple[int, int], state: ModelState) -> bool:
        """Whether a segment is one token that is read, and nothing waits for the upper layers but a landmark."""
        waiting = state.deferred.shape[1]
        ready = waiting == 0 or (waiting == 1 and layout.begins_chunk)
        return layout.tokens == 1 and wanted == (0, 1) and ready and not torch.is_grad_enabled()

    def step(
        self, tokens: Tensor, state: ModelState, layout: Layout
    ) -> tuple[Tensor, tuple[Selection, ...], int, ModelState]:
        """tokens [B, 1] -> as `UpperHalf.forward`, the hidden states normed."""
        row, first_row = torch.full((1,), layout.first_row, device=tokens.device), layout.first_row
        selections = tuple(one.selection for one in state.carried)
        if state.deferred.shape[1]:
            state = self._select(state, row - 1, layout.block)
            made = tuple(one.selection for one in state.carried)
            selections, first_row = tuple(map(_both, selections, made)), first_row - 1
        elif state.carried:
            state = replace(state, carried=self._fetched(state))
        fetched = tuple(one.fetched for one in state.carried)
        hidden, x, lower, upper = self._text(tokens, row, state.lower, state.upper, fetched)
        pending = behind(state.pending, x) if state.carried else state.pending
        state = replace(state, position=state.position + 1, lower=lower, upper=upper, pending=pending)
        if layout.chunks:
            state = self._complete(state, row + 1)
        return hidden, selections, first_row // layout.block, state

    def text_row(
        self, tokens: Tensor, row: Tensor, lower: Pasts, upper: Pasts, fetched: tuple[Fetched, ...]
    ) -> tuple[Tensor, Tensor, Pasts, Pasts]:
        """tokens [B, 1], row number [1], pasts and the chunks that serve each group -> hidden states normed and of the
        lower layers [B, 1, M], new pasts."""
        decoder = self.decoder
        x = decoder.embed(tokens)
        view = view_at(row, x, decoder.config)
        below, lower = run_blocks(decoder.lower, lower, x, view, False)
        if isinstance(decoder.upper, UpperHalf):
            x, done = below, []
            for group, pasts, chunks in zip(decoder.upper.groups, upper, fetched, strict=True):
                x, pasts = cast(Group, group).row(x, view, pasts, chunks)
                done.append(pasts)
            upper = tuple(done)
        else:
            x, upper = run_blocks(decoder.upper.blocks, upper, below, view, False)
        return decoder.norm(x), below, lower, upper

    def landmark_row(self, row: Tensor, lower: Pasts, pending: Tensor) -> tuple[Tensor, Pasts, EncodedChunks]:
        """Row number [1], pasts and the chunk's other rows [B, C, M] -> lower hidden states of the landmark [B, 1, M],
        new pasts, what becomes of the chunk."""
        decoder, upper = self.decoder, cast(UpperHalf, self.decoder.upper)
        assert decoder.landmark is not None
        x = decoder.landmark.expand(len(pending), 1, -1).to(pending.dtype)
        x, lower = run_blocks(decoder.lower, lower, x, view_at(row, x, decoder.config), False)
        block = torch.cat((pending, x), 1)[:, None]
        return x, lower, upper.encoder(block, upper.encoder.rotation(block))

    def selecting_row(
        self,
        x: Tensor,
        row: Tensor,
        chunk: Tensor,
        upper: Pasts,
        before: tuple[Fetched, ...],
        held: tuple[tuple[Tensor, ...], Callable[[Tensor], tuple[Tensor, Tensor]]],
    ) -> tuple[Pasts, tuple[Carried, ...]]:
        """A landmark x [B, 1, M], its row number and chunk number [1], and pasts through the groups: each makes the
        selection of the rows behind it -> new pasts, the selections with their chunks.

        before: the chunks that serve the landmark's own row; () where its own selection does.
        held: landmarks in blocks with room (see `ChunkMemory.blocks`), and what reads chunks.
        """
        keys, read = held
        view, done, carried = view_at(row, x, self.decoder.config), [], []
        for number, part in enumerate(cast(UpperHalf, self.decoder.upper).groups):
            group = cast(Group, part)
            made = group.select(x, chunk, keys)
            after = fetch(made, read)
            x, pasts = group.row(x, view, upper[number], before[number] if before else after)
            done.append(pasts)
            carried.append(Carried(made, after))
        return tuple(done), tuple(carried)

    def _complete(self, state: ModelState, row: Tensor) -> ModelState:
        """The chunk goes to memory, and its landmark waits for the next token."""
        assert state.memory is not None
        x, lower, made = self._landmark(row, state.lower, state.pending)
        state.memory.append(made.landmarks, made.table)
        return replace(state, lower=lower, pending=state.pending[:, :0].clone(), deferred=x)

    def _select(self, state: ModelState, row: Tensor, block: int) -> ModelState:
        """The landmark at `row` that waits goes through the groups."""
        upper, memory, x = cast(UpperHalf, self.decoder.upper), state.memory, state.deferred
        assert memory is not None
        before = () if upper.shift else tuple(cast(Fetched, one.fetched) for one in self._fetched(state))
        reader, inputs = memory.store.reader(), (x, row, row // block, state.upper, before)
        if reader is None:
            pasts, carried = self.selecting_row(*inputs, (memory.blocks(), memory.store.read))
        else:
            pasts, carried = memory.store.ordered(lambda: self._selecting(*inputs, held=(memory.blocks(), reader)))
        return replace(state, upper=pasts, carried=carried, deferred=x[:, :0].clone())

    def _fetched(self, state: ModelState) -> tuple[Carried, ...]:
        """What serves the next row of each group, with its chunks."""
        upper, memory = cast(UpperHalf, self.decoder.upper), state.memory
        assert memory is not None

        def with_chunks(one: Carried) -> Carried:
            if one.fetched:
                return one
            if memory.count:
                return Carried(one.selection, fetch(one.selection, memory.store.read))
            return Carried(one.selection, (upper.blank(state.pending, one.selection.ids.shape[2]), one.selection))

        return tuple(map(with_chunks, state.carried))


def _both(before: Selection, made: Selection) -> Selection:
    return Selection(
        torch.cat((before.ids, made.ids), 1), torch.cat((before.weights.to(made.weights.dtype), made.weights), 1)
    )
