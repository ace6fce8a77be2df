"""Selection of chunks: one function for training, prefill and decoding.

Scores that choose have errors like those of products in fp32 without TF32, and are taken block by block of landmarks,
so that nothing of size Q x N is held.
Weights are a softmax over the scores of the chosen, taken again where they have a
gradient, noise, or more than fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from gca_kernels.retrieval import MOST_SLOTS, best_chunks
from gca_lit.memory.base import Selection

LANDMARKS_AT_ONCE, FEWEST_AT_ONCE = 32_768, 1024
SCORES_AT_ONCE = 2**25
"""Bounds of what is held at a time: landmarks made fp32, and scores of a batch (which yield to FEWEST_AT_ONCE)."""
RUN = 64
"""Landmarks whose best score is looked at before their own."""
NOTHING = torch.iinfo(torch.int64).min
LOW_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """Gumbel noise that only chooses: a hash of (row key, group, query chunk, key chunk), free of any generator.

    rows: int64 [B], a number of each training row that is different for each seed and epoch.
    group: the retrieval group.
    """

    rows: Tensor
    group: int

    def __call__(self, queries: Tensor, chunks: Tensor) -> Tensor:
        """Noise fp32 [B, Q, n] for query chunk numbers [Q] and key chunk numbers [n]."""
        key = mix(mix(mix(self.rows) + self.group)[:, None] + queries)
        bits = mix(key[:, :, None] + chunks)
        uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53
        return -(-uniform.log()).log().float()


def mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 on int64 tensors (wrapping)."""
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def select(
    queries: Tensor,
    keys: Sequence[Tensor],
    first: int,
    top_k: int,
    noise: Noise | None = None,
    documents: tuple[Tensor, Tensor] | None = None,
    recency: Tensor | None = None,
) -> Selection:
    """The `top_k` best earlier chunks of each query chunk, and their softmax weights.

    The query of chunk i sees chunks before i only; what it selects serves chunk i + 1. Exact ties go to the lower
    chunk number; where fewer chunks are visible the last slots are empty.

    Args:
        queries: [B, Q, M'], of the landmarks of chunks `first`, `first` + 1, ...
        keys: consecutive parts [B, n, M'] of all landmarks, chunk 0 first.
        first: chunk number of the first query.
        top_k: slots, K.
        noise: added to the scores while choosing.
        documents: (document of each query's landmark [B, Q], document of each chunk's first token [B, N]); only chunks
            that begin in the query's document are visible.
        recency: slope [1]: chunk j loses slope * log2(i - j) of its score for the query of chunk i; the nearest that is
            visible, i - 1, loses nothing.

    Returns:
        ids int64 [B, Q, K] in order of falling (noisy) score, weights [B, Q, K] in fp32 or wider.
    """
    asking = torch.arange(first, first + queries.shape[1], device=queries.device)
    best = torch.full((*queries.shape[:2], top_k), NOTHING, device=queries.device)
    with torch.no_grad(), _full_fp32(queries.device):
        asked = _asked(queries, keys[-1])
        for begin, parts in _blocks(keys, asked.shape[:2].numel(), first + queries.shape[1] - 1):
            scores = _scores(asked, parts, queries.shape[1])
            chunks = torch.arange(begin, begin + scores.shape[-1], device=scores.device)
            if recency is not None:
                scores = scores.sub_(_penalties(recency, first - begin, *scores.shape[1:]))
            if noise is not None:
                scores = scores + noise(asking, chunks)
            if begin + len(chunks) > first:
                scores = scores.masked_fill_(chunks >= asking[:, None], -torch.inf)
            if documents is not None:
                other = documents[0][:, :, None] != documents[1][:, None, begin : begin + len(chunks)]
                scores = scores.masked_fill_(other, -torch.inf)
            best = torch.cat((best, _candidates(scores, chunks, top_k)), -1).topk(top_k, -1).values
    return _selection(best, queries, keys, noise is not None, asking, recency)


