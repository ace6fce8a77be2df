"""How many answers in training rows are right, by task."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.model import RowLoss


class AnswerCounts:
    """Adds up without waiting for the device."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None  # [tasks, 2]: right, scored

    def add(self, task: Tensor, loss: RowLoss, tasks: int) -> None:
        """Count the scored tokens of a batch.

        Args:
            task: int64 [B], task number of each row, -1 for plain text.
            loss: of the rows.
            tasks: how many tasks there are.
        """
        mine = task == torch.arange(tasks, device=task.device)[:, None]  # [tasks, B]
        counts = torch.stack(((mine * loss.correct).sum(1), (mine * loss.count).sum(1)), 1)
        self._counts = counts if self._counts is None else self._counts + counts

    def take(self, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each task, (tokens predicted right, tokens scored) since the last call; nothing when none was counted."""
        counts, self._counts = self._counts, None
        return {} if counts is None else {name: (row[0], row[1]) for name, row in zip(names, counts, strict=True)}
