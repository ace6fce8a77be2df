"""What needles say and questions ask, before it is written down; and random numbers and names that never repeat."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple

from gca_lit.tasks.words import ENGLISH

SEPARATOR = ","
LETTERS = string.digits + string.ascii_uppercase + SEPARATOR  # what facts and queries are made of beside words


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


def draw_names(rng: Random, count: int, letters: int | None) -> list[str]:
    """`count` different names of `letters` capital letters; None takes English words, a space before each."""
    return draw_words(rng, count) if letters is None else _draw_strings(rng, count, string.ascii_uppercase, letters)


def draw_values(rng: Random, count: int, digits: int | None, names: Sequence[str] = ()) -> list[str]:
    """`count` different numbers of `digits` decimal digits, leading zeros kept; None takes words that are no name."""
    return draw_words(rng, count, names) if digits is None else _draw_strings(rng, count, string.digits, digits)


def draw_words(rng: Random, count: int, taken: Sequence[str] = ()) -> list[str]:
    """`count` different English words, a space before each, none of them `taken`."""
    used = set(taken)
    free = [spaced for word in ENGLISH if (spaced := f" {word}") not in used]
    if count > len(free):
        raise ValueError(f"{count} needles need as many different words, there are {len(free)}: use fewer needles")
    return rng.sample(free, count)


def most_tokens(encode: Callable[[str], list[int]], pieces: Iterable[str]) -> int:
    """The most tokens of pieces of these kinds: English words, or strings of as many letters."""
    widest = max(len(encode(letter)) for letter in LETTERS)
    longest = max(len(encode(f" {word}")) for word in ENGLISH)
    return sum(longest if piece.startswith(" ") else widest * len(piece) for piece in pieces)


def _draw_strings(rng: Random, count: int, alphabet: str, size: int) -> list[str]:
    if not 1 <= size <= 12:
        raise ValueError(f"digits and key_letters must be 1 to 12, not {size}")
    base = len(alphabet)
    if count > base**size:
        raise ValueError(
            f"{count} needles need as many different words, {size} digits or letters give {base**size}: use more "
            "digits or key_letters, or fewer needles"
        )
    return ["".join(alphabet[n // base**i % base] for i in range(size)) for n in rng.sample(range(base**size), count)]
