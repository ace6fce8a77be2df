"""Nested tuples of tensors, and tensors that are copied together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 8192
"""Elements from which on a tensor is copied alone: a launch for many gives it too few programs."""


def flatten(tree: Any, leaves: list[Any]) -> Any:
    """Append what is no tuple in `tree` to `leaves` -> how it was nested."""
    if isinstance(tree, tuple):
        return type(tree), *[flatten(part, leaves) for part in tree]
    leaves.append(tree)
    return None


def unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
    """The reverse of `flatten`."""
    if structure is None:
        return next(leaves)
    kind, *parts = structure
    made = [unflatten(part, leaves) for part in parts]
    return tuple(made) if kind is tuple else kind(*made)


class Room:
    """Tensors in a fixed place."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        types = dict.fromkeys(x.dtype for x in tensors)
        small = [[at for at, x in enumerate(tensors) if x.dtype == dtype and x.numel() < LARGE] for dtype in types]
        large = [[at] for at, x in enumerate(tensors) if x.numel() >= LARGE]
        self._launches = [numbers for numbers in (*small, *large) if numbers]

    @classmethod
    def like(cls, tensors: Sequence[Tensor]) -> Room:
        """Room for such tensors."""
        return cls(_empty(tensors))

    def fill(self, source: Sequence[Tensor]) -> None:
        """Copy all tensors of `source`, small ones of a type in one launch."""
        self._copy(self.tensors, source)

    def copies(self) -> list[Tensor]:
        """What is there, in memory of its own."""
        made = _empty(self.tensors)
        self._copy(made, self.tensors)
        return made

    def _copy(self, into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
        for numbers in self._launches:
            if len(numbers) == 1:
                into[numbers[0]].copy_(source[numbers[0]], non_blocking=True)
            else:
                torch._foreach_copy_([into[at] for at in numbers], [source[at] for at in numbers], non_blocking=True)


def _empty(like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]
