"""What a model retrieves in one document: the chunks that serve each chunk, and what can be counted about them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gca_lit.memory.base import ChunkStore
from gca_lit.scoring import IGNORED, score

LABEL = re.compile(r"\\label\{([^{}]+)\}")
REFERENCE = re.compile(r"\\(?:eq)?ref\{([^{}]+)\}")
CUT = "\ufffd"
"""What a decoder writes for a character that is not whole."""


@dataclass(frozen=True)
class Trace:
    """What each retrieval group selected for each chunk of a document of N chunks.

    texts: of each chunk; joined they are the document.
    ids: int64 [G, N, K], on the CPU; entry s holds the chunks that serve chunk s, best first; -1 is an empty slot.
    weights: float32 [G, N, K], zero where the slot is empty.
    tokens: of the document.
    chunk_size: text tokens of a chunk.
    window: how many chunks before its own the self-attention of a row can see, the last of them in part.
    """

    texts: list[str]
    ids: Tensor
    weights: Tensor
    tokens: int
    chunk_size: int
    window: int


def refuse_without_retrieval(model: Any) -> None:
    """Raise ValueError, naming the backend, when `model` has no chunks to select."""
    if model.chunk_size is None:
        name = model.describe()["backend"]
        raise ValueError(f"the backend {name} retrieves nothing: a trace needs one that does, such as gca")


def trace(
    model: Any, tokens: Tensor, decode: Callable[[list[int]], str], segment: int, store: ChunkStore | None
) -> Trace:
    """Stream a document through `model`, which is in evaluation mode, and keep every selection.

    Args:
        model: speaks the network protocol, and describes itself.
        tokens: int64 [T] on any device, at least one.
        decode: token ids -> text.
        segment: text tokens of one forward.
        store: where chunk K/V go; the model empties it first.

    Raises:
        ValueError: the backend retrieves nothing, or there are no tokens.
    """
    refuse_without_retrieval(model)
    if not len(tokens):
        raise ValueError("there are no tokens to trace")
    chunk_size, window = model.chunk_size, model.describe()["window"] or 0
    targets = torch.full((1, len(tokens)), IGNORED)
    targets[0, -1] = 0  # any: up to the last target everything is read
    parts = score(model, tokens[None], targets, segment, store, read_from=0).retrieved
    N, shape = math.ceil(len(tokens) / chunk_size), [selected.shape[-1] for selected, _ in parts[0].groups]
    ids = torch.full((len(shape), N, max(shape)), -1)
    weights = torch.zeros(ids.shape)
    for part in parts:
        for group, (chosen, weight) in enumerate(part.groups):
            served = slice(part.first_chunk, min(part.first_chunk + chosen.shape[1], N))
            entries = slice(0, served.stop - served.start)
            ids[group, served], weights[group, served] = chosen[0, entries], weight[0, entries].float()
    texts = chunk_texts(tokens.tolist(), chunk_size, decode)
    return Trace(texts, ids, weights, len(tokens), chunk_size, math.ceil((window - 1) / (chunk_size + 1)))


def chunk_texts(tokens: list[int], size: int, decode: Callable[[list[int]], str]) -> list[str]:
    """The text of each chunk of `size` tokens; a character that a border cuts stands in the chunk where it begins."""
    texts, start = [], 0
    for end in range(size, len(tokens) + size, size):
        stop = max(start, min(end, len(tokens)))
        ends = range(stop, min(stop + 3, len(tokens)) + 1)
        stop = next((whole for whole in ends if not decode(tokens[start:whole]).endswith(CUT)), stop)
        texts.append(decode(tokens[start:stop]))
        start = stop
    return texts


def measure(found: Trace) -> list[dict[str, Any]]:
    """Of each group, where it looks; shares are None where there is nothing to count.

    chunks: with a selection.
    recent: share of the chunks, of those that could look beyond the window, that select inside of it alone.
    recent_weight: the weight that those chunks give to the window, on average.
    recent_chance: the same for chunks that are chosen at random.
    entropy, entropy_uniform: of the weights in nats, on average, and if all weights were equal.
    distance: between a chunk and what it selects, in chunks, weighted, on average.
    references: see `measure_references`.
    """
    pairs = find_references(found.texts)
    return [
        _measure_group(ids, weights, found.window) | {"references": measure_references(ids, found.window, pairs)}
        for ids, weights in zip(found.ids, found.weights.double(), strict=True)
    ]


def _measure_group(ids: Tensor, weights: Tensor, window: int) -> dict[str, Any]:
    chunk = torch.arange(len(ids))
    distance, filled = chunk[:, None] - ids, ids >= 0
    some = filled.any(-1)
    judged = some & (chunk > window)
    recent = distance <= window
    return {
        "chunks": int(some.sum()),
        "recent": _mean((recent | ~filled).all(-1)[judged]),
        "recent_weight": _mean((weights * recent).sum(-1)[judged]),
        "recent_chance": _mean(max(window - 1, 0) / (chunk - 1)[judged]),  # chunk s can select those up to s - 2
        "entropy": _mean(torch.special.entr(weights).sum(-1)[some]),
        "entropy_uniform": _mean(filled.sum(-1)[some].double().log()),
        "distance": _mean((weights * distance).sum(-1)[some]),
    }


def find_references(texts: list[str]) -> list[tuple[int, int]]:
    r"""(chunk of a reference, chunk of its label): each \ref{X} and \eqref{X} of a LaTeX document with its \label{X}.

    Both stand in the chunk where they begin. A pair of chunks comes once.
    """
    starts = list(accumulate((len(text) for text in texts), initial=0))[:-1]
    text = "".join(texts)

    def chunk_of(found: re.Match[str]) -> int:
        return bisect_right(starts, found.start()) - 1

    labels = {found[1]: chunk_of(found) for found in LABEL.finditer(text)}
    return sorted({(chunk_of(found), labels[found[1]]) for found in REFERENCE.finditer(text) if found[1] in labels})


def measure_references(ids: Tensor, window: int, pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """How often a group with `ids` [N, K] selects the chunk of a label, for references to labels before the window.

    count: of such pairs of chunks.
    found: share whose label is among the chunks that serve the reference.
    found_next: the same for the chunk behind it, whose selection was made when the reference had been read.
    chance: what as many chunks drawn at random from all visible ones would find.
    nearest: what the nearest chunks outside of the window, as many, would find.
    """
    outside = [(chunk, label) for chunk, label in pairs if label < chunk - window]
    slots = (ids >= 0).sum(-1).tolist()
    behind = [(chunk + 1, label) for chunk, label in outside if chunk + 1 < len(ids)]
    return {
        "count": len(outside),
        "found": _share([label in ids[chunk] for chunk, label in outside]),
        "found_next": _share([label in ids[chunk] for chunk, label in behind]),
        "chance": _share([slots[chunk] / (chunk - 1) for chunk, _ in outside]),
        "nearest": _share([label >= chunk - window - slots[chunk] for chunk, label in outside]),
    }


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def _share(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None
