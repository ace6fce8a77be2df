"""The public function of grouped cross attention: the choice of implementation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gca_kernels.gca import reference
from gca_kernels.gca.checks import check_arguments, check_ids_in_table
from gca_kernels.gca.index import GCAIndex

Impl = Literal["auto", "reference", "triton"]


def gca_attention(
    q: Tensor,
    chunk_k: Tensor,
    chunk_v: Tensor,
    chunk_ids: Tensor,
    chunk_weights: Tensor,
    *,
    block: int,
    start: int = 0,
    scale: float | None = None,
    softmax_offset: float = 0.0,
    impl: Impl = "auto",
    index: GCAIndex | None = None,
    check_ids: bool = False,
) -> Tensor:
    """Attend to a few chunks per query block, each with its own softmax, and sum the results by weight.

    Row r of `q` belongs to query chunk (start + r) // block. Its output is the sum over the K slots of
    `chunk_weights` times softmax attention inside that slot's chunk alone. The table is indexed, never copied K-fold
    by the caller. Differentiable in q, chunk_k, chunk_v and chunk_weights.

    Args:
        q: queries, [B, R, H, D].
        chunk_k: the table of chunk keys, [B, N, C, J, D]; H is a multiple of J.
        chunk_v: the table of chunk values, same shape.
        chunk_ids: table entry of each slot, int [B, Q, K]; -1 is an empty slot. Entries may repeat. A slot whose id
            lies outside the table reads nothing.
        chunk_weights: weight of each slot, floating [B, Q, K]; ignored where the slot is empty.
        block: rows per query chunk.
        start: rows of the first query chunk that came before row 0, 0 <= start < block.
        scale: positive factor of the scores, 1 / sqrt(D) unless given.
        softmax_offset: n in exp(s) / (n + sum exp(s)); 0 is the ordinary softmax, 1 lets a row attend to nothing.
        impl: "reference" (plain torch; fp64, too), "triton" (CUDA; fp32, fp16, bf16; up to 256 rows a chunk and head
            width 256; first derivatives), or "auto": Triton on CUDA for the dtypes it takes, else the reference. An
            explicit choice never falls back.
        index: `gca_index(chunk_ids, N)`, for several calls with the same ids; without it the backward pass makes it.
        check_ids: look whether every id lies in [-1, N); waits for the device.

    Returns:
        [B, R, H, D] in q's dtype, under autocast, too.

    Raises:
        TypeError: a tensor, a number or the index is something else; the message names the argument.
        ValueError: a shape, a dtype, a device, a count or a setting does not fit; the message names the argument.
        RuntimeError: `impl="triton"` where no Triton kernel can run, or differentiated twice.
    """
    check_arguments(q, chunk_k, chunk_v, chunk_ids, chunk_weights, block, start, scale, softmax_offset, index)
    if check_ids:
        check_ids_in_table(chunk_ids, chunk_k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    inputs = q, chunk_k, chunk_v, chunk_ids, chunk_weights
    if impl == "auto":
        impl = "triton" if q.is_cuda and q.element_size() <= 4 else "reference"
    match impl:
        case "reference":
            with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
                return reference.gca_attention(*inputs, block, start, scale, softmax_offset)
        case "triton":
            from gca_kernels.gca import triton

            return triton.gca_attention(*inputs, block, start, scale, softmax_offset, index)
        case _:
            raise ValueError(f'impl must be "auto", "reference" or "triton", not {impl!r}')
