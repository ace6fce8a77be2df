"""Streaming, teacher-forced scoring: any length in segments, logits only where a target asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from gca_lit.memory.base import ChunkStore
    from gca_lit.tasks.base import Episode

IGNORED = -100
LOGIT_ROWS = 1024  # logits [rows, V] held at once


class Network(Protocol):
    """What scoring asks of a model; lengths are text tokens."""

    @property
    def chunk_size(self) -> int | None: ...
    def new_state(self, batch_size: int, store: ChunkStore | None) -> Any: ...
    def step(self, tokens: Tensor, state: Any, read: Any = "all") -> Any: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Retrieved:
    """Selections of one segment that was read, on the CPU.

    first_chunk: the chunk that column 0 of the selections serves; column j serves chunk first_chunk + j.
    groups: of each retrieval group the ids int64 [B, Q, K] (-1 is an empty slot) and the weights [B, Q, K].
    """

    first_chunk: int
    groups: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Score:
    """Every scored token of a batch in order of segment, row and position, on the CPU; S tokens in all.

    rows, positions: int64 [S], where in `targets` the token was scored.
    nll: float32 [S], in nats.
    predictions: int64 [S], the most probable token.
    correct: bool [S], whether it is the target.
    retrieved: the selections of every segment that was read.
    tokens, seconds: text tokens of the whole batch and the time they took.
    bytes: of K/V and landmarks in each tier at the end: "device", "host", "disk".
    """

    rows: Tensor
    positions: Tensor
    nll: Tensor
    predictions: Tensor
    correct: Tensor
    retrieved: tuple[Retrieved, ...]
    tokens: int
    seconds: float
    bytes: dict[str, int]


@torch.no_grad()
def score(
    model: Network,
    tokens: Tensor,
    targets: Tensor,
    segment: int,
    store: ChunkStore | None = None,
    read_from: int | None = None,
) -> Score:
    """Stream `tokens` through `model` and score every target that is not -100.

    tokens, targets: int64 [B, T], on any device; targets[b, t] is the token that follows tokens[b, t].
    segment: text tokens of one forward, rounded down to whole chunks (at least one) when the model has chunks.
    store: where chunk K/V go; the model empties it first. A model with chunks needs one.
    read_from: read every segment from this position to the last scored one, so that their selections are kept.
    Raises ValueError when the shapes differ or `segment` is not positive.
    """
    if tokens.shape != targets.shape:
        raise ValueError(f"score: tokens {tuple(tokens.shape)} and targets {tuple(targets.shape)} must have one shape")
    if segment < 1:
        raise ValueError(f"score: segment must be at least 1 token, got {segment}")
    if model.chunk_size:
        segment = max(1, segment // model.chunk_size) * model.chunk_size
    B, T = tokens.shape
    targets = targets.cpu()
    spans = _spans((targets != IGNORED).any(0), segment, read_from)
    scored, retrieved = [], []
    start_time = _now()
    state = model.new_state(B, store)
    for (start, stop), span in spans:
        step = model.step(tokens[:, start:stop], state, read="none" if span is None else span)
        state = step.state
        if span is not None:
            first, last = start + span.start, start + span.stop
            scored.append(_score_hidden(model, step.hidden, targets[:, first:last], first))
            retrieved.append(_retrieved(step))
    seconds = _now() - start_time
    rows, positions, nll, predictions, correct = (
        [torch.cat(parts) for parts in zip(*scored, strict=True)] if scored else _no_tokens()
    )
    return Score(rows, positions, nll, predictions, correct, tuple(retrieved), B * T, seconds, state.bytes())


def recall(
    score: Score, episode: Episode, chunk_size: int | None, row: int = 0
) -> tuple[bool, bool] | tuple[None, None]:
    """(recall at 1, recall at K) of the needles of `episode`, which is row `row` of the scored batch.

    Counted are the selections of any group that serve the chunks after the one that holds `asked`, up to the answer's.
    At K: every chunk of every needle is in one of them. At 1: for every needle, one of them puts its highest weight on
    a chunk of that needle. (None, None) when there is nothing to judge: the model has no chunks or no selections, the
    question and the answer share a chunk, or a needle is too near to be selectable (a selection that serves chunk s was
    made at the end of chunk s - 1 and sees the chunks up to s - 2).
    """
    needles, groups = _judged(score, episode, chunk_size, row)
    if not groups:
        return None, None
    selected: set[int] = set()
    favourites: set[int] = set()
    for ids, weights in groups:
        best = weights.masked_fill(ids < 0, -torch.inf).argmax(-1, keepdim=True)
        selected.update(ids.flatten().tolist())
        favourites.update(ids.gather(-1, best).flatten().tolist())
    return all(chunks & favourites for chunks in needles), all(chunks <= selected for chunks in needles)


def selection_weights(
    score: Score, episode: Episode, chunk_size: int | None, row: int = 0
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """How each of G retrieval groups weighs the n needles of `episode` in the selections that `recall` counts.

    Returns float32 [G, n], the most weight that one selection puts on the chunks of each needle, in hop order, and
    float32 [G], the entropy in nats of the selection that serves the answer's chunk; (None, None) as `recall`.
    """
    needles, groups = _judged(score, episode, chunk_size, row)
    if not groups:
        return None, None
    on_needles = [
        [(weights * torch.isin(ids, torch.tensor([*chunks]))).sum(-1).max() for chunks in needles]
        for ids, weights in groups
    ]
    entropies = [torch.special.entr(weights[-1, ids[-1] >= 0]).sum() for ids, weights in groups]
    return torch.tensor(on_needles), torch.tensor(entropies)


def _judged(
    score: Score, episode: Episode, chunk_size: int | None, row: int
) -> tuple[list[set[int]], list[tuple[Tensor, Tensor]]]:
    """The chunks of each needle, and of each group the ids and float32 weights [S, K] of the selections that `recall`
    counts, the one that serves the answer's chunk last; no groups when there is nothing to judge."""
    if not chunk_size or not episode.needles:
        return [], []
    first, last = episode.asked // chunk_size + 1, episode.answer[0] // chunk_size
    needles = [set(range(start // chunk_size, (stop - 1) // chunk_size + 1)) for start, stop in episode.needles]
    if any(max(chunks) > last - 2 for chunks in needles):
        return needles, []
    parts = []
    for part in score.retrieved:
        serving = slice(max(first - part.first_chunk, 0), max(last + 1 - part.first_chunk, 0))
        parts.append([(ids[row, serving], weights[row, serving].float()) for ids, weights in part.groups])
    groups = [(torch.cat(ids), torch.cat(w)) for ids, w in (zip(*g, strict=True) for g in zip(*parts, strict=True))]
    return needles, groups if any(len(ids) for ids, _ in groups) else []


def _spans(scored: Tensor, segment: int, read_from: int | None) -> list[tuple[tuple[int, int], slice | None]]:
    """Cut T positions in segments, each with the slice (within the segment) that must be read, or None."""
    T = len(scored)
    where = scored.nonzero().flatten()
    end = int(where[-1]) + 1 if len(where) else 0
    spans: list[tuple[tuple[int, int], slice | None]] = []
    for start in range(0, T, segment):
        stop = min(start + segment, T)
        inside = scored[start:stop].nonzero().flatten()
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (segment, 0)
        if read_from is not None and read_from < stop and start < end:
            first, last = min(first, max(read_from - start, 0)), min(end, stop) - start
        spans.append(((start, stop), slice(first, last) if first < last else None))
    return spans


def _score_hidden(model: Network, hidden: Tensor, targets: Tensor, first: int) -> tuple[Tensor, ...]:
    """Score hidden [B, n, M] against targets [B, n], which start at position `first`; a bounded piece at a time."""
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    wanted = targets[rows, columns].to(hidden.device)
    picked = hidden[rows.to(hidden.device), columns.to(hidden.device)]
    nll, predictions = [], []
    for at in range(0, len(wanted), LOGIT_ROWS):
        piece = slice(at, at + LOGIT_ROWS)
        logits = model.logits(picked[None, piece])[0].float()
        nll.append(F.cross_entropy(logits, wanted[piece], reduction="none"))
        predictions.append(logits.argmax(-1))
    if not nll:
        return tuple(_no_tokens())
    predicted = torch.cat(predictions)
    return rows, columns + first, torch.cat(nll).cpu(), predicted.cpu(), (predicted == wanted).cpu()


def _retrieved(step: Any) -> Retrieved:
    selections: Sequence[Any] = step.selections or ()
    return Retrieved(int(step.first_chunk), tuple((s.ids.cpu(), s.weights.cpu()) for s in selections))


def _no_tokens() -> list[Tensor]:
    dtypes = (torch.int64, torch.int64, torch.float32, torch.int64, torch.bool)
    return [torch.empty(0, dtype=dtype) for dtype in dtypes]


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def predictions(
    model: Network, item: dict[str, Any], segment: int, store: ChunkStore | None, decode: Callable[[list[int]], str]
) -> list[dict[str, Any]]:
    """Score one item of the data's predict loader: one line of results.

    item: tokens and targets int64 [1, T], kind, index, and for an episode also asked and answer.
    decode: token ids -> text.

    The line has kind, index, length, nll (in nats, summed), scored_tokens, answer (None where nothing is asked) and
    selected: of each chunk and group the ids and weights, for an episode those that serve the answer's chunk.
    """
    asked = item.get("asked")
    result = score(model, item["tokens"], item["targets"], segment, store, asked)
    line: dict[str, Any] = {"kind": item["kind"], "index": item["index"], "length": item["tokens"].shape[1]}
    line |= {"nll": result.nll.double().sum().item(), "scored_tokens": len(result.nll), "answer": None}
    selected = _selected(result)
    if asked is not None:
        wanted = item["targets"].cpu()[0, result.positions]
        line |= {"answer": decode(result.predictions.tolist()), "expected": decode(wanted.tolist())}
        line |= {"exact_match": bool(result.correct.all()), "depth": item["depth"], "distance": item["distance"]}
        chunk = item["answer"][0] // (model.chunk_size or 1)
        selected = [entry for entry in selected if entry["chunk"] == chunk]
    return [line | {"selected": selected}]


def _selected(result: Score) -> list[dict[str, Any]]:
    """What each retrieval group selected for each chunk of row 0: chunk, group, ids and weights."""
    entries: dict[tuple[int, int], dict[str, Any]] = {}
    for part in result.retrieved:
        for group, (ids, weights) in enumerate(part.groups):
            for at, (row_ids, row_weights) in enumerate(zip(ids[0].tolist(), weights[0].tolist(), strict=True)):
                pairs = [(i, round(w, 4)) for i, w in zip(row_ids, row_weights, strict=True) if i >= 0]
                chunk = part.first_chunk + at
                entries[chunk, group] = {
                    "chunk": chunk,
                    "group": group,
                    "ids": [i for i, _ in pairs],
                    "weights": [w for _, w in pairs],
                }
    return [entries[key] for key in sorted(entries)]
