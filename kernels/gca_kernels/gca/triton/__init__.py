"""The Triton implementation of grouped cross attention: its place and its signature. No kernel is here yet."""

from __future__ import annotations

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
    """See `gca_kernels.gca.api.gca_attention`.

    Raises:
        NotImplementedError: always, until the kernels are here.
    """
    raise NotImplementedError('gca_attention has no Triton kernel yet: use impl="auto" or impl="reference"')
