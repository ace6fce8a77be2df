"""The pasts of several layers: a tuple, or one tensor where they are alike."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gca_lit.attention.base import Past
from gca_lit.model.nested import flatten

Pasts = tuple[Past, ...] | Tensor
"""Of each layer; [layers, n, ...] where every past is a tuple of n tensors of the same shape and type."""


def separate(pasts: Pasts) -> tuple[Past, ...]:
    """Of each layer."""
    return tuple(one.unbind() for one in pasts.unbind()) if isinstance(pasts, Tensor) else pasts


def stacked(pasts: tuple[Past, ...], before: Pasts) -> Pasts:
    """One tensor, where they are alike and have the shapes of those `before`: there is less to hand over."""
    leaves, old = list[Tensor](), list[Tensor]()
    structures = {flatten(past, leaves) for past in pasts}
    flatten(separate(before), old)
    kinds = {(leaf.shape, leaf.dtype) for leaf in leaves}
    plain = structures == {(tuple, *[None] * (len(leaves) // max(len(pasts), 1)))}
    if not plain or len(kinds) != 1 or [leaf.shape for leaf in leaves] != [leaf.shape for leaf in old]:
        return pasts
    return torch.stack(leaves).unflatten(0, (len(pasts), -1))


def divided(pasts: Pasts, layers: Iterable[int]) -> tuple[Pasts, ...]:
    """Those of the first layers, of the next ones, and so on: so many each."""
    return tuple(pasts[begin:end] for begin, end in pairwise(accumulate(layers, initial=0)))
