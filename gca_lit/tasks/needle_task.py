"""What all needle tasks share: where needles, questions and answers stand, in an episode and in a dense row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from random import Random
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from gca_lit.tasks.base import IGNORED, Encode, Episode, Haystack, Task
from gca_lit.tasks.facts import Fact, Query, most_tokens
from gca_lit.tasks.placement import check_template, encode_pieces, lay, scatter, scatter_room, spread, write

UNIT = 64  # tokens that stand for a chunk where no chunk size is given


class Question(NamedTuple):
    """An encoded question; `key` is the offset of the last token that names what is sought."""

    text: list[int]
    key: int
    prompt: list[int]
    answer: list[int]
    facts: tuple[int, ...]


class Spot(NamedTuple):
    """Where a question ends (exclusive) and where its prompt begins."""

    end: int
    prompt: int


class Sizes(NamedTuple):
    """The most tokens that a needle, a question, and a prompt with its answer can take."""

    needle: int
    question: int
    answer: int


class NeedleTask(Task):
    """Base of the tasks that hide needles. Facts come in chains of `hops`; a subclass draws and asks them.

    With `align` a question ends exactly on a chunk border, and prompt and answer open a later chunk: the next one, or
    after `gap` whole chunks of haystack where an answer takes several retrievals. Without, the three stand together.

    needle, question, prompt: templates; literals and fields are encoded each on its own.
    chains: chains in an evaluation episode; the question is about one of them.
    every: dense rows ask once in `every` chunks of their second part, or in as many as question, gap and answer take;
        without `align`, questions and answers fill 1 / (2 every) of it at random gaps.
    near: share of the rows whose first question has its needle close before, half of them in the last chunk and half
        in the last 3; otherwise all needles lie more than 3 chunks away where the row has room, and each question draws
        its needle with replacement.
    needles_per_row: needles in a dense row; None grows with the row, one in 4 chunks, at least 2 chains, at most 32.
    """

    needle_fields: ClassVar[frozenset[str]] = frozenset({"key", "value"})
    question_fields: ClassVar[frozenset[str]] = frozenset({"key"})
    repeated: ClassVar[Literal["key", "value"]] = "value"  # the part of a needle that the answer repeats
    fewest_chains: int = 2

    def __init__(
        self,
        needle: str,
        question: str,
        prompt: str,
        chains: int,
        hops: int,
        every: int,
        near: float,
        needles_per_row: int | None,
        landmark_reads: Literal["previous", "own"] = "previous",
    ) -> None:
        check_template(self.name, needle, self.needle_fields)
        check_template(self.name, question, self.question_fields)
        if hops < 1 or every < 1 or not 0 <= near <= 1:
            raise ValueError(f"{self.name}: hops and every must be at least 1, and near a share between 0 and 1.")
        for setting, needles in (("an episode", chains * hops), ("needles_per_row", needles_per_row)):
            if needles is not None and needles < self.fewest_chains * hops:
                raise ValueError(f"{self.name}: {setting} must have {self.fewest_chains * hops} needles or more.")
        self.needle, self.question, self.prompt = needle, question, prompt
        self.chains, self.hops, self.every, self.near = chains, hops, every, near
        self.needles_per_row, self.landmark_reads = needles_per_row, landmark_reads

    @abstractmethod
    def draw(self, rng: Random, chains: int) -> list[Fact]:
        """`chains` chains of `hops` facts, one after another, keys and values all different."""

    @abstractmethod
    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        """A question about chain number `chain`. Its texts have the same number of letters whatever was drawn."""

    def bind(self, seed: int, encode: Encode, align: int | None) -> Self:
        bound = super().bind(seed, encode, align)
        bound.__dict__.pop("sizes", None)  # another encode, other sizes
        try:
            self.draw(Random(0), max(self.chains, (self.needles_per_row or 0) // self.hops))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if align is not None and bound.sizes.answer > align:
            raise ValueError(
                f"{self.name}: prompt and answer take up to {bound.sizes.answer} tokens, more than a chunk of {align}; "
                "use a larger chunk size or a shorter answer."
            )
        return bound

    @property
    def gap(self) -> int:
        """Whole chunks of haystack between the end of a question and its answer's chunk."""
        return self.hops - 1 if self.align and self.landmark_reads == "previous" else 0

    def min_length(self) -> int:
        return self._shortest(max(self.chains, (self.needles_per_row or 0) // self.hops))

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        self.check_length(length)
        rng = self.rng("episode", length, index)
        drawn = rng.random()
        depth = drawn if depth is None else depth
        if not 0 <= depth <= 1:
            raise ValueError(f"{self.name}: depth must be between 0 (the start) and 1 (right before the question).")
        facts = self.draw(rng, self.chains)
        question = self._write_question(self.ask(rng, facts, rng.randrange(self.chains)))
        answer_size = len(question.prompt) + len(question.answer)
        if self.align is None:
            spot = Spot(length - answer_size, length - answer_size)
        else:
            chunk = (length - answer_size) // self.align
            spot = Spot((chunk - self.gap) * self.align, chunk * self.align)
        room = spot.end - len(question.text)
        needles, spans = self._write_needles(facts)
        sizes = [len(needle) for needle in needles]
        first = question.facts[0]
        starts = scatter(rng, sizes, room, first, round(depth * (room - sizes[first])))
        return self._assemble(length, needles, spans, starts, [question], [spot], lambda n: haystack.take(index, n))

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        self.check_length(length)
        if text.shape != (length,):
            raise ValueError(
                f"{self.name}: a row of {length} tokens needs text of that shape, not {tuple(text.shape)}."
            )
        rng = self.rng("row", length, index)
        chains = self._row_chains(length)
        facts = self.draw(rng, chains)
        spots = self._spots(rng, length, self._room(chains))
        questions = [self._write_question(self.ask(rng, facts, rng.randrange(chains))) for _ in spots]
        needles, spans = self._write_needles(facts)
        sizes = [len(needle) for needle in needles]
        first = questions[0].facts[0]
        room = spots[0].end - self.sizes.question
        chunk = self.align or UNIT
        margin = 3 * chunk
        if rng.random() < self.near:
            margin = rng.choice((chunk, margin))
            start = rng.randint(max(0, room - max(margin, sizes[first])), room - sizes[first])
        else:
            room -= max(0, min(margin, room - 2 * self._room(chains)))
            start = rng.randint(0, room - sizes[first])
        starts = scatter(rng, sizes, room, first, start)
        return self._assemble(length, needles, spans, starts, questions, spots, lambda n: text[:n])

    @cached_property
    def sizes(self) -> Sizes:
        """Raises ValueError when there is no prompt."""
        if not self.prompt:
            raise ValueError(f"{self.name}: the prompt must have a token or more, for the answer is predicted from it.")

        def size(template: str, pieces: Sequence[str]) -> int:
            return len(write(self.encode, template, key=(), value=())[0]) + most_tokens(self.encode, pieces)

        facts = self.draw(Random(0), self.fewest_chains)
        query = self.ask(Random(0), facts, 0)
        return Sizes(
            needle=max(size(self.needle, fact) for fact in facts),
            question=size(self.question, query.sought),
            answer=len(self.encode(self.prompt)) + most_tokens(self.encode, query.answer),
        )

    def _room(self, chains: int) -> int:
        return scatter_room(chains * self.hops, self.sizes.needle)

    def _shortest(self, chains: int) -> int:
        """Shortest length, in tokens, that holds `chains` chains and one question."""
        end = self._room(chains) + self.sizes.question
        if self.align is not None:
            end = (ceil_div(end, self.align) + self.gap) * self.align
        return end + self.sizes.answer

    def _row_chains(self, length: int) -> int:
        """Chains of a dense row; as many as leave its second half to the questions when their number is free."""
        if self.needles_per_row is not None:
            return self.needles_per_row // self.hops
        chains = max(self.fewest_chains, min(32, length // (4 * (self.align or UNIT))) // self.hops)
        while chains > self.fewest_chains and self._shortest(chains) > length // 2:
            chains -= 1
        return chains

    def _spots(self, rng: Random, length: int, room: int) -> list[Spot]:
        """The questions of a dense row: in its second half, or later where the needles take more."""
        size = self.sizes.question + self.sizes.answer
        if self.align is None:
            begin = max(room, min(length // 2, length - size))
            count = max(1, (length - begin) // (2 * self.every * size))
            starts = spread(rng, [size] * count, begin, length)
            return [Spot(start + self.sizes.question, start + self.sizes.question) for start in starts]
        last = (length - self.sizes.answer) // self.align - self.gap
        first = max(ceil_div(last, 2), ceil_div(room + self.sizes.question, self.align))
        step = max(self.every, self.gap + ceil_div(size, self.align))
        return [
            Spot(n * self.align, (n + self.gap) * self.align)
            for n in range(first + (last - first) % step, last + 1, step)
        ]

    def _write_needles(self, facts: Sequence[Fact]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        written = [write(self.encode, self.needle, key=(fact.key,), value=(fact.value,)) for fact in facts]
        return [tokens for tokens, _ in written], [spans[self.repeated] for _, spans in written]

    def _write_question(self, query: Query) -> Question:
        text, spans = write(self.encode, self.question, key=query.sought, value=query.sought)
        key = max((stop for _, stop in spans.values()), default=len(text)) - 1
        return Question(text, key, self.encode(self.prompt), encode_pieces(self.encode, query.answer), query.facts)

    def _assemble(
        self,
        length: int,
        needles: Sequence[list[int]],
        spans: Sequence[tuple[int, int]],
        starts: Sequence[int],
        questions: Sequence[Question],
        spots: Sequence[Spot],
        fill: Callable[[int], Tensor],
    ) -> Episode:
        """Lay everything out in tokens of `fill`, score the answers, and describe the last question."""
        pieces = list(zip(starts, needles, strict=True))
        targets = torch.full((length,), IGNORED, dtype=torch.int64)
        for question, spot in zip(questions, spots, strict=True):
            pieces.append((spot.end - len(question.text), question.text))
            pieces.append((spot.prompt, question.prompt + question.answer))
            begin = spot.prompt + len(question.prompt)
            targets[begin - 1 : begin - 1 + len(question.answer)] = torch.tensor(question.answer)
        question, spot = questions[-1], spots[-1]
        asked = spot.end - len(question.text)
        begin = spot.prompt + len(question.prompt)
        first = question.facts[0]
        admissible = asked - len(needles[first])
        return Episode(
            tokens=lay(length, pieces, fill),
            targets=targets,
            needles=tuple((starts[i] + spans[i][0], starts[i] + spans[i][1]) for i in question.facts),
            asked=asked + question.key,
            answer=(begin, begin + len(question.answer)),
            depth=starts[first] / admissible if admissible else 0.0,
            distance=begin - starts[first] - len(needles[first]),
        )


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
