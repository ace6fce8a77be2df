"""Which rows are text and which are tasks, and what either is trained on."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from gca_lit.data.hashing import fraction
from gca_lit.tasks.base import IGNORED, Episode


@dataclass(frozen=True)
class Mixture:
    """What training rows are made of.

    Args:
        text: Share of the rows that are plain text, 0 to 1; the others are task rows. Or a table of (row length,
            share): a share holds for rows of that many tokens and longer, the first for shorter ones too.
        weights: Relative share of each task among the task rows, by name; a task that is not named gets 1.
        loss: Train task rows on their answers, or on every token.
    """

    text: float | list[tuple[int, float]] = 1.0
    weights: dict[str, float] | None = None
    loss: Literal["answers", "all"] = "answers"

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self._shares]
        if not lengths or lengths[0] < 0 or any(a >= b for a, b in pairwise(lengths)):
            example = "such as [[512, 0.0], [4096, 0.9]]"
            raise ValueError(f"mixture.text must be a share, or name row lengths that grow, {example}, not {self.text}")
        if not all(0 <= share <= 1 for _, share in self._shares):
            raise ValueError(f"mixture.text is a share of the rows, 0 to 1, not {self.text}")
        if any(weight < 0 for weight in (self.weights or {}).values()):
            raise ValueError(f"mixture.weights must not be negative: {self.weights}")

    @property
    def has_tasks(self) -> bool:
        """Whether rows of some length are tasks."""
        return any(share < 1 for _, share in self._shares)

    def text_share(self, length: int) -> float:
        """Of rows of `length` tokens."""
        return next((share for start, share in reversed(self._shares) if start <= length), self._shares[0][1])

    @property
    def _shares(self) -> list[tuple[int, float]]:
        return self.text if isinstance(self.text, list) else [(0, self.text)]


class RowTask(Protocol):
    """What makes task rows: a bound Task, or pairs."""

    name: str

    def min_length(self) -> int: ...
    def row(self, length: int, index: int, text: Tensor) -> Episode: ...


class RowMaker:
    """Turns a stretch of text into a training row: as it is, or as the haystack of a task.

    tasks: bound tasks. Raises ValueError for weights of tasks that are not there, or when no task can be drawn.
    """

    def __init__(self, mixture: Mixture, tasks: Sequence[RowTask], seed: int) -> None:
        names = [task.name for task in tasks]
        weights = mixture.weights or {}
        if unknown := sorted(set(weights) - set(names)):
            raise ValueError(f"mixture.weights names {', '.join(unknown)}, but the tasks are {names}")
        self.mixture = mixture
        self.tasks = list(tasks)
        self.seed = seed
        self._cumulative = list(accumulate(weights.get(name, 1.0) for name in names))
        if mixture.has_tasks and not (self._cumulative and self._cumulative[-1] > 0):
            raise ValueError(
                f"mixture.text is {mixture.text}, but there is no task to draw (perplexity makes no rows): "
                "add one to data.tasks, or data.pairs, or set it to 1 for rows of text alone"
            )

    def check_length(self, length: int) -> None:
        """Raise ValueError when rows of `length` tokens are too short for a task that can be drawn."""
        for i, task in enumerate(self.tasks):
            if self.mixture.text_share(length) < 1 and self._weight(i) > 0 and length < task.min_length():
                raise ValueError(
                    f"rows of {length} tokens are too short for task {task.name}, which takes {task.min_length()}: "
                    "take longer rows (data.train_length, data.stages), make it shorter (data.pairs.max_length), "
                    "or give it weight 0"
                )

    def choose(self, number: int, length: int) -> int:
        """Index of the task of row `number`, or -1 for plain text: a hash of the seed and the number."""
        if fraction(self.seed, number, 0) < self.mixture.text_share(length):
            return -1
        return bisect_right(self._cumulative, fraction(self.seed, number, 1) * self._cumulative[-1])

    def __call__(self, number: int, text: Tensor) -> tuple[Tensor, Tensor, int]:
        """Row `number` from text, int64 [L + 1]: its tokens [L], targets [L] (-100: none), and task index or -1."""
        task = self.choose(number, len(text) - 1)
        if task < 0:
            return text[:-1], text[1:], task
        row = self.tasks[task].row(len(text) - 1, index=number, text=text[:-1])
        if self.mixture.loss == "answers":
            return row.tokens, row.targets, task
        following = row.tokens.roll(-1)
        following[-1] = IGNORED
        return row.tokens, torch.where(row.targets == IGNORED, following, row.targets), task

    def _weight(self, task: int) -> float:
        return self._cumulative[task] - (self._cumulative[task - 1] if task else 0.0)
