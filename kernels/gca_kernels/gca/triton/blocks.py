"""Tile sizes: small tables, so that nothing is tuned while a program runs.

Chunks of 64 rows of width 64 and 128 in 16 bits were measured on an H200; the other entries keep a program within
shared memory and registers. Products of fp32 keep whole rows of their operands in registers, so their tiles are small
and a chunk may be longer than its tile: it is then walked in pieces.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SMALL = 64 * 64 * 2
"""Bytes of K of a padded chunk that leave room for wide tiles and several stages."""


class Blocks(NamedTuple):
    """Tile of one kernel: query rows times query heads per K/V head, and chunk rows; then how it is launched.

    registers: most of a thread, so that more programs share a multiprocessor; None leaves it to the compiler.
    """

    rows: int
    chunk_rows: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        tile = {"TILE": self.rows, "TILE_C": self.chunk_rows, "num_warps": self.warps, "num_stages": self.stages}
        return tile if self.registers is None else tile | {"maxnreg": self.registers}


def pad(n: int) -> int:
    """Tile length that holds n and that a matrix product takes: a power of two from 16 on."""
    return max(16, 1 << (n - 1).bit_length())


def forward_blocks(pairs: int, chunk_rows: int, head_width: int, itemsize: int) -> Blocks:
    """Of the forward kernel.

    Args:
        pairs: rows of a query chunk times query heads per K/V head.
        chunk_rows: C.
        head_width: D.
        itemsize: bytes of an element.
    """
    if itemsize == 4:
        return single_precision_blocks(pairs, chunk_rows, 64 if head_width <= 64 else 32)
    C, size = pad(chunk_rows), chunk_bytes(chunk_rows, head_width, itemsize)
    if size <= SMALL:
        return Blocks(min(pad(pairs), 64), C, 4, 2)
    if size <= 4 * SMALL:
        return Blocks(min(pad(pairs), 64), C, 4 if C <= 128 else 8, 2)
    return Blocks(min(pad(pairs), 32), C, 8, 1)


def query_blocks(pairs: int, chunk_rows: int, head_width: int, itemsize: int) -> Blocks:
    """Of the backward kernel over query tiles; arguments as for `forward_blocks`."""
    if itemsize == 4:  # a chunk in pieces costs two products more here, so the tile is longer
        return single_precision_blocks(pairs, chunk_rows, 64 if head_width <= 128 else 32)
    C, size = pad(chunk_rows), chunk_bytes(chunk_rows, head_width, itemsize)
    if size <= SMALL:
        return Blocks(min(pad(pairs), 64), C, 4, 2, registers=128)
    if size <= 4 * SMALL:
        return Blocks(min(pad(pairs), 64), C, 4 if size <= 2 * SMALL else 8, 2)
    return Blocks(min(pad(pairs), 32), C, 8, 1)


def chunk_blocks(pairs: int, chunk_rows: int, head_width: int, itemsize: int) -> Blocks:
    """Of the backward kernel over chunks, which takes a long chunk in several tiles."""
    if itemsize == 4:
        return single_precision_blocks(pairs, chunk_rows, 32)
    C = min(pad(chunk_rows), 64)
    size = chunk_bytes(C, head_width, itemsize)
    if size <= SMALL:
        return Blocks(min(pad(pairs), 64), C, 4, 2, registers=168)
    if size <= 2 * SMALL:
        return Blocks(min(pad(pairs), 64), C, 4, 2)
    return Blocks(min(pad(pairs), 64), C if head_width <= 128 else 32, 8, 2)


def single_precision_blocks(pairs: int, chunk_rows: int, most_rows: int) -> Blocks:
    """Of any kernel in fp32, with at most `most_rows` rows of a chunk in a tile."""
    return Blocks(min(pad(pairs), 32), min(pad(chunk_rows), most_rows), 8, 1)


def chunk_bytes(chunk_rows: int, head_width: int, itemsize: int) -> int:
    """Bytes of one head's K of a padded chunk."""
    return pad(chunk_rows) * pad(head_width) * itemsize
