"""Attention operations by index, usable without the rest of the project: torch, and Triton where a GPU has it."""

from gca_kernels.gca.api import gca_attention

__all__ = ["gca_attention"]
