"""Chunk K/V read by the device alone, where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gca_kernels.gather import GatheredSlabs


class ChunkReader(NamedTuple):
    """Reads chunks of slabs with device work alone: a CUDA graph may hold a call.

    slabs: all there are, with a row for each chunk and batch row, in that order.
    shape: of K of a chunk, (C, J, D).
    """

    slabs: GatheredSlabs
    shape: tuple[int, ...]

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [B, U, C, J, D] of chunks `ids` int64 [B, U] on the device, which are not checked."""
        k, v = self.slabs.gather(row_numbers(ids), parts=2)
        return k.view(*ids.shape, *self.shape), v.view(*ids.shape, *self.shape)


def row_numbers(ids: Tensor) -> Tensor:
    """Chunk numbers int64 [B, U] -> numbers [B * U] of their rows, counted through all slabs."""
    if len(ids) == 1:
        return ids[0]
    return (ids * len(ids) + torch.arange(len(ids), device=ids.device)[:, None]).flatten()


def unpack(rows: Tensor, ids: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Slab rows [B * U, width] of chunks `ids` [B, U] -> K and V [B, U, *shape]."""
    both = rows.view(*ids.shape, 2, *shape)
    return both[:, :, 0], both[:, :, 1]
