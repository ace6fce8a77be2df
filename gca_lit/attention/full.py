"""Full causal attention."""

from __future__ import annotations

from gca_lit.attention.base import AttentionBackend, Dims, LayerPlan
from gca_lit.attention.self_attention import SelfAttention


class FullAttention(AttentionBackend):
    """Every row sees every row before it: O(T^2) time, and K/V of every layer for every token.

    Args:
        max_length: longest input in text tokens that is tried; longer evaluation points are skipped. None: no limit.
        log_n_length: the training length in tokens, for scores scaled by max(1, ln(t + 1) / ln(log_n_length)), which
            keeps the attention's entropy from growing with length; None: plain softmax.
    """

    name = "full"

    def __init__(self, max_length: int | None = None, log_n_length: int | None = None) -> None:
        if max_length is not None and max_length < 1:
            raise ValueError(f"FullAttention: max_length must be at least 1 token, got {max_length}")
        if log_n_length is not None and log_n_length < 2:
            raise ValueError(f"FullAttention: log_n_length must be at least 2 tokens, got {log_n_length}")
        self.max_length = max_length
        self.log_n_length = log_n_length

    def plan(self, layers: int) -> tuple[LayerPlan, ...]:
        return (LayerPlan(window=None),) * layers

    def mixer(self, dims: Dims, plan: LayerPlan) -> SelfAttention:
        return SelfAttention(dims, plan.window, self.log_n_length)
