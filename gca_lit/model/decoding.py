"""Decoding: a step of one token as a function of tensors whose shapes stay the same, replayed as one CUDA graph.

The landmark of a chunk goes through the lower layers beside the chunk's last token, and through the upper ones beside
the next token, as in any other segment: two rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gca_lit.attention.base import Past, View
from gca_lit.memory import Fetched, Selection, both, fetch, in_one_table
from gca_lit.model.block import run_blocks, view_at, view_of
from gca_lit.model.carried import Carried, together
from gca_lit.model.chunks import EncodedChunks, Layout
from gca_lit.model.pasts import Pasts, separate, stacked
from gca_lit.model.places import Places
from gca_lit.model.replay import Replayed
from gca_lit.model.state import ModelState, Step, behind
from gca_lit.model.upper import UpperHalf
from gca_lit.model.weights import Weights

if TYPE_CHECKING:
    from gca_lit.model.decoder import Decoder

Chunk = tuple[()] | tuple[Tensor, EncodedChunks]
Served = Carried | tuple[()]
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
        opens = state.deferred.shape[1]
        nothing = state.deferred[:, :0] if opens else state.deferred
        landmark = (state.deferred,) if opens else ()
        pending = (torch.cat((nothing, *state.pending), 1),) if layout.chunks else ()
        own = opens and cast(UpperHalf, self.decoder.upper).shift  # a landmark that reads what it selects itself
        carried = state.carried if own else self._fetched(state)
        given = state.pasts, text, carried, landmark, pending
        pasts, out, below, selected, chunk = (
            self._selecting(state, given) if opens else self._rows[False, bool(pending)](*given)
        )
        state = replace(
            state,
            position=state.position + 1,
            pasts=pasts,
            pending=() if chunk else (*state.pending, *below),
            deferred=chunk[0] if chunk else nothing,
            carried=selected or carried,
        )
        if chunk:
            assert state.memory is not None
            state.memory.append(chunk[1].landmarks, chunk[1].table)
        first_chunk = (layout.first_row - opens) // layout.block
        return Step(out[0], _of_groups(carried, selected), first_chunk, state, out[1])

    def row(
        self,
        pasts: Pasts,
        text: tuple[Tensor, Tensor],
        carried: Served,
        landmark: tuple[Tensor, ...],
        pending: tuple[Tensor, ...],
        held: Held = (),
    ) -> tuple[Pasts, tuple[Tensor, Tensor], tuple[Tensor, ...], Served, Chunk]:
        """A token, with the landmark that stands before it in the upper layers, and the one behind it in the lower.

        Args:
            pasts: of all layers.
            text: the token [B, 1] and its row number [1].
            carried: what serves it, or the landmark before it if there is one.
            landmark: its lower hidden states [B, 1, M], where one stands before.
            pending: the rows of the chunk before the token [B, C - 1, M], where one stands behind.
            held: what a landmark before selects from: landmarks in blocks with room (see `ChunkMemory.blocks`), and
                what reads chunks.

        Returns:
            new pasts; hidden states normed [B, 1, M] and logits [B, 1, V]; lower hidden states [B, 1, M] that go into a
            chunk later; what serves the token, if a landmark before it selected that; the chunk, if it is complete.
        """
        decoder, (tokens, row), opens = self.decoder, text, len(landmark)
        lower, upper = map(separate, decoder.halves(pasts))
        x = decoder.embed(tokens)
        view = view_at(_around(row, opens, len(pending)), x, decoder.config)
        if pending:
            assert decoder.landmark is not None
            x = torch.cat((x, decoder.landmark.expand(len(x), 1, -1).to(x.dtype)), 1)
        below, lower = run_blocks(decoder.lower, lower, x, view_of(view, slice(opens, None)), False)
        x, view = behind(landmark, below[:, :1]), view_of(view, slice(0, opens + 1))
        selected = cast(Served, ())
        if isinstance(decoder.upper, UpperHalf):
            x, upper, selected = self._groups(decoder.upper, x, view, upper, cast(Carried, carried), row, held)
        else:
            x, upper = run_blocks(decoder.upper.blocks, upper, x, view, False)
        hidden, chunk = decoder.norm(x[:, opens:]), cast(Chunk, ())
        if pending:
            encoder, block = cast(UpperHalf, decoder.upper).encoder, torch.cat((*pending, below), 1)[:, None]
            chunk = below[:, 1:], encoder(block, encoder.rotation(block))
        goes_on = (below,) if carried and not pending else ()
        out = hidden, decoder.logits(hidden)
        return stacked((*lower, *upper), pasts), out, goes_on, selected, chunk

    def _groups(
        self,
        upper: UpperHalf,
        x: Tensor,
        view: View,
        pasts: Pasts,
        carried: Carried,
        row: Tensor,
        held: Held,
    ) -> tuple[Tensor, tuple[Past, ...], Served]:
        """x [B, 1, M], or with `held` [B, 2, M], a landmark first, through the groups; see `row`.

        row: number of the token's row [1].
        """
        done, selected = list[Past](), list[Carried]()
        for group, past, one in zip(*upper.by_group(pasts), carried.by_group(), strict=True):
            served = cast(Fetched, one.fetched)
            if held:
                keys, read = held
                made = group.select(x[:, :1], (row - 1) // (upper.chunk_size + 1), keys)
                after = fetch(made, read)
                served = after if upper.shift else in_one_table(served, after)
                selected.append(Carried(made, after))
            x, new = group.row(x, view, past, served)
            done += new
        return x, tuple(done), together(selected) if selected else ()

    def _selecting(self, state: ModelState, given: Any) -> Any:
        """`row` of a token behind a landmark that waits for the upper layers."""
        memory, closes = state.memory, bool(given[-1])
        assert memory is not None
        reader = memory.store.reader()
        held = memory.blocks(), reader or memory.store.read
        row: Callable[..., Any] = self.row if reader is None else self._rows[True, closes]
        return memory.store.ordered(lambda: row(*given, held=held))

    def _fetched(self, state: ModelState) -> Served:
        """What serves the next row, with its chunks."""
        if not state.carried or state.carried.fetched:
            return state.carried
        upper, memory = cast(UpperHalf, self.decoder.upper), state.memory
        assert memory is not None

        def with_chunks(one: Carried) -> Carried:
            if memory.count:
                return Carried(one.selection, fetch(one.selection, memory.store.read))
            return Carried(one.selection, (upper.blank(state.deferred, one.selection.ids.shape[2]), one.selection))

        return together([with_chunks(one) for one in state.carried.by_group()])


def _of_groups(before: Served, after: Served) -> tuple[Selection, ...]:
    """Of each group what served the row, or what served the landmark before it and what that selected."""
    if not before:
        return ()
    return _each(*(both(before.selection, after.selection) if after else before.selection))


@lru_cache(maxsize=4)  # asked for every token, and the same tensors serve all of a chunk
def _each(ids: Tensor, weights: Tensor) -> tuple[Selection, ...]:
    return tuple(map(Selection, ids, weights))


def _around(row: Tensor, before: int, behind: int) -> Tensor:
    """Row number [1], with those of so many rows before and behind it."""
    if before == behind == 0:
        return row
    return row + torch.arange(-before, behind + 1, device=row.device)
