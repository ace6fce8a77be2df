"""Decoding: a step of one token as functions of tensors whose shapes stay the same, each replayed as one CUDA graph.

Rows run alone here. The landmark of a chunk goes through the lower layers behind the chunk's last token, in the same
step, and through the upper ones before the next token, as in any other segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from gca_lit.attention.base import Past
from gca_lit.memory import Selection, fetch
from gca_lit.model.block import run_blocks, view_at
from gca_lit.model.chunks import EncodedChunks, Layout
from gca_lit.model.group import Carried, Fetched
from gca_lit.model.pasts import Pasts, stacked
from gca_lit.model.replay import Replayed
from gca_lit.model.state import ModelState
from gca_lit.model.upper import UpperHalf

if TYPE_CHECKING:
    from gca_lit.model.decoder import Decoder


class Decoded(NamedTuple):
    """What a step of one token gives: see `decoder.Step`, and logits [B, 1, V]."""

    hidden: Tensor
    logits: Tensor
    selections: tuple[Selection, ...]
    first_chunk: int
    state: ModelState


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

    def step(self, tokens: Tensor, state: ModelState, layout: Layout) -> Decoded:
        """tokens [B, 1]; `layout` is theirs."""
        row, first_row = torch.full((1,), layout.first_row, device=tokens.device), layout.first_row
        selections = tuple(one.selection for one in state.carried)
        if state.deferred.shape[1]:
            state = self._select(state, row - 1, layout.block)
            made = tuple(one.selection for one in state.carried)
            selections, first_row = tuple(map(_both, selections, made)), first_row - 1
        else:
            state = replace(state, carried=self._fetched(state))
        (hidden, logits), below, lower, upper = self._text((tokens, row), (state.lower, state.upper), state.carried)
        state = replace(state, position=state.position + 1, lower=lower, upper=upper, pending=(*state.pending, *below))
        if layout.chunks:
            state = self._complete(state, row + 1)
        return Decoded(hidden, logits, selections, first_row // layout.block, state)

    def text_row(
        self, text: tuple[Tensor, Tensor], pasts: tuple[Pasts, Pasts], carried: tuple[Carried, ...]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], Pasts, Pasts]:
        """Tokens [B, 1] and row number [1], pasts of the lower and the upper layers, what serves each group -> hidden
        states normed [B, 1, M] and logits [B, 1, V], those of the lower layers for a chunk encoder, new pasts."""
        (tokens, row), decoder = text, self.decoder
        x = decoder.embed(tokens)
        view = view_at(row, x, decoder.config)
        x, lower = run_blocks(decoder.lower, pasts[0], x, view, False)
        below = (x,) if carried else ()
        if isinstance(decoder.upper, UpperHalf):
            upper = tuple[Past, ...]()
            for group, past, served in zip(*decoder.upper.by_group(pasts[1]), carried, strict=True):
                x, new = group.row(x, view, past, cast(Fetched, served.fetched))
                upper += new
        else:
            x, upper = run_blocks(decoder.upper.blocks, pasts[1], x, view, False)
        hidden = decoder.norm(x)
        return (hidden, decoder.logits(hidden)), below, stacked(lower, pasts[0]), stacked(upper, pasts[1])

    def landmark_row(self, row: Tensor, lower: Pasts, pending: Tensor) -> tuple[Tensor, Pasts, EncodedChunks]:
        """Row number [1], pasts and the chunk's other rows [B, C, M] -> lower hidden states of the landmark [B, 1, M],
        new pasts, what becomes of the chunk."""
        decoder, upper = self.decoder, cast(UpperHalf, self.decoder.upper)
        assert decoder.landmark is not None
        x = decoder.landmark.expand(len(pending), 1, -1).to(pending.dtype)
        x, new = run_blocks(decoder.lower, lower, x, view_at(row, x, decoder.config), False)
        block = torch.cat((pending, x), 1)[:, None]
        return x, stacked(new, lower), upper.encoder(block, upper.encoder.rotation(block))

    def selecting_row(
        self,
        x: Tensor,
        row: Tensor,
        chunk: Tensor,
        pasts: Pasts,
        before: tuple[Carried, ...],
        held: tuple[tuple[Tensor, ...], Callable[[Tensor], tuple[Tensor, Tensor]]],
    ) -> tuple[Pasts, tuple[Carried, ...]]:
        """A landmark x [B, 1, M], its row number and chunk number [1], and pasts through the groups: each makes the
        selection of the rows behind it -> new pasts of all their layers, the selections with their chunks.

        before: what serves the landmark's own row; () where its own selection does.
        held: landmarks in blocks with room (see `ChunkMemory.blocks`), and what reads chunks.
        """
        keys, read = held
        view, carried, upper = view_at(row, x, self.decoder.config), list[Carried](), tuple[Past, ...]()
        for number, (group, past) in enumerate(zip(*cast(UpperHalf, self.decoder.upper).by_group(pasts), strict=True)):
            made = group.select(x, chunk, keys)
            after = fetch(made, read)
            served = cast(Fetched, before[number].fetched) if before else after
            x, new = group.row(x, view, past, served)
            upper += new
            carried.append(Carried(made, after))
        return stacked(upper, pasts), tuple(carried)

    def _complete(self, state: ModelState, row: Tensor) -> ModelState:
        """The chunk goes to memory, and its landmark waits for the next token."""
        assert state.memory is not None
        x, lower, made = self._landmark(row, state.lower, torch.cat(state.pending, 1))
        state.memory.append(made.landmarks, made.table)
        return replace(state, lower=lower, pending=(), deferred=x)

    def _select(self, state: ModelState, row: Tensor, block: int) -> ModelState:
        """The landmark at `row` that waits goes through the groups."""
        upper, memory, x = cast(UpperHalf, self.decoder.upper), state.memory, state.deferred
        assert memory is not None
        before = () if upper.shift else self._fetched(state)
        reader, inputs = memory.store.reader(), (x, row, row // block, state.upper, before)
        if reader is None:
            pasts, carried = self.selecting_row(*inputs, (memory.blocks(), memory.store.read))
        else:
            pasts, carried = memory.store.ordered(lambda: self._selecting(*inputs, held=(memory.blocks(), reader)))
        return replace(state, upper=pasts, carried=carried, deferred=x[:, :0].clone())

    def _fetched(self, state: ModelState) -> tuple[Carried, ...]:
        """What serves the next row of each group, with its chunks."""
        if all(one.fetched for one in state.carried):
            return state.carried
        upper, memory = cast(UpperHalf, self.decoder.upper), state.memory
        assert memory is not None

        def with_chunks(one: Carried) -> Carried:
            if one.fetched:
                return one
            if memory.count:
                return Carried(one.selection, fetch(one.selection, memory.store.read))
            return Carried(one.selection, (upper.blank(state.deferred, one.selection.ids.shape[2]), one.selection))

        return tuple(map(with_chunks, state.carried))


def _both(before: Selection, made: Selection) -> Selection:
    return Selection(
        torch.cat((before.ids, made.ids), 1), torch.cat((before.weights.to(made.weights.dtype), made.weights), 1)
    )
