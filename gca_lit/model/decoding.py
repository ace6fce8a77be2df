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

from gca_lit.memory import Selection, fetch
from gca_lit.model.block import run_blocks, view_at
from gca_lit.model.chunks import EncodedChunks, Layout
from gca_lit.model.group import Carried, Fetched
from gca_lit.model.pasts import Pasts, separate, stacked
from gca_lit.model.replay import Replayed
from gca_lit.model.state import ModelState, Step
from gca_lit.model.upper import UpperHalf

if TYPE_CHECKING:
    from gca_lit.model.decoder import Decoder


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

    def step(self, tokens: Tensor, state: ModelState, layout: Layout) -> Step:
        """tokens [B, 1]; `layout` is theirs."""
        row, first_row = torch.full((1,), layout.first_row, device=tokens.device), layout.first_row
        selections = tuple(one.selection for one in state.carried)
        if state.deferred.shape[1]:
            state = self._select(state, row - 1, layout.block)
            made = tuple(one.selection for one in state.carried)
            selections, first_row = tuple(map(_both, selections, made)), first_row - 1
        carried = self._fetched(state)
        pasts, (hidden, logits), below = self._text(state.pasts, (tokens, row), carried)
        pending = (*state.pending, *below)
        state = replace(state, position=state.position + 1, pasts=pasts, pending=pending, carried=carried)
        if layout.chunks:
            state = self._complete(state, row + 1)
        return Step(hidden, selections, first_row // layout.block, state, logits)

    def text_row(
        self, pasts: Pasts, text: tuple[Tensor, Tensor], carried: tuple[Carried, ...]
    ) -> tuple[Pasts, tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """Pasts, tokens [B, 1] and row number [1], what serves each group -> new pasts, hidden states normed [B, 1, M]
        and logits [B, 1, V], those of the lower layers for a chunk encoder."""
        decoder, (tokens, row) = self.decoder, text
        lower, upper = decoder.halves(pasts)
        x = decoder.embed(tokens)
        view = view_at(row, x, decoder.config)
        x, new = run_blocks(decoder.lower, lower, x, view, False)
        below = (x,) if carried else ()
        if isinstance(decoder.upper, UpperHalf):
            for group, past, served in zip(*decoder.upper.by_group(upper), carried, strict=True):
                x, made = group.row(x, view, past, cast(Fetched, served.fetched))
                new += made
        else:
            x, made = run_blocks(decoder.upper.blocks, upper, x, view, False)
            new += made
        hidden = decoder.norm(x)
        return stacked(new, pasts), (hidden, decoder.logits(hidden)), below

    def landmark_row(self, pasts: Pasts, row: Tensor, pending: Tensor) -> tuple[Pasts, Tensor, EncodedChunks]:
        """Pasts, row number [1] and the chunk's other rows [B, C, M] -> new pasts, lower hidden states of the landmark
        [B, 1, M], what becomes of the chunk."""
        decoder, encoder = self.decoder, cast(UpperHalf, self.decoder.upper).encoder
        assert decoder.landmark is not None
        lower, upper = decoder.halves(pasts)
        x = decoder.landmark.expand(len(pending), 1, -1).to(pending.dtype)
        x, new = run_blocks(decoder.lower, lower, x, view_at(row, x, decoder.config), False)
        block = torch.cat((pending, x), 1)[:, None]
        return stacked((*new, *separate(upper)), pasts), x, encoder(block, encoder.rotation(block))

    def selecting_row(
        self,
        pasts: Pasts,
        x: Tensor,
        row: Tensor,
        chunk: Tensor,
        before: tuple[Carried, ...],
        held: tuple[tuple[Tensor, ...], Callable[[Tensor], tuple[Tensor, Tensor]]],
    ) -> tuple[Pasts, tuple[Carried, ...]]:
        """Pasts, and a landmark x [B, 1, M], its row number and chunk number [1] through the groups: each makes the
        selection of the rows behind it -> new pasts, the selections with their chunks.

        before: what serves the landmark's own row; () where its own selection does.
        held: landmarks in blocks with room (see `ChunkMemory.blocks`), and what reads chunks.
        """
        decoder, (keys, read) = self.decoder, held
        lower, upper = decoder.halves(pasts)
        view, new, carried = view_at(row, x, decoder.config), separate(lower), list[Carried]()
        for number, (group, past) in enumerate(zip(*cast(UpperHalf, decoder.upper).by_group(upper), strict=True)):
            selection = group.select(x, chunk, keys)
            after = fetch(selection, read)
            x, made = group.row(x, view, past, cast(Fetched, before[number].fetched) if before else after)
            new += made
            carried.append(Carried(selection, after))
        return stacked(new, pasts), tuple(carried)

    def _complete(self, state: ModelState, row: Tensor) -> ModelState:
        """The chunk goes to memory, and its landmark waits for the next token."""
        assert state.memory is not None
        pasts, x, made = self._landmark(state.pasts, row, torch.cat(state.pending, 1))
        state.memory.append(made.landmarks, made.table)
        return replace(state, pasts=pasts, pending=(), deferred=x)

    def _select(self, state: ModelState, row: Tensor, block: int) -> ModelState:
        """The landmark at `row` that waits goes through the groups."""
        memory, x = state.memory, state.deferred
        assert memory is not None
        before = () if cast(UpperHalf, self.decoder.upper).shift else self._fetched(state)
        reader, inputs = memory.store.reader(), (state.pasts, x, row, row // block, before)
        if reader is None:
            pasts, carried = self.selecting_row(*inputs, (memory.blocks(), memory.store.read))
        else:
            pasts, carried = memory.store.ordered(lambda: self._selecting(*inputs, held=(memory.blocks(), reader)))
        return replace(state, pasts=pasts, carried=carried, deferred=x[:, :0].clone())

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
