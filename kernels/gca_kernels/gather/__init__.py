"""Rows gathered from slabs that the device reads where they lie, pinned host memory above all."""

from gca_kernels.gather.api import GatheredSlabs, RowGather

__all__ = ["GatheredSlabs", "RowGather"]
