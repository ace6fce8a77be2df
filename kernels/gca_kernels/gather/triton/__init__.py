"""The Triton implementation of the row gather."""

from gca_kernels.gather.triton.copy_rows import copy_rows

__all__ = ["copy_rows"]
