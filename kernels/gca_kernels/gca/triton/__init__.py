"""The Triton implementation of grouped cross attention, for NVIDIA GPUs and for the interpreter."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import knobs

from gca_kernels.gca.index import GCAIndex
from gca_kernels.gca.triton import ops
from gca_kernels.gca.triton.blocks import chunk_bytes

INTERPRETED = bool(knobs.runtime.interpret)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_BYTES = {torch.float32: 64 << 10, torch.float16: 128 << 10, torch.bfloat16: 128 << 10}
"""Of one head's K of a padded chunk: what fits in shared memory beside a tile of queries."""


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
    if C > 256 or D > 256 or chunk_bytes(C, D, q.element_size()) > MOST_BYTES[q.dtype]:
        raise ValueError(
            f"chunk_k has {C} rows a chunk and head width {D} in {q.dtype}: the Triton kernels take up to 256 x 256 in "
            f'fp16 and bf16, 128 x 128 or 256 x 64 in fp32; use smaller ones or impl="reference"'
        )
