"""The best chunks of all for one query, found by device work alone."""

from gca_kernels.retrieval.api import MOST_SLOTS, best_chunks

__all__ = ["MOST_SLOTS", "best_chunks"]
