"""The least time that a layer can take on a device: arithmetic and bytes of a case against two measured ceilings.

FLOPs count the matrix products of the filled slots: 2 in the forward, 5 in a fused backward (scores, dP, dQ, dK, dV).
Bytes count every input read once and every output written once; what an implementation keeps between forward and
backward, and every second reading, is its own affair.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cases import Case
from measure import median_ms


class Ceilings(NamedTuple):
    """copy: device copy, bytes read + written per second. matmul: bf16 product of 8192 x 8192 matrices, FLOP/s."""

    copy: float
    matmul: float


class Cost(NamedTuple):
    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def flops(case: Case) -> Cost:
    """4 B T H D K C forward and 10 B T H D K C backward when no slot is empty."""
    product = 2 * case.filled_slots * case.block * case.heads * case.width * case.chunk
    return Cost(2 * product, 5 * product)


def moved_bytes(case: Case) -> Cost:
    """Forward: q, K, V in, the output out. Backward: q, K, V and the output's gradient in, three gradients out."""
    rows = case.batch * case.rows * case.heads * case.width * case.itemsize
    table = 2 * case.batch * case.chunks * case.chunk * case.kv_heads * case.width * case.itemsize
    return Cost(table + 2 * rows, 2 * table + 3 * rows)


def gathered_bytes(case: Case) -> int:
    """K and V copied once per slot."""
    slots = case.batch * case.queries * case.slots
    return 2 * slots * case.chunk * case.kv_heads * case.width * case.itemsize


def floor_ms(case: Case, ceilings: Ceilings) -> Cost:
    """Milliseconds that neither the arithmetic nor the bytes can beat."""
    arithmetic, traffic = flops(case), moved_bytes(case)
    least = (
        1e3 * max(f / ceilings.matmul, b / ceilings.copy)
        for f, b in ((arithmetic.forward, traffic.forward), (arithmetic.backward, traffic.backward))
    )
    return Cost(*least)


def measure_ceilings(device: str | torch.device, copied: int = 4 << 30, side: int = 8192) -> Ceilings:
    """copied: bytes of the tensor that is copied; side: of the two matrices, filled with normal numbers."""
    return Ceilings(_copy_rate(device, copied), _matmul_rate(device, side))


def _copy_rate(device: str | torch.device, size: int) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_ms(lambda: target.copy_(source)) * 1e3


def _matmul_rate(device: str | torch.device, side: int) -> float:
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_ms(lambda: left @ right) * 1e3
