"""Grouped cross attention in plain torch: the definition that every other implementation is compared with.

Letters: B batch, R rows, Q query chunks, S rows of a query chunk, K slots, C rows of a table chunk,
H query heads, J key/value heads, G = H / J, D head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gca_attention(
    q: Tensor,
    chunk_k: Tensor,
    chunk_v: Tensor,
    chunk_ids: Tensor,
    chunk_weights: Tensor,
    block: int,
    start: int,
    scale: float,
    softmax_offset: float,
) -> Tensor:
    """See `gca_kernels.gca.api.gca_attention`; differentiable in q, chunk_k, chunk_v and chunk_weights."""
    B, R, H, D = q.shape
    if start + R <= block:  # one query chunk: only the rows there are
        block, start = max(R, 1), 0
    if chunk_k.shape[1] == 0:  # an empty table reads as one chunk that nobody selects
        chunk_ids = torch.full_like(chunk_ids, -1)
        chunk_k, chunk_v = (F.pad(table, (0, 0) * 3 + (0, 1)) for table in (chunk_k, chunk_v))
    _, N, C, J, _ = chunk_k.shape
    G = H // J
    Q, K = -(-(start + R) // block), chunk_ids.shape[-1]
    ids, weights = chunk_ids[:, :Q], chunk_weights[:, :Q]
    filled = (ids >= 0) & (ids < N)
    entry = torch.where(filled, ids, 0)

    q_blocks = F.pad(q, (0, 0, 0, 0, start, Q * block - start - R)).view(B, Q, block, J, G, D)
    q_rows = q_blocks.permute(0, 1, 3, 4, 2, 5).reshape(B, Q, J, G * block, D)
    k = _gather(chunk_k, entry)  # [B, Q, J, K*C, D]
    v = _gather(chunk_v, entry)

    scores = (q_rows @ k.transpose(-1, -2) * scale).unflatten(-1, (K, C))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weight = torch.where(filled, weights, 0.0)[:, :, None, None, :, None]
    if softmax_offset > 0:  # exp(s) / (n + sum exp(s)) = softmax(s) * sigmoid(logsumexp(s) - log n)
        weight = weight * (scores.logsumexp(-1, keepdim=True) - math.log(softmax_offset)).sigmoid()
    probs = (weight * scores.softmax(-1)).to(v.dtype).flatten(-2)
    out = (probs @ v).view(B, Q, J, G, block, D).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(B, Q * block, H, D)[:, start : start + R]


def _gather(table: Tensor, entry: Tensor) -> Tensor:
    B, N, C, J, D = table.shape
    _, Q, K = entry.shape
    offset = torch.arange(B, device=entry.device)[:, None, None] * N
    picked = table.reshape(B * N, C * J * D).index_select(0, (entry + offset).flatten())
    return picked.view(B, Q, K * C, J, D).transpose(2, 3)
