"""The Triton implementation of grouped cross attention, for NVIDIA GPUs and for the interpreter."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import knobs

from gca_kernels.gca.index import GCAIndex
from gca_kernels.gca.triton import ops

INTERPRETED = bool(knobs.runtime.interpret)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_ROWS, MOST_WIDTH = 256, 256
"""Of a chunk and of a head: tiles of more do not fit in shared memory."""


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
    index: GCAIndex | None,
) -> Tensor:
    """See `gca_kernels.gca.api.gca_attention`.

    Raises:
        RuntimeError: no GPU, and the interpreter is off.
        ValueError: a dtype or a size that the kernels do not take.
    """
    _check(q, chunk_k)
    _check_addresses(q, chunk_k, chunk_v, block if start + q.shape[1] > block else q.shape[1])
    q, chunk_k, chunk_v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, chunk_k, chunk_v))
    kept = (None, None, None) if index is None else index
    out, _ = ops.forward(q, chunk_k, chunk_v, chunk_ids, chunk_weights, *kept, block, start, scale, softmax_offset)
    return out


def _check(q: Tensor, chunk_k: Tensor) -> None:
    if not (q.is_cuda or (INTERPRETED and q.device.type == "cpu")):
        raise RuntimeError(
            f'impl="triton" needs CUDA tensors, q is on {q.device}: use impl="auto", or set TRITON_INTERPRET=1 before '
            "gca_kernels is imported to run the kernels slowly on the CPU"
        )
    if q.dtype not in DTYPES:
        raise ValueError(f'impl="triton" takes fp32, fp16 or bf16, q is {q.dtype}: use impl="reference"')
    if INTERPRETED and q.dtype == torch.bfloat16:
        raise ValueError("q is bf16, which Triton's interpreter computes wrongly: use fp32 or fp16 on the CPU")
    _, _, C, _, D = chunk_k.shape
    if C > MOST_ROWS or D > MOST_WIDTH:
        raise ValueError(
            f"chunk_k has {C} rows a chunk and head width {D}: the Triton kernels take up to {MOST_ROWS} x "
            f'{MOST_WIDTH}; use smaller ones or impl="reference"'
        )


def _check_addresses(q: Tensor, chunk_k: Tensor, chunk_v: Tensor, block: int) -> None:
    """Inside a chunk and inside a query chunk of `block` rows the kernels count elements in 32 bits."""
    if max(q.stride(1), q.shape[2] * q.shape[3]) * (block - 1) >= 2**31:
        raise ValueError(f"block takes {block} rows of q, which span 2^31 elements or more: take fewer rows")
    for name, x in (("chunk_k", chunk_k), ("chunk_v", chunk_v)):
        if x.stride(2) * (x.shape[2] - 1) >= 2**31:
            raise ValueError(
                f"{name} has rows {x.stride(2)} elements apart, too far for the kernels: make it contiguous"
            )
    if q.shape[0] * chunk_k.shape[3] > 65_535:
        raise ValueError(
            f"q has a batch of {q.shape[0]} and chunk_k {chunk_k.shape[3]} heads, which may be 65,535 pairs at most: "
            "split the batch"
        )
