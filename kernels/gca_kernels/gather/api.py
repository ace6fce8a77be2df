"""The public row gather: a growing list of slabs, and a table of their addresses on the device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RowGather:
    """Gathers rows of slabs with one kernel on `device`. The host copies nothing and waits for nothing.

    The slabs together are one array: row r is row r % rows_per_slab of slab r // rows_per_slab. The caller keeps the
    slabs alive and unchanged until the kernel is done: torch does not know that the device reads them.

    Args:
        slabs: [rows_per_slab, width] each, alike, contiguous; in pinned host memory or on `device`. The caller
            may append slabs later, and never replaces one.
        device: a CUDA device. Under TRITON_INTERPRET=1 it may be the CPU, with slabs of plain memory.

    Raises:
        ValueError: the device is another one, or, when rows are gathered, a slab or `rows` is not as described; the
            message names the argument.
    """

    def __init__(self, slabs: Sequence[Tensor], device: torch.device) -> None:
        if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"device must be a CUDA device, got {device}: index the slabs with torch there")
        self._slabs = slabs
        self._addresses = torch.tensor([], dtype=torch.int64, device=device)

    def __call__(self, rows: Tensor) -> Tensor:
        """`GatheredSlabs.gather` of all slabs there are."""
        return self.now().gather(rows)

    def now(self) -> GatheredSlabs:
        """The slabs there are, as the device sees them."""
        if not self._slabs:
            raise ValueError("slabs is empty: append a slab before gathering rows")
        if len(self._slabs) > len(self._addresses):
            self._addresses = self._upload()
        rows_per_slab, width = self._slabs[0].shape
        return GatheredSlabs(self._addresses, rows_per_slab, width, self._slabs[0].dtype)

    def _upload(self) -> Tensor:
        device = self._addresses.device
        for slab in self._slabs[len(self._addresses) :]:
            _check(slab, self._slabs[0], device)
        addresses = [slab.data_ptr() for slab in self._slabs]
        on_host = torch.tensor(addresses, dtype=torch.int64, pin_memory=device.type == "cuda")
        return on_host.to(device, non_blocking=True)


class GatheredSlabs(NamedTuple):
    """Slabs as the device sees them: all that a gather reads but the numbers of the rows.

    addresses: of each slab, int64 on the device.
    """

    addresses: Tensor
    rows_per_slab: int
    width: int
    dtype: torch.dtype

    def gather(self, rows: Tensor, parts: int = 1) -> Tensor:
        """Rows on the device, in the slabs' dtype, of the numbers `rows` int64 [n] on the device: [n, width], or with
        more than one part [parts, n, width / parts], the first part of each row first.

        The numbers are not checked, for that would wait for the device: one outside the slabs reads foreign memory.
        A CUDA graph may hold the call.
        """
        from gca_kernels.gather.triton import copy_rows

        device = self.addresses.device
        if rows.ndim != 1 or rows.dtype != torch.int64 or rows.device != device:
            raise ValueError(f"rows must be int64 [n] on {device}, got {rows.dtype} {tuple(rows.shape)}, {rows.device}")
        if parts < 1 or self.width % parts:
            raise ValueError(f"parts must divide the width of a row, {self.width}, got {parts}")
        out = torch.empty((parts, len(rows), self.width // parts), dtype=self.dtype, device=device)
        if out.numel():
            copy_rows(self.addresses, rows.contiguous(), out, self.rows_per_slab)
        return out[0] if parts == 1 else out


def _check(slab: Tensor, first: Tensor, device: torch.device) -> None:
    if slab.ndim != 2 or len(slab) == 0:
        raise ValueError(f"slabs must be [rows, width] with at least one row, got {tuple(slab.shape)}")
    if slab.shape != first.shape or slab.dtype != first.dtype:
        raise ValueError(
            f"slabs must be alike, got {tuple(first.shape)} {first.dtype} and {tuple(slab.shape)} {slab.dtype}"
        )
    if not slab.is_contiguous() or slab.data_ptr() % 16:
        raise ValueError("slabs must be contiguous and begin at a multiple of 16 bytes: make them with torch.empty")
    if slab.device != device and not (slab.device.type == "cpu" and slab.is_pinned()):
        raise ValueError(f"slabs must be in pinned host memory or on {device}: make them with pin_memory=True")
