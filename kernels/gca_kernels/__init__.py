"""Attention operations by index, usable without the rest of the project: torch, and Triton where a GPU has it."""

from gca_kernels.gca.api import gca_attention
from gca_kernels.gca.index import GCAIndex, gca_index

__all__ = ["GCAIndex", "gca_attention", "gca_index"]
