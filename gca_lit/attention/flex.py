"""Masked causal attention on CUDA by flex_attention, which skips the blocks that a mask hides.

The block mask depends on shapes and documents alone: it is made outside of compiled layers, block by block, so that no
pair of rows is ever looked at, and kept per shape where there are no documents. Queries and keys are filled up to whole
blocks, for the kernels are slower where they have to look at every bound.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Rows and columns of a block; inputs of fewer rows are better off without."""


TILES: dict[str, Any] = {
    **{f"bwd_BLOCK_{side}": 64 for side in ("M1", "N1", "M2", "N2")},
    "bwd_num_warps": 4,
    "bwd_num_stages": 3,
}
"""Of the backward kernel, chosen by timing it at head width 64 on an H200."""


def can_run(x: Tensor, head_width: int) -> bool:
    """Whether flex_attention takes rows like x [B, R, M] and is worth it."""
    return x.is_cuda and x.dtype != torch.float64 and x.shape[1] >= BLOCK and head_width >= 16


def block_mask(rows: int, past: int, window: int | None, documents: Tensor | None, device: torch.device) -> BlockMask:
    """The mask of `rows` queries behind `past` rows, each of which sees itself and the `window` - 1 rows before it.

    documents: document number of each row [B, rows], or None; needs past = 0.
    """
    rows = rows + -rows % BLOCK
    if documents is None:
        return _window_mask(rows, past, window, device)
    documents = _filled(documents, -documents.shape[1] % BLOCK)
    seen, whole = _causal_blocks(rows, past, window, device)
    low, high = documents.unflatten(1, (-1, BLOCK)).aminmax(dim=-1)
    crossing = (low[:, :, None] <= high[:, None]) & (high[:, :, None] >= low[:, None])
    one = (low[:, :, None] == high[:, None]) & (high[:, :, None] == low[:, None])

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return _within(row - key, window) & (documents[batch, row] == documents[batch, key])

    return _mask((seen & crossing)[:, None], (whole & one)[:, None], sees, (rows, rows))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, slopes: Tensor | None) -> Tensor:
    """Attention of q [B, R, H, D] to k and v [B, P + R, J, D] under a mask of `block_mask`; slopes: ALiBi's [H]."""
    rows, past = q.shape[1], k.shape[1] - q.shape[1]
    q = F.pad(q, (0, 0, 0, 0, 0, -rows % BLOCK))
    k, v = (F.pad(x, (0, 0, 0, 0, 0, _keys(q.shape[1], past) - past - rows)) for x in (k, v))

    def alibi(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[head] * (row + past - key)

    fused: Any
    fused = flex_attention if torch.compiler.is_compiling() else _alone()  # in a compiled layer, a part of its graph
    out = fused(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        score_mod=None if slopes is None else alibi,
        block_mask=mask,
        enable_gqa=q.shape[2] != k.shape[2],
        kernel_options=TILES if q.is_cuda else None,
    )
    return out.transpose(1, 2)[:, :rows]


@cache
def _alone() -> Callable[..., Any]:
    return torch.compile(flex_attention, fullgraph=True)


@lru_cache(maxsize=64)
def _window_mask(rows: int, past: int, window: int | None, device: torch.device) -> BlockMask:
    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return _within(row + past - key, window)

    with torch.inference_mode(False):  # a mask first made in evaluation serves training too
        seen, whole = _causal_blocks(rows, past, window, device)
        return _mask(seen[None, None], whole[None, None], sees, (rows, _keys(rows, past)))


def _within(distance: Tensor, window: int | None) -> Tensor:
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _keys(rows: int, past: int) -> int:
    """Keys of whole blocks for `rows` queries behind `past` rows."""
    return past + rows + -(past + rows) % BLOCK


def _causal_blocks(rows: int, past: int, window: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whether block [i] of queries sees some pair, and every pair, of block [j] of keys: bool [Q, K] each."""
    first_row = past + BLOCK * torch.arange(rows // BLOCK, device=device)[:, None]
    last_row = first_row + BLOCK - 1
    first_key = BLOCK * torch.arange(_keys(rows, past) // BLOCK, device=device)
    last_key = first_key + BLOCK - 1
    seen, whole = first_key <= last_row, last_key <= first_row
    if window is not None:
        seen, whole = seen & (last_key > first_row - window), whole & (first_key > last_row - window)
    return seen, whole


def _filled(documents: Tensor, missing: int) -> Tensor:
    """Documents [B, R] with `missing` more of the last row's."""
    return torch.cat((documents, documents[:, -1:].expand(-1, missing)), 1)


def _mask(seen: Tensor, whole: Tensor, sees: Callable[..., Tensor], lengths: tuple[int, int]) -> BlockMask:
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=lengths
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, and their numbers first: int32 [..., Q] and [..., Q, K]."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()
