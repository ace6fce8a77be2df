"""Norm, rotary and ALiBi positions, MLP and the initialization: plain torch, below attention and model."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["normal", "fan_in"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in fp32 or wider and returned in x's dtype."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class QKV(nn.Module):
    """Queries, keys and values of one attention layer from one projection, with an optional norm of q and k per head.

    Args:
        width: of the input, M.
        heads, kv_heads: H and J.
        head_width: D.
        qk_norm: RMS-normalize queries and keys per head; they share a gain, for only the product of two would act.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, qk_norm: bool) -> None:
        super().__init__()
        self.split = (heads, kv_heads, kv_heads)
        self.project = nn.Linear(width, sum(self.split) * head_width, bias=False)
        self.norm = RMSNorm(head_width) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, R, M] -> q [B, R, H, D], k and v [B, R, J, D]; q and k turned by `turn`."""
        heads, kv_heads, _ = self.split
        qkv = self.project(x).unflatten(-1, (sum(self.split), -1))
        qk, v = qkv.split((heads + kv_heads, kv_heads), -2)
        qk = self.norm(qk)
        if turn is not None:
            qk = rotate(qk, turn)
        q, k = qk.split((heads, kv_heads), -2)
        return q, k, v


Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, head_width: int, dtype: torch.dtype, base: float = 10_000.0) -> Rotation:
    """Cosine and signed sine of the rotary angles, [R, 1, D] each, for int64 `positions` [R].

    Angles are taken in fp64, so that they stay exact at positions far beyond 2^24.
    """
    exponent = torch.arange(0, head_width, 2, dtype=torch.float64, device=positions.device) / head_width
    angle = positions.double()[:, None, None] * base**-exponent
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) of x [B, R, H, D] by the angles of `rotation`."""
    cos, sin = by
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def alibi_slopes(heads: int) -> Tensor:
    """The slope of each head, fp32 [H]: a geometric series from 2^(-8/H) to 2^-8 (the paper's code, any H)."""
    return torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])


def initialize(module: nn.Module, init: Init) -> None:
    """Draw the weights of every linear layer and embedding under `module`.

    "normal": std 0.02 (the paper). "fan_in": std 0.5 / sqrt(fan in) for linear layers and 0.5 for embeddings.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02 if init == "normal" else 0.5 / math.sqrt(part.in_features))
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02 if init == "normal" else 0.5)
