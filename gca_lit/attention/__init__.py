"""Attention backends: what `model.attention` names in YAML."""

from gca_lit.attention.base import AttentionBackend
from gca_lit.attention.full import FullAttention
from gca_lit.attention.gca import GroupedCrossAttention
from gca_lit.attention.sliding_window import SlidingWindow

__all__ = ["AttentionBackend", "FullAttention", "GroupedCrossAttention", "SlidingWindow"]
