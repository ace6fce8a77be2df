"""Causal softmax attention in plain torch, over everything before a row or over a window of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 4
"""Rows that are taken one by one where each sees a whole window: reading keys again costs less than a mask."""


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    slopes: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Each row attends to itself and to the `window` - 1 rows before it.

    Args:
        q: [B, R, H, D].
        k, v: [B, P + R, J, D], the P rows before the first query included; H is a multiple of J.
        window: rows seen, the row itself counted; None for all before.
        slopes: ALiBi slope of each head [H], or None.
        documents: document number of each of the R rows [B, R]; rows of other documents are not seen. Needs P = 0.

    Returns:
        [B, R, H, D].
    """
    R, past = q.shape[1], k.shape[1] - q.shape[1]
    if window is not None and past >= window - 1 and 1 < R <= FEW and slopes is None and documents is None:
        return _one_by_one(q, k, v, window)
    if window is None or window >= R:
        return _dense(q, k, v, window, slopes, documents)
    head = _dense(
        q[:, :window],
        k[:, : past + window],
        v[:, : past + window],
        window,
        slopes,
        None if documents is None else documents[:, :window],
    )
    return torch.cat((head, _banded(q, k[:, past:], v[:, past:], window, slopes, documents)), 1)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Each row with the `window` keys that it sees, as a batch."""
    B, R = q.shape[:2]
    begin = k.shape[1] - R - window + 1
    k, v = (x[:, begin:].unfold(1, window, 1).movedim(-1, 2).flatten(0, 1) for x in (k, v))
    return _sdpa(q.flatten(0, 1)[:, None], k, v, None)[:, 0].unflatten(0, (B, R))


def _dense(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, slopes: Tensor | None, documents: Tensor | None
) -> Tensor:
    R, past = q.shape[1], k.shape[1] - q.shape[1]
    if slopes is None and documents is None and (window is None or window >= past + R):
        if R == 1:
            return _sdpa(q, k, v, None)
        if past == 0:
            return _sdpa(q, k, v, None, is_causal=True)
    row = torch.arange(past, past + R, device=q.device)
    distance = row[:, None] - torch.arange(past + R, device=q.device)
    seen = _within(distance, window)[None]
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None])
    return _sdpa(q, k, v, _bias(seen[:, None], distance, slopes, q.dtype))


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, slopes: Tensor | None, documents: Tensor | None) -> Tensor:
    """Rows from `window` on, in blocks of `window` rows that each see their own block and the one before."""
    B, R = q.shape[:2]
    blocks = -(-R // window)

    def split(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (0, blocks * window - R)).unflatten(1, (blocks, window))

    def pairs(x: Tensor) -> Tensor:
        x = split(x)
        return torch.cat((x[:, :-1], x[:, 1:]), 2)

    distance = torch.arange(window, 2 * window, device=q.device)[:, None] - torch.arange(2 * window, device=q.device)
    seen = _within(distance, window)[None]
    if documents is not None:
        same = split(documents)[:, 1:, :, None] == pairs(documents)[:, :, None]
        own = distance == 0  # padded rows beyond R still see themselves
        seen = (seen & (same | own)).flatten(0, 1)
    out = _sdpa(
        split(q)[:, 1:].flatten(0, 1),
        pairs(k).flatten(0, 1),
        pairs(v).flatten(0, 1),
        _bias(seen[:, None], distance, slopes, q.dtype),
    )
    return out.unflatten(0, (B, blocks - 1)).flatten(1, 2)[:, : R - window]


def _within(distance: Tensor, window: int | None) -> Tensor:
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _bias(seen: Tensor, distance: Tensor, slopes: Tensor | None, dtype: torch.dtype) -> Tensor:
    if slopes is None:
        return seen
    bias = -slopes.to(dtype)[:, None, None] * distance.to(dtype)
    return torch.where(seen, bias, float("-inf"))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
