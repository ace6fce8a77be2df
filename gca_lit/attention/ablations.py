"""Grouped cross attention with a retriever that learns nothing: what end-to-end retrieval is compared with.

A slope that learns nothing stays at 0, so there is none, and `recency` changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gca_lit.attention.base import Dims
from gca_lit.attention.gca import GroupedCrossAttention


class DetachedRetrieval(GroupedCrossAttention):
    """No gradient goes through the weights of a selection: the retriever stays as it was drawn.

    Selections still change with the hidden states that are scored.
    """

    name = "gca_detached"

    def landmark_key(self, dims: Dims) -> nn.Module:
        return Detached(super().landmark_key(dims))

    def retriever(self, dims: Dims) -> nn.Module:
        return Detached(super().retriever(dims))

    def slope(self) -> None:
        return None


class RandomRetrieval(GroupedCrossAttention):
    """Every query chunk selects chunks at random, with nearly equal weights; the same for equal states."""

    name = "gca_random"

    def landmark_key(self, dims: Dims) -> nn.Module:
        return Scrambled(dims.width)

    def retriever(self, dims: Dims) -> nn.Module:
        return Scrambled(dims.width)

    def slope(self) -> None:
        return None


class Detached(nn.Module):
    """A module whose output has no gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).detach()


class Scrambled(nn.Module):
    """Vectors of length 1 that look random and are a function of the input: the least change of it changes them all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.detach().float() @ self.directions  # type: ignore[operator]
        return nn.functional.normalize(torch.sin(1e3 * mixed), dim=-1).to(x.dtype)
