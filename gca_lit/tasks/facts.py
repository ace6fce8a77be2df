"""What needles say and questions ask, before it is written down; and random numbers and names that never repeat."""

from __future__ import annotations

import string
from random import Random
from typing import NamedTuple

SEPARATOR = ","
LETTERS = string.digits + string.ascii_uppercase + SEPARATOR  # everything that facts and queries are made of


class Fact(NamedTuple):
    """What one needle says."""

    key: str
    value: str


class Query(NamedTuple):
    """What one question is about: the pieces that name what is sought, the answer's pieces, the facts in hop order."""

    sought: tuple[str, ...]
    answer: tuple[str, ...]
    facts: tuple[int, ...]


def joined(words: list[str]) -> tuple[str, ...]:
    """The pieces of a list: the words with separators between them."""
    return tuple(piece for word in words for piece in (SEPARATOR, word))[1:]


def draw_numbers(rng: Random, count: int, digits: int) -> list[str]:
    """`count` different numbers of `digits` decimal digits, leading zeros kept."""
    return _draw_words(rng, count, string.digits, digits)


def draw_names(rng: Random, count: int, letters: int) -> list[str]:
    """`count` different words of `letters` capital letters."""
    return _draw_words(rng, count, string.ascii_uppercase, letters)


def _draw_words(rng: Random, count: int, alphabet: str, size: int) -> list[str]:
    if not 1 <= size <= 12:
        raise ValueError(f"Numbers and names must have 1 to 12 digits or letters, not {size}.")
    base = len(alphabet)
    if count > base**size:
        raise ValueError(f"{count} needles need as many different words, {size} digits or letters give {base**size}.")
    return ["".join(alphabet[n // base**i % base] for i in range(size)) for n in rng.sample(range(base**size), count)]
