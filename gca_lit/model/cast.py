"""Weights in the type that autocast computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def cast_once(module: nn.Module, device_type: str) -> Iterator[None]:
    """Let the linear maps of `module` hold their weights in the type to which autocast, where it is on, casts them at
    every use. Results stay the same to the bit. Their own weights wait in host memory, and come back afterwards.

    For evaluation alone: the cast weights have no gradient. One that another part uses too stays there as it is.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    maps = [part for part in module.modules() if isinstance(part, nn.Linear)]
    own = [(part, part.weight, part.weight.device) for part in maps]
    try:
        for part in maps:
            part.weight = nn.Parameter(part.weight.detach().to(torch.get_autocast_dtype(device_type)), False)
        still_used = set(map(id, module.parameters()))
        for _, weight, _ in own:
            if id(weight) not in still_used:
                weight.data = weight.data.cpu()
        yield
    finally:
        for part, weight, device in own:
            weight.data = weight.data.to(device)
            part.weight = weight
