"""What the retrieval groups carry from row to row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gca_lit.memory import Fetched, Selection
from gca_lit.model.nested import flatten, unflatten


class Carried(NamedTuple):
    """What serves the next row, of one group or of G groups in tensors of one more dimension, [G, ...].

    selection: one entry [B, 1, K].
    fetched: its chunks, once they have been fetched: a table of K in the order of the slots, and the entry renumbered
        to that table.
    """

    selection: Selection
    fetched: Fetched | None = None

    def by_group(self) -> list[Carried]:
        """Of each group, from that of all."""
        leaves: list[Any] = []
        structure, groups = flatten(self, leaves), range(len(self.selection.ids))
        return [unflatten(structure, iter([leaf if leaf is None else leaf[g] for leaf in leaves])) for g in groups]


def together(groups: Sequence[Carried]) -> Carried:
    """Of all groups, from that of each."""
    every: list[list[Any]] = [[] for _ in groups]
    structures = [flatten(one, leaves) for one, leaves in zip(groups, every, strict=True)]
    stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*every, strict=True)]
    made: Carried = unflatten(structures[0], iter(stacked))
    return made
