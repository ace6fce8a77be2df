"""A passage that was read comes again: what follows is copied from where it stood."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.tasks.base import IGNORED, Episode, Haystack, Task


class Recitation(Task):
    """The haystack's own text is the needle: a passage of it comes again, and behind its first tokens all are asked.

    With `align` the cue ends exactly on a chunk border. The second half of a dense row is made of passages of the
    first, from random places, each asked for half to twice as many tokens.

    cue: first tokens of the passage, which only tell where to look.
    answer: tokens that are asked.
    """

    name = "recitation"

    def __init__(self, cue: int = 16, answer: int = 48) -> None:
        if cue < 1 or answer < 1:
            raise ValueError(f"recitation: cue and answer must be at least 1 token each, not {cue} and {answer}.")
        self.cue, self.answer = cue, answer

    def min_length(self) -> int:
        step = self.align or 1
        return -(-(2 * self.cue + self.answer) // step) * step + self.answer

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        self.check_length(length)
        drawn = self.rng("episode", length, index).random()
        depth = drawn if depth is None else depth
        if not 0 <= depth <= 1:
            raise ValueError(f"{self.name}: depth must be between 0 (the start) and 1 (right before the question).")
        size, step = self.cue + self.answer, self.align or 1
        begin = (length - self.answer) // step * step
        again, latest = begin - self.cue, begin - self.cue - size
        start = round(depth * latest)
        text = haystack.take(index, length - size)
        tokens = torch.cat((text[:again], text[start : start + size], text[again:]))
        targets = torch.full((length,), IGNORED, dtype=torch.int64)
        targets[begin - 1 : begin - 1 + self.answer] = tokens[begin : begin + self.answer]
        return self._described(tokens, targets, (start, again, size), start / latest if latest else 0.0)

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        self.check_length(length)
        if text.shape != (length,):
            raise ValueError(f"{self.name}: a row of {length} tokens needs as much text, not {tuple(text.shape)}.")
        rng = self.rng("row", length, index)
        tokens, half = text.clone(), length // 2
        targets = torch.full((length,), IGNORED, dtype=torch.int64)
        at, last = half, (0, half, 0)
        while at < length:
            size = self.cue + rng.randint(max(1, self.answer // 2), 2 * self.answer)
            size = min(size, half, length - at)
            start = rng.randrange(half - size + 1)
            tokens[at : at + size] = text[start : start + size]
            if size > self.cue:
                targets[at + self.cue - 1 : at + size - 1] = text[start + self.cue : start + size]
                last = start, at, size
            at += size
        admissible = half - last[2]
        return self._described(tokens, targets, last, last[0] / admissible if admissible else 0.0)

    def _described(self, tokens: Tensor, targets: Tensor, last: tuple[int, int, int], depth: float) -> Episode:
        """last: where the last passage stands first and again, and its tokens."""
        start, again, size = last
        needle, answer = (start + self.cue, start + size), (again + self.cue, again + size)
        return Episode(tokens, targets, (needle,), answer[0] - 1, answer, depth, answer[0] - needle[1])
