"""Causal self-attention of one layer, over a window or over everything: the mixer that all backends share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gca_lit.attention import flex
from gca_lit.attention.base import Dims, Mixer, View
from gca_lit.attention.causal import causal_attention
from gca_lit.layers import QKV, RMSNorm, alibi_slopes

KV = tuple[Tensor, Tensor]


class SelfAttention(Mixer):
    """Norm, projections, positions, causal attention; its past is the K and V that later rows can still see.

    Args:
        dims: widths.
        window: rows seen, the row itself counted; None for all before.
        log_n_length: scale the scores of row t by max(1, ln(t + 1) / ln(log_n_length)); None for no such scale.
    """

    slopes: Tensor | None

    def __init__(self, dims: Dims, window: int | None, log_n_length: int | None = None) -> None:
        super().__init__()
        self.dims, self.window, self.log_n_length = dims, window, log_n_length
        self.norm = RMSNorm(dims.width)
        self.qkv = QKV(dims.width, dims.heads, dims.kv_heads, dims.head_width, dims.qk_norm)
        self.out = nn.Linear(dims.width, dims.width, bias=False)
        alibi = dims.position == "alibi"
        self.register_buffer("slopes", alibi_slopes(dims.heads) if alibi else None, persistent=False)

    def empty_past(self, batch_size: int, like: Tensor) -> KV:
        empty = like.new_empty(batch_size, 0, self.dims.kv_heads, self.dims.head_width)
        return empty, empty

    def prepare(self, x: Tensor, past: KV, view: View) -> BlockMask | None:
        """The block mask where flex_attention serves best; None where plain SDPA does."""
        rows, before = x.shape[1], past[0].shape[1]
        window = None if self.window is None or self.window >= before + rows else self.window
        plain = window is None and before == 0 and self.slopes is None and view.documents is None
        if plain or not flex.can_run(x, self.dims.head_width):
            return None
        return flex.block_mask(rows, before, window, view.documents, x.device)

    def forward(self, x: Tensor, past: KV, view: View) -> tuple[Tensor, Tensor | None, KV]:
        q, k, v = self.qkv(self.norm(x), view.rotation)
        if self.log_n_length is not None:
            q = q * self._temperature(view.positions, q.dtype)
        k, v = torch.cat((past[0].to(k.dtype), k), 1), torch.cat((past[1].to(v.dtype), v), 1)
        if view.prepared is None:
            mixed = causal_attention(q, k, v, window=self.window, slopes=self.slopes, documents=view.documents)
        else:
            mixed = flex.masked_attention(q, k, v, view.prepared, self.slopes)
        return self.out(mixed.flatten(2)), None, (self._keep(k), self._keep(v))

    def _keep(self, x: Tensor) -> Tensor:
        """The rows that a later row can see, without holding on to the others' memory."""
        if self.window is None or x.shape[1] < self.window:
            return x
        kept = x[:, x.shape[1] - self.window + 1 :]
        return kept if torch.is_grad_enabled() else kept.clone()

    def _temperature(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.log_n_length is not None
        scale = (positions.double() + 1).log() / math.log(self.log_n_length)
        return scale.clamp(min=1.0).to(dtype)[:, None, None]
