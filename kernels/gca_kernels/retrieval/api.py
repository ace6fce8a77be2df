"""The public function that finds the best chunks for one query, and its checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_SLOTS = 256
"""The largest `top_k`."""


def best_chunks(
    query: Tensor, keys: Sequence[Tensor], count: Tensor, top_k: int, slope: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `top_k` best of the first `count` chunks for one query of each batch row, and their softmax weights.

    The score of chunk j is the dot product of query and key, in fp32 without TF32, less slope * log2(count - j) if a
    slope is given. Exact ties go to the lower chunk number. Of landmarks from `count` on nothing is read. There is no
    gradient. The launches depend on shapes alone, and nothing waits for the device: a CUDA graph may hold the call.

    Args:
        query: [B, M'] or [B, 1, M'], fp32, fp16 or bf16, on a CUDA device. Under TRITON_INTERPRET=1 it may be on the
            CPU, without bf16.
        keys: consecutive parts [B, n, M'] of one dtype, fp32, fp16 or bf16, chunk 0 first; behind the first `count`
            landmarks there may be anything. Parts that are not contiguous are copied first.
        count: how many chunks are visible, int64 [1].
        top_k: slots, K, 1 to `MOST_SLOTS`.
        slope: floating [1], of up to 4 bytes.

    Returns:
        ids int64 [B, 1, K], chunk numbers in order of falling score, -1 where fewer than K chunks are visible; weights
        fp32 [B, 1, K], the softmax over the scores of the filled slots, 0 in empty ones.

    Raises:
        TypeError: a tensor or a number is something else; the message names the argument.
        ValueError: a shape, a dtype, a device or `top_k` does not fit; the message names the argument.
    """
    _check_query(query)
    _check_keys(keys, query)
    _check_settings(query, count, top_k, slope)
    from gca_kernels.retrieval import triton

    return triton.best_chunks(query.flatten(1), keys, count, top_k, slope)


def _check_query(query: Any) -> None:
    _check_tensor("query", query)
    if query.ndim not in (2, 3) or query.shape[1:-1] not in ((), (1,)) or query.shape[-1] == 0:
        raise ValueError(f"query must be [B, M'] or [B, 1, M'], got shape {tuple(query.shape)}")
    if query.dtype not in DTYPES:
        raise ValueError(f"query must be fp32, fp16 or bf16, got {query.dtype}")
    if not query.is_cuda and not (query.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(f"query must be on a CUDA device, it is on {query.device}")


def _check_keys(keys: Any, query: Tensor) -> None:
    if not isinstance(keys, Sequence):
        raise TypeError(f"keys must be a sequence of tensors, got {type(keys).__name__}")
    if not keys:
        raise ValueError("keys is empty: pass at least one part, which may have no rows")
    B, width = query.shape[0], query.shape[-1]
    for i, part in enumerate(keys):
        _check_tensor(f"keys[{i}]", part)
        if part.ndim != 3 or (part.shape[0], part.shape[2]) != (B, width):
            raise ValueError(f"keys[{i}] must be [{B}, n, {width}] for this query, got shape {tuple(part.shape)}")
        if part.dtype not in DTYPES:
            raise ValueError(f"keys[{i}] must be fp32, fp16 or bf16, got {part.dtype}")
        if part.dtype != keys[0].dtype:
            raise ValueError(f"keys must be alike, got {keys[0].dtype} and {part.dtype}")
        _check_device(f"keys[{i}]", part, query)


def _check_settings(query: Tensor, count: Any, top_k: Any, slope: Any) -> None:
    _check_tensor("count", count)
    if count.shape != (1,) or count.dtype != torch.int64:
        raise ValueError(f"count must be int64 [1], got {count.dtype} {tuple(count.shape)}")
    _check_device("count", count, query)
    if not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
    if not 1 <= top_k <= MOST_SLOTS:
        raise ValueError(f"top_k must be 1 to {MOST_SLOTS}, got {top_k}")
    if slope is not None:
        _check_tensor("slope", slope)
        if slope.shape != (1,) or slope.dtype not in DTYPES:
            raise ValueError(f"slope must be [1] in fp32, fp16 or bf16, got {slope.dtype} {tuple(slope.shape)}")
        _check_device("slope", slope, query)


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def _check_device(name: str, x: Tensor, query: Tensor) -> None:
    if x.device != query.device:
        raise ValueError(f"{name} is on {x.device}, query on {query.device}: move it there")
