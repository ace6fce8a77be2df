"""The public function of grouped cross attention: argument checks and the choice of implementation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gca_kernels.gca import reference

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
) -> Tensor:
    """Attend to a few chunks per query block, each with its own softmax, and sum the results by weight.

    Row r of `q` belongs to query chunk (start + r) // block. Its output is the sum over the K slots of
    `chunk_weights` times softmax attention inside that slot's chunk alone. The table is indexed, never copied K-fold
    by the caller.

    Args:
        q: queries, [B, R, H, D].
        chunk_k: the table of chunk keys, [B, N, C, J, D]; H is a multiple of J.
        chunk_v: the table of chunk values, same shape.
        chunk_ids: table entry of each slot, int64 [B, Q, K]; -1 is an empty slot. Entries may repeat.
        chunk_weights: weight of each slot, [B, Q, K]; ignored where the slot is empty.
        block: rows per query chunk.
        start: rows of the first query chunk that came before row 0, 0 <= start < block.
        scale: factor of the scores, 1 / sqrt(D) unless given.
        softmax_offset: n in exp(s) / (n + sum exp(s)); 0 is the ordinary softmax, 1 lets a row attend to nothing.
        impl: "reference" (plain torch), "triton", or "auto" for the best one of the device. An explicit choice never
            falls back.

    Returns:
        [B, R, H, D] in q's dtype.

    Raises:
        ValueError: a shape, a count or a setting does not fit; the message names the argument.
        NotImplementedError: `impl="triton"` where no Triton kernel can run.
    """
    _check(q, chunk_k, chunk_v, chunk_ids, chunk_weights, block, start, softmax_offset)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if impl == "auto":
        impl = "reference"
    match impl:
        case "reference":
            forward = reference.gca_attention
        case "triton":
            from gca_kernels.gca import triton

            forward = triton.gca_attention
        case _:
            raise ValueError(f'impl must be "auto", "reference" or "triton", not {impl!r}')
    return forward(q, chunk_k, chunk_v, chunk_ids, chunk_weights, block, start, scale, softmax_offset)


def _check(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, block: int, start: int, softmax_offset: float
) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [B, R, H, D], got shape {tuple(q.shape)}")
    if k.ndim != 5 or k.shape != v.shape:
        raise ValueError(f"chunk_k and chunk_v must both be [B, N, C, J, D], got {tuple(k.shape)} and {tuple(v.shape)}")
    if ids.ndim != 3 or ids.shape != weights.shape:
        raise ValueError(
            f"chunk_ids and chunk_weights must both be [B, Q, K], got {tuple(ids.shape)} and {tuple(weights.shape)}"
        )
    if not (q.shape[0] == k.shape[0] == ids.shape[0]):
        raise ValueError(f"q, chunk_k and chunk_ids differ in batch: {q.shape[0]}, {k.shape[0]}, {ids.shape[0]}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has head width {q.shape[-1]}, chunk_k has {k.shape[-1]}")
    if q.shape[2] % k.shape[3]:
        raise ValueError(f"q has {q.shape[2]} heads, not a multiple of the {k.shape[3]} heads of chunk_k")
    if not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, chunk_k and chunk_v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    if block < 1 or not 0 <= start < block:
        raise ValueError(f"start must lie in [0, block), got start={start}, block={block}")
    if ids.shape[1] * block < start + q.shape[1]:
        raise ValueError(
            f"chunk_ids serve {ids.shape[1]} query chunks of {block} rows, q needs {-(-(start + q.shape[1]) // block)}"
        )
    if softmax_offset < 0:
        raise ValueError(f"softmax_offset must not be negative, got {softmax_offset}")
