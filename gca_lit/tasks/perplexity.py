"""Perplexity of held-out documents, the same scored tokens behind a growing left context."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_lit.tasks.base import IGNORED, Episode, Haystack, Task


class Perplexity(Task):
    """A passage of one document, of which the last `scored` tokens are scored; they are the same at every length.

    Episode `index` is the end of one passage of `longest` tokens, so that all left context is of the same document:
    a scored token has at least length - scored tokens before it. Documents shorter than `longest` are left out at every
    length alike. As a question, the answer is the scored span, `asked` the token before it; there are no needles, and
    `depth`, seed and align change nothing.

    longest: the longest evaluation length, in tokens. Results compare across lengths only under one value of it.
    scored: tokens scored at the end; None scores every token that has one before it, for perplexity by position.
    """

    name = "perplexity"

    def __init__(self, longest: int, scored: int | None = 256) -> None:
        if scored is not None and scored < 1:
            raise ValueError(f"perplexity: scored must be at least 1 token, or null for all, not {scored}.")
        self.longest, self.scored = longest, scored
        if longest < self.min_length():
            raise ValueError(f"perplexity: longest must be at least {self.min_length()} tokens, not {longest}.")

    def min_length(self) -> int:
        return 1 + (self.scored or 1)

    def check_haystack(self, haystack: Haystack) -> None:
        """Raise ValueError when no document has `longest` tokens."""
        try:
            haystack.passage(0, self.longest)
        except ValueError as error:
            raise ValueError(f"perplexity: longest is {self.longest:,}, but {error}") from error

    def episode(self, length: int, index: int, haystack: Haystack, depth: float | None = None) -> Episode:
        """See Task. Raises ValueError when `length` is above `longest`, or no document has `longest` tokens, too."""
        self.check_length(length)
        if length > self.longest:
            raise ValueError(f"perplexity: {length} tokens are more than longest = {self.longest}; raise longest.")
        tokens = haystack.passage(index, self.longest)[self.longest - length :].clone()
        begin = 1 if self.scored is None else length - self.scored
        targets = torch.full((length,), IGNORED, dtype=torch.int64)
        targets[begin - 1 : -1] = tokens[begin:]
        return Episode(tokens, targets, (), begin - 1, (begin, length), None, 0)

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        raise NotImplementedError("perplexity has no training rows: train on plain text instead.")
