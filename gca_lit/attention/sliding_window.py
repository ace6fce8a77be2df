"""Sliding window attention."""

from __future__ import annotations

from typing import Any

from gca_lit.attention.base import AttentionBackend, Dims, LayerPlan, check_window
from gca_lit.attention.self_attention import SelfAttention


class SlidingWindow(AttentionBackend):
    """Every row sees a window of rows: constant memory, and a reach of window x layers.

    Args:
        window: rows seen, the row itself counted.
    """

    name = "sliding_window"

    def __init__(self, window: int = 512) -> None:
        check_window(window, "SlidingWindow")
        self.window = window

    def plan(self, layers: int) -> tuple[LayerPlan, ...]:
        return (LayerPlan(self.window),) * layers

    def mixer(self, dims: Dims, plan: LayerPlan) -> SelfAttention:
        return SelfAttention(dims, plan.window)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"window": self.window}
