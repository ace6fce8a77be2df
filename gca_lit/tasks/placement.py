"""Shared placement helpers: write templates, scatter needles, lay pieces into a haystack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from string import Formatter

import torch
from torch import Tensor

from gca_lit.tasks.base import Encode


def check_template(owner: str, template: str, fields: frozenset[str]) -> None:
    """Raise ValueError unless `template` holds each of `fields` once and no other."""
    found = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    if sorted(found) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in sorted(fields)) or "no field"
        raise ValueError(f"{owner}: the template {template!r} must hold {wanted}, each once and no other.")


def write(encode: Encode, template: str, **fields: Sequence[str]) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """Fill `template`, each literal and each piece of a field encoded on its own.

    Returns the tokens, and the [start, stop) token span of each field.
    """
    tokens: list[int] = []
    spans: dict[str, tuple[int, int]] = {}
    for literal, field, _, _ in Formatter().parse(template):
        if literal:
            tokens += encode(literal)
        if field is not None:
            start = len(tokens)
            tokens += encode_pieces(encode, fields[field])
            spans[field] = (start, len(tokens))
    return tokens, spans


def encode_pieces(encode: Encode, pieces: Sequence[str]) -> list[int]:
    """Encode each piece on its own and join the tokens."""
    return [token for piece in pieces for token in encode(piece)]


def scatter_room(count: int, longest: int) -> int:
    """Tokens in which `scatter` can place `count` needles of at most `longest` tokens, wherever the fixed one is."""
    return longest if count == 1 else (count + 1) * longest


def scatter(rng: Random, sizes: Sequence[int], room: int, fixed: int, start: int) -> list[int]:
    """Starts of needles of `sizes` tokens within [0, room), apart: needle `fixed` at `start`, the others at random.

    `room` must be at least scatter_room(len(sizes), max(sizes)).
    """
    others = [i for i in range(len(sizes)) if i != fixed]
    rng.shuffle(others)
    stop = start + sizes[fixed]
    before: list[int] = []
    after: list[int] = []
    free_before, free_after = start, room - stop
    for i in others:
        ways_before, ways_after = max(0, free_before - sizes[i] + 1), max(0, free_after - sizes[i] + 1)
        if rng.randrange(ways_before + ways_after) < ways_before:
            before.append(i)
            free_before -= sizes[i]
        else:
            after.append(i)
            free_after -= sizes[i]
    placed = {fixed: start}
    placed.update(zip(before, spread(rng, [sizes[i] for i in before], 0, start), strict=True))
    placed.update(zip(after, spread(rng, [sizes[i] for i in after], stop, room), strict=True))
    return [placed[i] for i in range(len(sizes))]


def spread(rng: Random, sizes: Sequence[int], begin: int, end: int) -> list[int]:
    """Starts of pieces of `sizes` tokens in this order within [begin, end), with random gaps."""
    gaps = sorted(rng.randint(0, end - begin - sum(sizes)) for _ in sizes)
    return [begin + gap + sum(sizes[:i]) for i, gap in enumerate(gaps)]


def lay(length: int, pieces: Sequence[tuple[int, Sequence[int]]], fill: Callable[[int], Tensor]) -> Tensor:
    """int64 [length]: every (start, tokens) of `pieces` in its place, and the text fill(n) flowing around them."""
    text = fill(length - sum(len(piece) for _, piece in pieces))
    parts, at, used = [], 0, 0
    for start, piece in sorted(pieces):
        gap = start - at
        assert gap >= 0 and start + len(piece) <= length, "pieces must lie apart and inside"
        parts += [text[used : used + gap], torch.tensor(piece, dtype=torch.int64)]
        at, used = start + len(piece), used + gap
    return torch.cat((*parts, text[used:]))
