"""Decoding: a step of one token as a function of tensors whose shapes stay the same, replayed as one CUDA graph.

Rows run alone here. The landmark of a chunk goes through the lower layers behind the chunk's last token, in the same
step, and through the upper ones before the next token, as in any other segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gca_lit.attention.base import Past
from gca_lit.memory import Selection, fetch
from gca_lit.model.block import run_blocks, view_at
from gca_lit.model.chunks import EncodedChunks, Layout
from gca_lit.model.group import Carried, Fetched
from gca_lit.model.pasts import Pasts, separate, stacked
from gca_lit.model.places import Places
from gca_lit.model.replay import Replayed
from gca_lit.model.state import ModelState, Step
from gca_lit.model.upper import UpperHalf
from gca_lit.model.weights import Weights

if TYPE_CHECKING:
    from gca_lit.model.decoder import Decoder

Chunk = tuple[()] | tuple[Tensor, EncodedChunks]
Held = tuple[()] | tuple[tuple[Tensor, ...], Callable[[Tensor], tuple[Tensor, Tensor]]]


class Decoding:
    """One token at a time.

    Args:
        decoder: whose layers run; it is looked at in every step.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        weights, places, stays = Weights(decoder), Places(), {0: 0, 3: 2}
        self._rows = {kind: Replayed(self.row, weights, places, stays) for kind in product((False, True), repeat=2)}
        """By whether a landmark stands before the token, and whether one stands behind it."""

    def takes(self, layout: Layout, wanted: tuple[int, int], state: ModelState) -> bool:
        """Whether a segment is one token that is read, and nothing waits for the upper layers but a landmark."""
        waiting = state.deferred.shape[1]
        ready = waiting == 0 or (waiting == 1 and layout.begins_chunk)
        return layout.tokens == 1 and wanted == (0, 1) and ready and not torch.is_grad_enabled()

    def step(self, tokens: Tensor, state: ModelState, layout: Layout) -> Step:
        """tokens [B, 1]; `layout` is theirs."""
        text = tokens, torch.full((1,), layout.first_row, device=tokens.device)
        nothing, opens = state.deferred[:, :0], bool(state.deferred.shape[1])
        pending = (torch.cat((nothing, *state.pending), 1),) if layout.chunks else ()
        before = state.carried
        if opens:
            pasts, out, below, carried, chunk = self._behind_landmark(text, state, pending)
        else:
            carried = self._fetched(state)
            pasts, out, below, _, chunk = self._rows[False, bool(pending)](state.pasts, text, carried, (), pending)
        state = replace(
            state,
            position=state.position + 1,
            pasts=pasts,
            pending=() if chunk else (*state.pending, *below),
            deferred=chunk[0] if chunk else nothing,
            carried=carried,
        )
        selections = tuple(one.selection for one in carried)
        if opens:
            selections = tuple(map(_both, (one.selection for one in before), selections))
        if chunk:
            assert state.memory is not None
            state.memory.append(chunk[1].landmarks, chunk[1].table)
        first_chunk = (layout.first_row - opens) // layout.block
        return Step(out[0], selections, first_chunk, state, out[1])

    def row(
        self,
        pasts: Pasts,
        text: tuple[Tensor, Tensor],
        carried: tuple[Carried, ...],
        landmark: tuple[Tensor, ...],
        pending: tuple[Tensor, ...],
        held: Held = (),
    ) -> tuple[Pasts, tuple[Tensor, Tensor], tuple[Tensor, ...], tuple[Carried, ...], Chunk]:
        """A token, the landmark that stands before it, and the one behind it.

        Args:
            pasts: of all layers.
            text: the token [B, 1] and its row number [1].
            carried: what serves it, or the landmark before it if there is one.
            landmark: its lower hidden states [B, 1, M], where one stands before.
            pending: the rows of the chunk before the token [B, C - 1, M], where one stands behind.
            held: see `_select`.

        Returns:
            new pasts; hidden states normed [B, 1, M] and logits [B, 1, V]; lower hidden states [B, 1, M] that go into a
            chunk later; what serves the token, if a landmark before it selected that; the chunk, if it is complete.
        """
        decoder, (tokens, row) = self.decoder, text
        lower, upper = map(separate, decoder.halves(pasts))
        selected: tuple[Carried, ...] = ()
        if landmark:
            upper, selected = self._select(upper, landmark[0], row - 1, carried, held)
            carried = selected
        x = decoder.embed(tokens)
        view = view_at(row, x, decoder.config)
        below, lower = run_blocks(decoder.lower, lower, x, view, False)
        if isinstance(decoder.upper, UpperHalf):
            x, done = below, list[Past]()
            for group, past, served in zip(*decoder.upper.by_group(upper), carried, strict=True):
                x, new = group.row(x, view, past, cast(Fetched, served.fetched))
                done += new
            upper = tuple(done)
        else:
            x, upper = run_blocks(decoder.upper.blocks, upper, below, view, False)
        hidden, chunk = decoder.norm(x), cast(Chunk, ())
        if pending:
            lower, chunk = self._complete(lower, row + 1, torch.cat((*pending, below), 1))
        goes_on = (below,) if carried and not pending else ()
        return stacked((*lower, *upper), pasts), (hidden, decoder.logits(hidden)), goes_on, selected, chunk

    def _select(
        self, pasts: tuple[Past, ...], x: Tensor, row: Tensor, before: tuple[Carried, ...], held: Held
    ) -> tuple[tuple[Past, ...], tuple[Carried, ...]]:
        """A landmark x [B, 1, M] and its row number [1] through the groups: each makes the selection of the rows behind
        it -> new pasts of their layers, the selections with their chunks.

        before: what serves the landmark's own row; () where its own selection does.
        held: landmarks in blocks with room (see `ChunkMemory.blocks`), and what reads chunks.
        """
        assert held
        (keys, read), upper = held, cast(UpperHalf, self.decoder.upper)
        view, done, selected = view_at(row, x, self.decoder.config), list[Past](), list[Carried]()
        for number, (group, past) in enumerate(zip(*upper.by_group(pasts), strict=True)):
            selection = group.select(x, row // (upper.chunk_size + 1), keys)
            after = fetch(selection, read)
            x, new = group.row(x, view, past, cast(Fetched, before[number].fetched) if before else after)
            done += new
            selected.append(Carried(selection, after))
        return tuple(done), tuple(selected)

    def _complete(self, pasts: tuple[Past, ...], row: Tensor, rows: Tensor) -> tuple[tuple[Past, ...], Chunk]:
        """The landmark at `row` [1] behind the other rows [B, C, M] of its chunk through the lower layers -> new pasts,
        the landmark's hidden states [B, 1, M] and what becomes of the chunk."""
        decoder, encoder = self.decoder, cast(UpperHalf, self.decoder.upper).encoder
        assert decoder.landmark is not None
        x = decoder.landmark.expand(len(rows), 1, -1).to(rows.dtype)
        x, pasts = run_blocks(decoder.lower, pasts, x, view_at(row, x, decoder.config), False)
        block = torch.cat((rows, x), 1)[:, None]
        return pasts, (x, encoder(block, encoder.rotation(block)))

    def _behind_landmark(self, text: tuple[Tensor, Tensor], state: ModelState, pending: tuple[Tensor, ...]) -> Any:
        """`row` of a token behind a landmark that waits for the upper layers."""
        upper, memory, x = cast(UpperHalf, self.decoder.upper), state.memory, state.deferred
        assert memory is not None
        before, keys, reader = () if upper.shift else self._fetched(state), memory.blocks(), memory.store.reader()
        if reader is not None:
            row = self._rows[True, bool(pending)]
            return memory.store.ordered(lambda: row(state.pasts, text, before, (x,), pending, held=(keys, reader)))
        lower, past = map(separate, self.decoder.halves(state.pasts))
        past, selected = self._select(past, x, text[1] - 1, before, (keys, memory.store.read))
        pasts = stacked((*lower, *past), state.pasts)
        pasts, out, below, _, chunk = self._rows[False, bool(pending)](pasts, text, selected, (), pending)
        return pasts, out, below, selected, chunk

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
