"""One needle, one question: the passkey task."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gca_lit.tasks.facts import Fact, Query, draw_values
from gca_lit.tasks.needle_task import NeedleTask


class SingleNeedle(NeedleTask):
    """A random number is hidden once, and asked for.

    The single needle test of the GCA paper (there 5 random tokens after "The passkey is:") and RULER's niah_single_1
    and niah_single_2 (there a 7-digit number, in noise or essays: here the haystack decides). A dense row hides one
    number and all its questions ask for it.

    needle, question: templates with `{value}` and with no field; prompt: what the answer is predicted from.
    digits: decimal digits of the number; None takes an English word. every, near: see NeedleTask.
    """

    name = "single_needle"
    needle_fields = frozenset({"value"})
    question_fields = frozenset()
    fewest_chains = 1

    def __init__(
        self,
        needle: str = "|passkey={value}|",
        question: str = "|passkey?",
        prompt: str = "=",
        digits: int | None = 5,
        every: int = 1,
        near: float = 0.1,
    ) -> None:
        super().__init__(needle, question, prompt, chains=1, hops=1, every=every, near=near, needles_per_row=1)
        self.digits = digits

    def draw(self, rng: Random, chains: int) -> list[Fact]:
        return [Fact("", number) for number in draw_values(rng, chains, self.digits)]

    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        return Query((), (facts[chain].value,), (chain,))
