"""One layer: a mixer, what it shows the MLP, the MLP; and a stack of layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gca_lit.attention.base import Dims, Mixer, Past, View
from gca_lit.layers import RMSNorm, SwiGLU, rotation
from gca_lit.model.pasts import Pasts, separate


class Block(nn.Module):
    """x + mixed, then + MLP; a mixer may show the MLP more than it adds to the residual stream."""

    def __init__(self, mixer: Mixer, width: int, mlp_width: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x: Tensor, past: Past, view: View) -> tuple[Tensor, Past]:
        """x: [B, R, M] -> ([B, R, M], new past)."""
        added, shown, past = self.mixer(x, past, view)
        x = x + added
        seen = x if shown is None else x + shown
        return x + self.mlp(self.norm(seen)), past


def row_view(first_row: int, x: Tensor, dims: Dims, documents: Tensor | None) -> View:
    """The view of rows `first_row`, `first_row` + 1, ... for layers that do not retrieve; x [B, R, M]."""
    return view_at(torch.arange(first_row, first_row + x.shape[1], device=x.device), x, dims, documents)


def view_at(positions: Tensor, x: Tensor, dims: Dims, documents: Tensor | None = None) -> View:
    """The same of the rows x at `positions`, int64 [R]."""
    turn = rotation(positions, dims.head_width, x.dtype) if dims.position == "rotary" else None
    return View(positions, turn, documents)


def view_of(view: View, rows: slice) -> View:
    """That of some rows."""
    turn = view.rotation
    return replace(view, positions=view.positions[rows], rotation=turn and (turn[0][rows], turn[1][rows]))


def run_blocks(
    blocks: Iterable[nn.Module], pasts: Pasts, x: Tensor, view: View, recompute: bool
) -> tuple[Tensor, tuple[Past, ...]]:
    """x through `blocks`, each with its past -> (x, new pasts); `recompute` trades time for memory in backward."""
    new = []
    for block, past in zip(blocks, separate(pasts), strict=True):
        view = replace(view, prepared=cast(Block, block).mixer.prepare(x, past, view))
        if recompute and torch.is_grad_enabled():
            x, past = checkpoint(block, x, past, view, use_reentrant=False)
        else:
            x, past = block(x, past, view)
        new.append(past)
    return x, tuple(new)
