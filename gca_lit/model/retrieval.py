"""Selection of chunks: one function for training, prefill and decoding.

Scores that choose are taken in fp32 without TF32, block by block of landmarks, so that nothing of size Q x N is held.
Weights are a softmax over the scores of the chosen, taken again with gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gca_lit.memory.base import Selection

LANDMARKS_AT_ONCE, FEWEST_AT_ONCE = 32_768, 1024
SCORES_AT_ONCE = 2**23
"""Bounds of what is scored at a time: landmarks, and scores of a whole batch (which yield to FEWEST_AT_ONCE)."""
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

    Returns:
        ids int64 [B, Q, K] in order of falling (noisy) score, weights [B, Q, K] in fp32 or wider.
    """
    asking = torch.arange(first, first + queries.shape[1], device=queries.device)
    best = torch.full((*queries.shape[:2], top_k), NOTHING, device=queries.device)
    with torch.no_grad(), _full_fp32(queries.device):
        for begin, part in _blocks(keys, queries.shape[:2].numel()):
            chunks = torch.arange(begin, begin + part.shape[1], device=part.device)
            scores = queries.float() @ part.float().transpose(1, 2)
            if noise is not None:
                scores = scores + noise(asking, chunks)
            hidden = chunks >= asking[:, None]
            if documents is not None:
                hidden = hidden | (documents[0][:, :, None] != documents[1][:, None, begin : begin + part.shape[1]])
            candidates = _candidates(scores.masked_fill_(hidden, -torch.inf), chunks, top_k)
            best = torch.cat((best, candidates), -1).topk(top_k, -1).values
    ids = torch.where(best == NOTHING, -1, LOW_BITS - (best & LOW_BITS))
    return Selection(ids, _weights(queries, keys, ids))


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


def _weights(queries: Tensor, keys: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Softmax over the scores of the chosen; zero in empty slots, also where all are empty."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    with _full_fp32(queries.device):
        scores = (queries.to(wide)[:, :, None] * _pick(keys, ids).to(wide)).sum(-1)
    filled = ids >= 0
    scores = scores.masked_fill(~filled, torch.finfo(wide).min / 2)
    return scores.softmax(-1) * filled


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


def _blocks(keys: Sequence[Tensor], queries: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first chunk, some landmarks): few enough that their scores for all queries stay small."""
    at_once = min(LANDMARKS_AT_ONCE, max(FEWEST_AT_ONCE, SCORES_AT_ONCE // max(queries, 1)))
    begin = 0
    for part in keys:
        for block in part.split(at_once, 1):
            yield begin, block
            begin += block.shape[1]


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
