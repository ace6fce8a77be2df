"""Rows gathered from slabs that the device reads where they lie, pinned host memory above all."""

from gca_kernels.gather.api import RowGather

__all__ = ["RowGather"]
