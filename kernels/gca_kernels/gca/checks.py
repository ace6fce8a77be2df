"""Checks of the arguments of grouped cross attention: every message names the argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gca_kernels.gca.index import GCAIndex

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SINGLE = torch.finfo(torch.float32)


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
    """Raise ValueError for arguments of `gca_attention` that do not fit one another, TypeError for a wrong type."""
    for name, x in (("q", q), ("chunk_k", k), ("chunk_v", v), ("chunk_ids", ids), ("chunk_weights", weights)):
        _check_tensor(name, x)
    _check_tables(q, k, v)
    _check_selection(ids, weights)
    for name, tensor in (("chunk_k", k), ("chunk_v", v), ("chunk_ids", ids), ("chunk_weights", weights)):
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(f"q and {name} differ in batch: {q.shape[0]} and {tensor.shape[0]}")
        if tensor.device != q.device:
            raise ValueError(f"q is on {q.device}, {name} is on {tensor.device}: move it there")
    _check_settings(q, ids, block, start, scale, softmax_offset)
    if index is not None:
        _check_index(index, ids, k.shape[1])


def check_ids_in_table(ids: Tensor, chunks: int) -> None:
    """Raise ValueError when an id lies outside [-1, chunks)."""
    if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < chunks:
        raise ValueError(
            f"chunk_ids must lie in [-1, {chunks}), the entries of the table, got {int(ids.min())} to {int(ids.max())}"
        )


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {x.layout}: call to_dense() first")


def _check_tables(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [B, R, H, D], got shape {tuple(q.shape)}")
    if k.ndim != 5 or k.shape != v.shape:
        raise ValueError(f"chunk_k and chunk_v must both be [B, N, C, J, D], got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has head width {q.shape[-1]}, chunk_k has {k.shape[-1]}")
    if q.shape[2] == 0 or q.shape[3] == 0:
        raise ValueError(f"q must have heads and a head width, got shape {tuple(q.shape)}")
    if k.shape[3] == 0 or q.shape[2] % k.shape[3]:
        raise ValueError(f"q has {q.shape[2]} heads, not a multiple of the {k.shape[3]} heads of chunk_k")
    if k.shape[2] == 0:
        raise ValueError("chunk_k and chunk_v have chunks of 0 rows")
    if q.dtype not in DTYPES or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(
            f"q, chunk_k and chunk_v must share a dtype, fp64, fp32, fp16 or bf16, got {q.dtype}, {k.dtype}, {v.dtype}"
        )


def _check_selection(ids: Tensor, weights: Tensor) -> None:
    if ids.ndim != 3 or ids.shape != weights.shape:
        raise ValueError(
            f"chunk_ids and chunk_weights must both be [B, Q, K], got {tuple(ids.shape)} and {tuple(weights.shape)}"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"chunk_ids must be int64 or int32, got {ids.dtype}")
    if weights.dtype not in DTYPES:
        raise ValueError(f"chunk_weights must be fp64, fp32, fp16 or bf16, got {weights.dtype}")


def _check_settings(q: Tensor, ids: Tensor, block: int, start: int, scale: float | None, softmax_offset: float) -> None:
    for name, count in (("block", block), ("start", start)):
        if not isinstance(count, int | torch.SymInt):
            raise TypeError(f"{name} must be an int, got {type(count).__name__}")
    for name, number in (("scale", 1.0 if scale is None else scale), ("softmax_offset", softmax_offset)):
        if not isinstance(number, int | float):
            raise TypeError(f"{name} must be a float, got {type(number).__name__}")
    if block < 1 or not 0 <= start < block:
        raise ValueError(f"start must lie in [0, block), got start={start}, block={block}")
    if ids.shape[1] * block < start + q.shape[1]:
        raise ValueError(
            f"chunk_ids serve {ids.shape[1]} query chunks of {block} rows, q needs {-(-(start + q.shape[1]) // block)}"
        )
    if scale is not None and not SINGLE.tiny <= scale <= SINGLE.max:
        raise ValueError(f"scale must be positive and finite in fp32, got {scale}")
    if not 0 <= softmax_offset <= SINGLE.max:
        raise ValueError(f"softmax_offset must not be negative, and finite in fp32, got {softmax_offset}")


def _check_index(index: GCAIndex, ids: Tensor, chunks: int) -> None:
    if not isinstance(index, GCAIndex):
        raise TypeError(f"index must be a GCAIndex, got {type(index).__name__}: make it with gca_index(chunk_ids, N)")
    if index.entries.shape != ids.shape or index.runs.shape != (len(ids), chunks, 2):
        raise ValueError(
            f"index was made for other chunk_ids or another table than {tuple(ids.shape)} into {chunks} chunks: "
            "make it with gca_index(chunk_ids, N)"
        )
    if index.entries.device != ids.device:
        raise ValueError(f"chunk_ids is on {ids.device}, index is on {index.entries.device}: make it from these ids")