def select_one(
    query: Tensor, keys: Sequence[Tensor], chunk: Tensor, top_k: int, recency: Tensor | None = None
) -> Selection:
    """`select` for the landmark of one chunk, without a gradient: what it does depends on shapes alone.

    On a CUDA device with Triton a few launches do it, except in fp64 and for very many slots.

    Args:
        query: [B, 1, M'].
        keys: consecutive parts [B, n, M'], chunk 0 first; behind the landmarks there may be anything.
        chunk: its number, int64 [1].
        top_k: slots, K.
        recency: see `select`.
    """
    if _has_kernel(query, keys, top_k):
        return Selection(*best_chunks(query, keys, chunk, top_k, recency))
    with torch.no_grad(), _full_fp32(query.device):
        scores = _scores(_asked(query, keys[-1]), keys, 1)
        chunks = torch.arange(scores.shape[-1], device=scores.device)
        if recency is not None:
            scores = scores.sub_(_penalty(recency, chunk - chunks))
        found = _candidates(scores.masked_fill(chunks >= chunk, -torch.inf), chunks, top_k)
        found = F.pad(found, (0, max(0, top_k - found.shape[-1])), value=NOTHING)
        return _selection(found.topk(top_k, -1).values, query, keys, False, chunk, recency)


def _has_kernel(query: Tensor, keys: Sequence[Tensor], top_k: int) -> bool:
    """Whether `best_chunks` takes these."""
    types = {part.dtype for part in keys}
    narrow = torch.float64 not in {query.dtype, *types} and len(types) == 1
    return query.is_cuda and narrow and top_k <= MOST_SLOTS and find_spec("triton") is not None


def _selection(
    best: Tensor, queries: Tensor, keys: Sequence[Tensor], noisy: bool, asking: Tensor, recency: Tensor | None
) -> Selection:
    """Of order keys [B, Q, K], the best first; asking: chunk numbers of the queries [Q]."""
    ids = torch.where(best == NOTHING, -1, LOW_BITS - (best & LOW_BITS))
    if noisy or queries.dtype == torch.float64 or torch.is_grad_enabled():
        scores = _chosen_scores(queries, keys, ids)
        if recency is not None:
            scores = scores - _penalty(recency, asking[:, None] - ids)
    else:
        scores = _score(best)
    return Selection(ids, _softmax(scores, ids >= 0))


def _penalty(slope: Tensor, distances: Tensor) -> Tensor:
    """What these distances in chunks take from a score."""
    wide = torch.promote_types(slope.dtype, torch.float32)
    return slope.to(wide) * distances.to(wide).clamp(min=1).log2()


def _penalties(slope: Tensor, distance: int, queries: int, chunks: int) -> Tensor:
    """`_penalty` [Q, n] of consecutive query chunks and chunks, the first ones at `distance`.

    They have Q + n - 1 distances in all, of which each row is a piece.
    """
    distances = torch.arange(distance + max(queries, 1) - 1, distance - chunks, -1, device=slope.device)
    return _penalty(slope, distances).unfold(0, chunks, 1).flip(0)


def _asked(queries: Tensor, keys: Tensor) -> Tensor:
    """Queries [B, Q, M'] in the type that `_scores` multiplies with these keys: [B, n Q, M'] where n parts make one."""
    if not (keys.is_cuda and keys.dtype == torch.bfloat16):
        return queries.float()
    return queries if queries.dtype == torch.bfloat16 else torch.cat(bf16_parts(queries.float()), 1)


def _scores(asked: Tensor, keys: Sequence[Tensor], queries: int) -> Tensor:
    """fp32 [B, Q, n] of what `_asked` made of Q `queries`, and consecutive keys [B, ., M'].

    Products of bf16 are exact in fp32, which tensor cores add them in: queries in three parts lose nothing.
    """
    if asked.dtype == torch.bfloat16:
        products = [torch.bmm(asked, part.transpose(1, 2), out_dtype=torch.float32) for part in keys]
    else:
        pieces = [piece for part in keys for piece in part.split(LANDMARKS_AT_ONCE, 1)]
        products = [asked @ piece.float().transpose(1, 2) for piece in pieces]
    scores = torch.cat(products, -1) if len(products) > 1 else products[0]
    return scores if asked.shape[1] == queries else scores.unflatten(1, (-1, queries)).sum(1)


