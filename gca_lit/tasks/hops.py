"""Needles that point to each other: an answer takes several retrievals."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from gca_lit.tasks.facts import Fact, Query, draw_names, draw_values, joined
from gca_lit.tasks.needle_task import NeedleTask


class MultiHop(NeedleTask):
    """Chains of names, A is B, B is C, that end in a number; the question names A, and the number is the answer.

    The 2-hop test of the GCA paper: 2 chains of 2 hops, one of them a distractor, needles in random order. There the
    answer repeats the whole path; here the names between are not given away, and needles and questions are those of
    MultiKey, so that a model trained on it can go on here. RULER's vt comes nearest (see VariableTracking).

    needle, question, prompt: as in MultiKey. chains: in an evaluation episode, one is asked. hops: needles of a chain.
    landmark_reads: the model's setting; with "previous" hops - 1 whole chunks of haystack stand between question and
        answer chunk (with align), with "own" none.
    key_letters, digits: length of names and numbers; None takes English words instead.
    every, near, needles_per_row: dense rows, see NeedleTask.
    """

    name = "multi_hop"

    def __init__(
        self,
        needle: str = "|{key}={value}|",
        question: str = "|{key}?",
        prompt: str = "=",
        chains: int = 2,
        hops: int = 2,
        landmark_reads: Literal["previous", "own"] = "previous",
        key_letters: int | None = 2,
        digits: int | None = 5,
        every: int = 1,
        near: float = 0.1,
        needles_per_row: int | None = None,
    ) -> None:
        super().__init__(needle, question, prompt, chains, hops, every, near, needles_per_row, landmark_reads)
        self.key_letters, self.digits = key_letters, digits

    def draw(self, rng: Random, chains: int) -> list[Fact]:
        names = draw_names(rng, chains * self.hops, self.key_letters)
        values = [*names[1:], ""]
        values[self.hops - 1 :: self.hops] = draw_values(rng, chains, self.digits, names)
        return [Fact(name, value) for name, value in zip(names, values, strict=True)]

    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        numbers = tuple(range(chain * self.hops, (chain + 1) * self.hops))
        return Query((facts[numbers[0]].key,), (facts[numbers[-1]].value,), numbers)


class VariableTracking(NeedleTask):
    """Chains of assignments, A = 12345, B = A, C = B; the question names the number, and A,B,C is the answer.

    The variable tracking of HSA-UltraLong (6 variables in 2 chains of 3, needles in random order; it scores the last
    name alone) and RULER's vt (there 1 chain of 5 variables in noise, names in any order; here in chain order).
    The spans in Episode.needles are those of the names, for they are what the answer repeats.

    needle, question: templates with `{key}` and `{value}`, and with `{value}`. hops: variables of a chain, all of them
    retrievals. Separators in the answer are scored with it. The rest as in MultiHop.
    """

    name = "variable_tracking"
    question_fields = frozenset({"value"})
    repeated = "key"

    def __init__(
        self,
        needle: str = "|{key}={value}|",
        question: str = "|{value}?",
        prompt: str = "=",
        chains: int = 2,
        hops: int = 3,
        landmark_reads: Literal["previous", "own"] = "previous",
        key_letters: int | None = 2,
        digits: int | None = 5,
        every: int = 1,
        near: float = 0.1,
        needles_per_row: int | None = None,
    ) -> None:
        super().__init__(needle, question, prompt, chains, hops, every, near, needles_per_row, landmark_reads)
        self.key_letters, self.digits = key_letters, digits

    def draw(self, rng: Random, chains: int) -> list[Fact]:
        names = draw_names(rng, chains * self.hops, self.key_letters)
        values = ["", *names[:-1]]
        values[:: self.hops] = draw_values(rng, chains, self.digits, names)
        return [Fact(name, value) for name, value in zip(names, values, strict=True)]

    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        numbers = tuple(range(chain * self.hops, (chain + 1) * self.hops))
        return Query((facts[numbers[0]].value,), joined([facts[i].key for i in numbers]), numbers)
