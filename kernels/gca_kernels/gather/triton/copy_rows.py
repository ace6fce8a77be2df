"""The kernel: every program copies a tile of one part of a row, straight from the slab that holds it.

It moves 4-byte words (smaller ones where a row is no multiple of 4 bytes), so that every dtype is exact. The base
address of a slab is loaded as a number; told that it is a multiple of 16, the compiler reads 16 bytes per thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # words
WARPS = 4


@triton.jit(do_not_specialize=["count"])
def _copy_rows(
    addresses, rows, out, count, words, tiles, ROWS_PER_SLAB: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr
):
    program = tl.program_id(0)
    n = (program // tiles // PARTS).to(tl.int64)
    part = (program // tiles % PARTS).to(tl.int64)
    column = (program % tiles) * TILE + tl.arange(0, TILE)
    row = tl.load(rows + n)
    slab = tl.load(addresses + row // ROWS_PER_SLAB).to(tl.pointer_type(out.dtype.element_ty))
    source = tl.multiple_of(slab, 16) + ((row % ROWS_PER_SLAB) * PARTS + part) * words
    values = tl.load(source + column, mask=column < words)
    tl.store(out + (part * count + n) * words + column, values, mask=column < words)


def copy_rows(addresses: Tensor, rows: Tensor, out: Tensor, rows_per_slab: int) -> None:
    """Copy part p of row `rows[i]` of the slabs to `out[p, i]`.

    Args:
        addresses: base addresses of the slabs, multiples of 16, int64 on out's device.
        rows: int64 [n] on out's device, contiguous.
        out: [parts, n, width], contiguous, not empty; a row of a slab has parts * width elements.
        rows_per_slab: the kernel is compiled for it.
    """
    parts, count, width = out.shape
    size = width * out.element_size()
    word = next(dtype for dtype in (torch.int32, torch.int16, torch.int8) if size % dtype.itemsize == 0)
    words = size // word.itemsize
    tiles = triton.cdiv(words, TILE)
    with torch.cuda.device_of(out):
        _copy_rows[(count * parts * tiles,)](
            addresses, rows, out.view(word), count, words, tiles,
            ROWS_PER_SLAB=rows_per_slab, PARTS=parts, TILE=TILE, num_warps=WARPS,
        )  # fmt: skip