def bf16_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three bf16 tensors whose sum is x in fp32: exactly from 2^-110 on, to 2^-134 below."""
    high = x.bfloat16()
    middle = (x - high.float()).bfloat16()
    return high, middle, (x - high.float() - middle.float()).bfloat16()


def _candidates(scores: Tensor, chunks: Tensor, top_k: int) -> Tensor:
    """Order keys of some scores [B, Q, n] that hold the `top_k` best ones; hidden ones, -inf, are NOTHING.

    Whatever is among the best stands in one of the `top_k` runs whose best scores are highest, exact ties included.
    """
    runs = -(-scores.shape[-1] // RUN)
    if runs > top_k:
        if padding := runs * RUN - scores.shape[-1]:
            scores = F.pad(scores, (0, padding), value=-torch.inf)
            chunks = F.pad(chunks, (0, padding))
        scores = scores.unflatten(-1, (runs, RUN))
        numbers = torch.arange(runs, device=scores.device)
        run = LOW_BITS - (_order(scores.amax(-1), numbers).topk(top_k, -1).values & LOW_BITS)
        scores = scores.gather(2, run[..., None].expand(-1, -1, -1, RUN)).flatten(2)
        chunks = chunks.view(runs, RUN)[run].flatten(2)
    return torch.where(scores == -torch.inf, NOTHING, _order(scores, chunks))


def _order(scores: Tensor, chunks: Tensor) -> Tensor:
    """int64 keys that sort like (score, lower chunk number first) and hold the chunk number in their low 32 bits."""
    bits = (scores + 0.0).view(torch.int32).long()
    bits = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    return (bits << 32) | (LOW_BITS - chunks)


def _score(order: Tensor) -> Tensor:
    """The scores in keys of `_order`."""
    bits = order >> 32
    return (bits ^ ((bits >> 63) & 0x7FFFFFFF)).int().view(torch.float32)


def _chosen_scores(queries: Tensor, keys: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Scores of chunks `ids` [B, Q, K], in fp32 or wider."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    with _full_fp32(queries.device):
        return (queries.to(wide)[:, :, None] * _pick(keys, ids).to(wide)).sum(-1)


def _softmax(scores: Tensor, filled: Tensor) -> Tensor:
    """Over the filled slots; zero in empty ones, also where all are empty."""
    return scores.masked_fill(~filled, torch.finfo(scores.dtype).min / 2).softmax(-1) * filled


def _pick(keys: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Keys of chunks `ids` [B, Q, K] -> [B, Q, K, M']."""
    batch = torch.arange(len(ids), device=ids.device)[:, None, None]
    filled = [part for part in keys if part.shape[1]] or [F.pad(keys[-1], (0, 0, 0, 1))]
    begin, picked = 0, torch.empty(0)
    for part in filled:
        here = part[batch, (ids - begin).clamp(0, part.shape[1] - 1)]
        picked = here if begin == 0 else torch.where((ids >= begin)[..., None], here, picked)
        begin += part.shape[1]
    return picked


def _blocks(keys: Sequence[Tensor], rows: int, visible: int) -> Iterator[tuple[int, list[Tensor]]]:
    """(number of the first chunk, consecutive parts) of the first `visible` landmarks: few enough that their scores
    for all `rows` of a batch stay small."""
    at_once = max(FEWEST_AT_ONCE, SCORES_AT_ONCE // max(rows, 1))
    begin, block, held = 0, list[Tensor](), 0
    for part in keys:
        part = part[:, : max(0, visible - begin - held)]
        while part.shape[1]:
            piece, part = part[:, : at_once - held], part[:, at_once - held :]
            block, held = [*block, piece], held + piece.shape[1]
            if held == at_once:
                yield begin, block
                begin, block, held = begin + held, [], 0
    if block:
        yield begin, block


@contextmanager
def _full_fp32(device: torch.device) -> Iterator[None]:
    """Matrix products of fp32 in fp32: no autocast, no TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
