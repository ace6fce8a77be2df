"""What a task is: episodes of exact length that are pure functions of a seed and an index."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, Self

from torch import Tensor

Encode = Callable[[str], list[int]]
IGNORED = -100  # a target that is not scored


class Haystack(Protocol):
    """Text to hide needles in, and to be scored as it is."""

    def take(self, index: int, length: int) -> Tensor:
        """int64 [length]; a pure function of the haystack's seed, `index` and `length`."""
        ...

    def passage(self, index: int, length: int) -> Tensor:
        """int64 [length], consecutive tokens of one document; a pure function of the haystack's seed and the arguments.

        Raises ValueError when no document is so long.
        """
        ...

    def passes(self, length: int) -> int:
        """How many times the text is gone through to fill one episode of `length` tokens (>= 1)."""
        ...


@dataclass(frozen=True)
class Episode:
    """One sequence with its questions. In a dense row, which asks many, all fields after `targets` describe the last.

    tokens: int64 [T], the answers included (teacher forced).
    targets: int64 [T], already shifted: targets[t] is the token that follows tokens[t]; -100 where nothing is scored.
    needles: [start, stop) token span of the part that the answer repeats, of each needle it needs, in hop order.
    asked: index of the last token of the part of the question that names what is sought.
    answer: [start, stop) of the answer in `tokens`.
    depth: start of the first needle needed / its last admissible start, 0 to 1; None without needles.
    distance: tokens between the end of that needle and the first answer token; 0 without needles.
    """

    tokens: Tensor
    targets: Tensor
    needles: tuple[tuple[int, int], ...]
    asked: int
    answer: tuple[int, int]
    depth: float | None
    distance: int


def _unbound(text: str) -> list[int]:
    raise RuntimeError("This task is not bound yet: call bind(seed, encode, align) and use the task it returns.")


class Task(ABC):
    """A kind of question. The constructor holds settings; `bind` adds what an experiment decides."""

    name: str
    seed: int = 0
    encode: Encode = staticmethod(_unbound)
    align: int | None = None

    def bind(self, seed: int, encode: Encode, align: int | None) -> Self:
        """A copy bound to a seed, a tokenizer's `encode`, and a chunk size to align questions to (None: at the end).

        Raises ValueError when `align` is not positive or too short for the task's prompt and answer.
        """
        if align is not None and align < 1:
            raise ValueError(f"{self.name}: align must be a chunk size of at least 1 token or None, not {align}.")
        bound = copy.copy(self)
        bound.seed, bound.encode, bound.align = seed, encode, align
        return bound

    def settings(self) -> dict[str, Any]:
        """What the constructor was given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def placement(self) -> str:
        """Where the question stands: "chunk" (its end on a chunk border) or "end" (at the end of the sequence)."""
        return "end" if self.align is None else "chunk"

    @abstractmethod
    def min_length(self) -> int:
        """Tokens that are always enough for `episode` and `row`; shorter ones raise ValueError."""

    def check_haystack(self, haystack: Haystack) -> None:
        """Raise ValueError when `haystack` cannot give the text that `episode` takes. Any can, unless a task says."""
        return

    @abstractmethod
    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        """An evaluation episode of exactly `length` tokens with one question.

        depth: where the needle stands, 0 (the start) to 1 (right before the question); None draws it uniformly. Seed
        and index fix all else, so that episodes that differ in depth alone hide the same needles.
        Raises ValueError when `length` is below `min_length()` or `depth` is outside 0 to 1.
        """

    @abstractmethod
    def row(self, length: int, index: int, text: Tensor) -> Episode:
        """A dense training row of exactly `length` tokens; text: int64 [length], the haystack, used from its start.

        Raises ValueError when `length` is below `min_length()` or `text` has another shape.
        """

    def rng(self, use: str, length: int, index: int) -> Random:
        """The random numbers of one episode or row, the same on every machine."""
        return Random(f"{self.seed}/{self.name}/{self.placement}/{use}/{length}/{index}")

    def check_length(self, length: int) -> None:
        """Raise ValueError when `length` is below `min_length()`."""
        if length < self.min_length():
            raise ValueError(
                f"{self.name}: {length} tokens are too few, the shortest episode has {self.min_length()}; "
                "use longer sequences or fewer and shorter needles."
            )
