"""The Triton implementation of retrieval."""

from gca_kernels.retrieval.triton.best_chunks import best_chunks

__all__ = ["best_chunks"]
