"""Many needles with keys, asked for by key: one at a time or several."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gca_lit.tasks.facts import Fact, Query, draw_names, draw_values, joined
from gca_lit.tasks.needle_task import NeedleTask


class KeyedNeedles(NeedleTask):
    """Needles that each give a number to a name: what the tasks of this file share."""

    def __init__(
        self,
        needle: str,
        question: str,
        prompt: str,
        keys: int,
        key_letters: int | None,
        digits: int | None,
        every: int,
        near: float,
        needles_per_row: int | None,
    ) -> None:
        super().__init__(needle, question, prompt, keys, 1, every, near, needles_per_row)
        self.keys, self.key_letters, self.digits = keys, key_letters, digits

    def draw(self, rng: Random, chains: int) -> list[Fact]:
        names = draw_names(rng, chains, self.key_letters)
        values = draw_values(rng, chains, self.digits, names)
        return [Fact(name, value) for name, value in zip(names, values, strict=True)]


class MultiKey(KeyedNeedles):
    """`keys` needles, each a name with a number; the question names one.

    The multi-key test of the GCA paper (6 pairs of random tokens; it scores the last token alone) and RULER's
    niah_multikey_1 (there 4 keys in essays; with many keys it comes near niah_multikey_2).

    needle, question: templates with `{key}` and `{value}`, and with `{key}`; prompt: what the answer is predicted from.
    keys: needles in an evaluation episode. key_letters, digits: length of names and numbers; None takes English
        words instead.
    every, near, needles_per_row: dense rows, see NeedleTask.
    """

    name = "multi_key"

    def __init__(
        self,
        needle: str = "|{key}={value}|",
        question: str = "|{key}?",
        prompt: str = "=",
        keys: int = 6,
        key_letters: int | None = 2,
        digits: int | None = 5,
        every: int = 1,
        near: float = 0.1,
        needles_per_row: int | None = None,
    ) -> None:
        super().__init__(needle, question, prompt, keys, key_letters, digits, every, near, needles_per_row)

    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        return Query((facts[chain].key,), (facts[chain].value,), (chain,))


class MultiQuery(KeyedNeedles):
    """`keys` needles as in MultiKey; the question names `queries` of them, and their numbers, in order, are the answer.

    The multi-query test of HSA-UltraLong (6 pairs, 2 queries, all right) and RULER's niah_multiquery (4 keys, all
    asked). Separators in the answer are scored with it. The depth of an episode is that of the first needle named.

    queries: names in one question, at least 2 and at most `keys`. The rest as in MultiKey.
    """

    name = "multi_query"

    def __init__(
        self,
        needle: str = "|{key}={value}|",
        question: str = "|{key}?",
        prompt: str = "=",
        keys: int = 6,
        queries: int = 2,
        key_letters: int | None = 2,
        digits: int | None = 5,
        every: int = 1,
        near: float = 0.1,
        needles_per_row: int | None = None,
    ) -> None:
        if queries < 2:
            raise ValueError(f"{self.name}: queries must be at least 2, not {queries}; use MultiKey to ask for one.")
        self.queries = self.fewest_chains = queries
        super().__init__(needle, question, prompt, keys, key_letters, digits, every, near, needles_per_row)

    def ask(self, rng: Random, facts: Sequence[Fact], chain: int) -> Query:
        others = [i for i in range(len(facts)) if i != chain]
        asked = (chain, *rng.sample(others, self.queries - 1))
        keys, values = [facts[i].key for i in asked], [facts[i].value for i in asked]
        return Query(joined(keys), joined(values), asked)
