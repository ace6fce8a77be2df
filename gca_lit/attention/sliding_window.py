"""Sliding window attention."""

from __future__ import annotations

from gca_lit.attention.base import AttentionBackend, Dims, LayerPlan
from gca_lit.attention.self_attention import SelfAttention


class SlidingWindow(AttentionBackend):
    """Every row sees a window of rows: constant memory, and a reach of window x layers.

    Args:
        window: rows seen, the row itself counted.
    """

    name = "sliding_window"

    def __init__(self, window: int = 512) -> None:
        self.window = window

    def plan(self, layers: int) -> tuple[LayerPlan, ...]:
        return (LayerPlan(self.window),) * layers

    def mixer(self, dims: Dims, plan: LayerPlan) -> SelfAttention:
        return SelfAttention(dims, plan.window)
