"""Weights in the type that autocast computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def cast_once(module: nn.Module, device_type: str) -> Iterator[None]:
    """Let the linear maps of `module` hold their weights in the type to which autocast, where it is on, casts them at
    every use. Results stay the same to the bit. Afterwards they have their own weights again.

    For evaluation alone: the cast weights have no gradient. One that two parts share stays as it is in the other.
    """
    maps = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not torch.is_autocast_enabled(device_type):
        maps = []
    own = [part.weight for part in maps]
    try:
        for part in maps:
            part.weight = nn.Parameter(part.weight.detach().to(torch.get_autocast_dtype(device_type)), False)
        yield
    finally:
        for part, weight in zip(maps, own, strict=True):
            part.weight = weight
