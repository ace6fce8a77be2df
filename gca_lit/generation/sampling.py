"""Text continued: read what is there into a state, then one token after another, each at constant work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor

from gca_lit import scoring

AHEAD = 8
"""Tokens that a CUDA device has queued when the host waits for one: a chunk's end takes the host as long as some."""


class Network(scoring.Network, Protocol):
    """What generation asks of a model; lengths are text tokens."""

    @property
    def max_length(self) -> int | None: ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. A filter that is null lets all tokens through.

    Args:
        max_new_tokens: most tokens that are generated; 0 only reads.
        temperature: divides the logits; 0 takes the most probable token (greedy).
        top_k: only the k most probable tokens, and those that tie with the last of them.
        top_p: of these, the fewest most probable tokens that together have at least this probability.
        min_p: only tokens that have at least this share of the highest probability.
        repetition_penalty: makes tokens generated before less probable: their positive logits are divided by it, their
            negative ones multiplied. Tokens of the prompt count as not generated: a long one has nearly all of them.
        seed: of the random numbers; the same seed gives the same tokens.
        stop: texts that end the generation, and are not part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"sampling.max_new_tokens must not be negative, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"sampling.temperature must be 0 (greedy) or a positive number, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sampling.top_k must be at least 1, or null, got {self.top_k}")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"sampling.{name} must be above 0 and at most 1, or null, got {share}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"sampling.repetition_penalty must be a positive number, got {self.repetition_penalty}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"sampling.seed must lie between 0 and 2**63 - 1, got {self.seed}")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"sampling.stop must be a list of texts that are not empty, got {self.stop!r}")


def check_length(model: Network, tokens: int, sampling: Sampling) -> None:
    """Raise ValueError when `tokens` to read and those to generate are more than the attention takes."""
    if model.max_length is not None and tokens + sampling.max_new_tokens > model.max_length:
        raise ValueError(
            f"the attention takes at most max_length = {model.max_length:,} tokens, but {tokens:,} are to be read and "
            f"sampling.max_new_tokens is {sampling.max_new_tokens:,}: shorten the prompt, or set another max_length"
        )


@torch.no_grad()
def read(
    model: Network, tokens: Tensor, state: Any, segment: int, progress: Callable[[int], object] = lambda tokens: None
) -> tuple[Any, Tensor]:
    """Let `state` go on over `tokens`; only the last one is read, before it the model only writes its memory.

    Args:
        tokens: [B, T] of any integer type on any device, T at least 1.
        state: of the text before; it must not be used again.
        segment: text tokens of one forward, rounded down to whole chunks (at least one) when the model has chunks.
        progress: called with the number of tokens of each segment that is done.

    Returns:
        the state behind the last token, and the logits [B, V] of the next one.
    """
    T = tokens.shape[1]
    if T == 0:
        raise ValueError("there is nothing to read: give at least one token")
    if segment < 1:
        raise ValueError(f"segment must be at least 1 token, got {segment}")
    if model.chunk_size:
        segment = max(1, segment // model.chunk_size) * model.chunk_size
    for start in range(0, T, segment):
        stop = min(start + segment, T)
        step = model.step(tokens[:, start:stop].long(), state, read="last" if stop == T else "none")
        state = step.state
        progress(stop - start)
    return state, _next_logits(model, step)


@torch.no_grad()
def generate(
    model: Network, state: Any, logits: Tensor, sampling: Sampling, stop_ids: Collection[int] = ()
) -> Iterator[int]:
    """Yield new tokens one at a time, up to `max_new_tokens` or the first of `stop_ids`, which is not yielded.

    Stop texts are not looked for: they are text, and this is tokens. A CUDA device is up to AHEAD tokens ahead of
    the one that is yielded.

    Args:
        state, logits: what `read` returned, of a batch of 1; the state must not be used again.
    """
    if len(logits) != 1:
        raise ValueError(f"generate continues one text at a time, got a batch of {len(logits)}")
    coming = _continued(model, state, logits, sampling)
    for token in _ahead(coming, logits.device) if logits.is_cuda else map(int, coming):
        if token in stop_ids:
            return
        yield token


def _continued(model: Network, state: Any, logits: Tensor, sampling: Sampling) -> Iterator[Tensor]:
    """The new tokens, [] each, where the logits are."""
    sampler = Sampler(sampling, logits)
    for left in reversed(range(sampling.max_new_tokens)):
        chosen = sampler.choose(logits[0])
        yield chosen
        if left:
            step = model.step(chosen.view(1, 1), state, read="last")
            state, logits = step.state, _next_logits(model, step)


def _next_logits(model: Network, step: Any) -> Tensor:
    """[B, V] behind the last token that was read."""
    logits: Tensor = model.logits(step.hidden) if step.logits is None else step.logits
    return logits[:, -1]


def _ahead(numbers: Iterator[Tensor], device: torch.device) -> Iterator[int]:
    """`numbers` [] of a CUDA device, each waited for when the work for those behind it has been queued."""
    places = torch.empty(AHEAD + 1, dtype=torch.int64, pin_memory=True).unbind()
    slots = cycle([(place, torch.cuda.Event()) for place in places])
    queued: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for number, (there, arrived) in zip(numbers, slots, strict=False):
        there.copy_(number, non_blocking=True)
        arrived.record(torch.cuda.current_stream(device))
        queued.append((there, arrived))
        if len(queued) > AHEAD:
            yield _arrived(*queued.popleft())
    while queued:
        yield _arrived(*queued.popleft())


def _arrived(number: Tensor, event: torch.cuda.Event) -> int:
    event.synchronize()
    return int(number)


class Sampler:
    """Chooses token after token of one text, with random numbers of its own.

    Args:
        sampling: how.
        like: logits [..., V], for the size of the vocabulary and the device.
    """

    def __init__(self, sampling: Sampling, like: Tensor) -> None:
        self.sampling = sampling
        self._random = torch.Generator(like.device).manual_seed(sampling.seed)
        self._generated = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token [] from its logits [V]; of equal most probable ones greedy choice takes the lowest."""
        penalty = self.sampling.repetition_penalty
        if self.sampling.temperature == 0 and penalty == 1:
            return logits.argmax()
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if penalty != 1:
            weakened = torch.where(scores > 0, scores / penalty, scores * penalty)
            scores = torch.where(self._generated, weakened, scores)
        if self.sampling.temperature == 0:
            chosen = scores.argmax()
        else:
            chosen = torch.multinomial(self.probabilities(scores), 1, generator=self._random)[0]
        if penalty != 1:
            self._generated.index_fill_(0, chosen.view(1), True)  # indexing with a number would wait for the device
        return chosen

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores [V] -> probabilities [V], 0 for every token that a filter leaves out."""
        top_k, top_p, min_p = self.sampling.top_k, self.sampling.top_p, self.sampling.min_p
        scores = (scores - scores.max()) / max(self.sampling.temperature, 1e-30)  # neither overflows in fp32
        if top_k is not None and top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
        shares = scores.softmax(0)
        if top_p is not None and top_p < 1:
            ordered, order = shares.sort(descending=True, stable=True)
            before = ordered.cumsum(0) - ordered
            shares = shares.scatter(0, order, ordered.masked_fill(before >= top_p, 0.0))
        if min_p is not None:
            shares = shares.masked_fill(shares < min_p * shares.max(), 0.0)
        return shares / shares.sum()
