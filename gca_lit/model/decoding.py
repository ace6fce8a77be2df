"""Decoding: a step of one token as functions of tensors whose shapes stay the same, each replayed as one CUDA graph.

Rows run alone here. The landmark of a chunk goes through the lower layers behind the chunk's last token, in the same
step, and through the upper ones before the next token, as in any other segment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gca_lit.attention.base import Past
from gca_lit.memory import Selection
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
        groups = cast(tuple[Group, ...], decoder.upper.groups if isinstance(decoder.upper, UpperHalf) else ())
        self._rows = tuple(Replayed(group.row, group) for group in groups)
        self._selects = tuple(Replayed(group.select, group) for group in groups)

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
                x, pasts = cast(Group, group).seen_row(x, view, pasts, chunks)
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

    def _complete(self, state: ModelState, row: Tensor) -> ModelState:
        """The chunk goes to memory, and its landmark waits for the next token."""
        assert state.memory is not None
        x, lower, made = self._landmark(row, state.lower, state.pending)
        state.memory.append(made.landmarks, made.table)
        return replace(state, lower=lower, pending=state.pending[:, :0].clone(), deferred=x)

    def _select(self, state: ModelState, row: Tensor, block: int) -> ModelState:
        """The landmark at `row` that waits, through the groups: each makes the selection of the rows behind it."""
        upper, memory = cast(UpperHalf, self.decoder.upper), state.memory
        assert memory is not None
        x, done, carried, chunk = state.deferred, [], [], row // block
        serving = state.carried if upper.shift else self._fetched(state)
        parts = zip(self._selects, self._rows, state.upper, serving, strict=True)
        for select, run, pasts, before in parts:
            made = select(x, chunk, held=memory.blocks())
            after = Carried(made, memory.fetch(made))
            x, pasts = run(x, row, pasts, (after if upper.shift else before).fetched)
            done.append(pasts)
            carried.append(after)
        return replace(state, upper=tuple(done), carried=tuple(carried), deferred=x[:, :0].clone())

    def _fetched(self, state: ModelState) -> tuple[Carried, ...]:
        """What serves the next row of each group, with its chunks."""
        upper, memory = cast(UpperHalf, self.decoder.upper), state.memory
        assert memory is not None

        def with_chunks(one: Carried) -> Carried:
            if one.fetched:
                return one
            if memory.count:
                return Carried(one.selection, memory.fetch(one.selection))
            return Carried(one.selection, (upper.blank(state.pending, one.selection.ids.shape[2]), one.selection))

        return tuple(map(with_chunks, state.carried))


def _both(before: Selection, made: Selection) -> Selection:
    return Selection(
        torch.cat((before.ids, made.ids), 1), torch.cat((before.weights.to(made.weights.dtype), made.weights), 1)
    )
