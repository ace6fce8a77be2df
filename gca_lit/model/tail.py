"""Window layers on top of everything else: they run only where an output is read, and as far back as they see."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from gca_lit.attention.base import Dims, Past, View
from gca_lit.model.block import Block, row_view, run_blocks
from gca_lit.model.chunks import Layout
from gca_lit.model.pasts import Pasts
from gca_lit.model.span import plan_span
from gca_lit.model.state import ModelState, behind


class WindowTail(nn.Module):
    """The layers above the last one that sees everything.

    Args:
        dims: widths.
        blocks: the layers from bottom to top.
        reach: the sum of their windows in rows.
        recompute: gradient checkpointing of the layers.
    """

    def __init__(self, dims: Dims, blocks: list[Block], reach: int, recompute: bool) -> None:
        super().__init__()
        self.dims, self.reach, self.recompute = dims, reach, recompute
        self.blocks = nn.ModuleList(blocks)

    def empty_pasts(self, batch_size: int, like: Tensor) -> tuple[Past, ...]:
        return tuple(cast(Block, block).mixer.empty_past(batch_size, like) for block in self.blocks)

    def forward(
        self, x: Tensor, pasts: Pasts, layout: Layout, state: ModelState, wanted: tuple[int, int], view: View
    ) -> tuple[Tensor, Pasts, ModelState]:
        """x: hidden states of the segment's rows [B, R, M] -> (those of the wanted tokens, new pasts, new state).

        pasts: of these layers.
        view: of the segment's rows.
        """
        at_hand = behind([state.deferred], x)
        span = plan_span(layout, state.deferred.shape[1], wanted, self.reach)
        pasts = self.empty_pasts(len(x), x) if span.begin > 0 else pasts
        rows = at_hand[:, span.begin : span.stop]
        if span.stop > span.begin:
            if not span.is_all_of(layout):
                of_rows = None if view.documents is None else view.documents[:, span.begin : span.stop]
                view = row_view(span.first_row, rows, self.dims, of_rows)
            rows, pasts = run_blocks(self.blocks, pasts, rows, view, self.recompute)
        state = replace(state, deferred=at_hand[:, span.stop :].clone())
        return rows[:, rows.shape[1] - (wanted[1] - wanted[0]) :], pasts, state
