"""Checks of the arguments of grouped cross attention: every message names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from gca_kernels.gca.index import GCAIndex


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    weights: Tensor,
    block: int,
    start: int,
    scale: float | None,
    softmax_offset: float,
    index: GCAIndex | None,
) -> None:
    """Raise ValueError for arguments of `gca_attention` that do not fit one another."""
    _check_tables(q, k, v)
    _check_selection(ids, weights)
    for name, tensor in (("chunk_k", k), ("chunk_v", v), ("chunk_ids", ids), ("chunk_weights", weights)):
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(f"q and {name} differ in batch: {q.shape[0]} and {tensor.shape[0]}")
        if tensor.device != q.device:
            raise ValueError(f"q is on {q.device}, {name} is on {tensor.device}: move it there")
    _check_settings(q, ids, block, start, scale, softmax_offset)
    if index is not None and (index.entries.shape != ids.shape or index.runs.shape != (len(ids), k.shape[1], 2)):
        raise ValueError(
            f"index was made for other chunk_ids or another table than {tuple(ids.shape)} into {k.shape[1]} chunks: "
            "make it with gca_index(chunk_ids, N)"
        )


def check_ids_in_table(ids: Tensor, chunks: int) -> None:
    """Raise ValueError when an id lies outside [-1, chunks)."""
    if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < chunks:
        raise ValueError(
            f"chunk_ids must lie in [-1, {chunks}), the entries of the table, got {int(ids.min())} to {int(ids.max())}"
        )


def _check_tables(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [B, R, H, D], got shape {tuple(q.shape)}")
    if k.ndim != 5 or k.shape != v.shape:
        raise ValueError(f"chunk_k and chunk_v must both be [B, N, C, J, D], got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has head width {q.shape[-1]}, chunk_k has {k.shape[-1]}")
    if k.shape[3] == 0 or q.shape[2] % k.shape[3]:
        raise ValueError(f"q has {q.shape[2]} heads, not a multiple of the {k.shape[3]} heads of chunk_k")
    if k.shape[2] == 0:
        raise ValueError("chunk_k and chunk_v have chunks of 0 rows")
    if not q.is_floating_point() or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, chunk_k and chunk_v must share a floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")


def _check_selection(ids: Tensor, weights: Tensor) -> None:
    if ids.ndim != 3 or ids.shape != weights.shape:
        raise ValueError(
            f"chunk_ids and chunk_weights must both be [B, Q, K], got {tuple(ids.shape)} and {tuple(weights.shape)}"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"chunk_ids must be int64 or int32, got {ids.dtype}")
    if not weights.is_floating_point():
        raise ValueError(f"chunk_weights must be floating, got {weights.dtype}")


def _check_settings(q: Tensor, ids: Tensor, block: int, start: int, scale: float | None, softmax_offset: float) -> None:
    if block < 1 or not 0 <= start < block:
        raise ValueError(f"start must lie in [0, block), got start={start}, block={block}")
    if ids.shape[1] * block < start + q.shape[1]:
        raise ValueError(
            f"chunk_ids serve {ids.shape[1]} query chunks of {block} rows, q needs {-(-(start + q.shape[1]) // block)}"
        )
    if scale is not None and scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if softmax_offset < 0:
        raise ValueError(f"softmax_offset must not be negative, got {softmax_offset}")
