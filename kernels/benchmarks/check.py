"""Correctness before speed: errors against fp64, compared with those of plain torch in the same dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cases import Case, Inputs, make_inputs
from rivals import Attention, gca

SMALL = Case(batch=2, rows=512, heads=4, kv_heads=2, slots=4)
MEDIUM = Case(batch=2, rows=4096)
CHECKED = tuple(replace(case, dtype=dtype) for dtype in ("bfloat16", "float16", "float32") for case in (SMALL, MEDIUM))
ALLOWED = 2.0
NAMES = ("out", "dq", "dchunk_k", "dchunk_v", "dweights")


@dataclass(frozen=True)
class Errors:
    """Relative errors ||x - y|| / ||y|| by name, y in fp64.

    own: of the implementation that is checked. plain: of plain torch. same_bits: a second run gave the same bits.
    """

    own: dict[str, float]
    plain: dict[str, float]
    same_bits: bool

    @property
    def failures(self) -> list[str]:
        """Names whose error is more than twice plain torch's, or no number, and "same bits" where two runs differ."""
        wrong = [name for name in NAMES if not self.own[name] <= ALLOWED * self.plain[name]]
        return wrong if self.same_bits else [*wrong, "same bits"]

    def __str__(self) -> str:
        parts = (f"{name} {self.own[name]:.1e}/{self.plain[name]:.1e}" for name in NAMES)
        return f"{', '.join(parts)}; {'same' if self.same_bits else 'other'} bits in a second run"


def compare(attention: Attention, case: Case, device: str | torch.device) -> Errors:
    """The output and four gradients of `attention` and of plain torch against plain torch in fp64."""
    x = make_inputs(case, device)
    plain = gca("reference")
    truth = results(plain, x.double())
    first, second = results(attention, x), results(attention, x)
    return Errors(
        _errors(first, truth),
        _errors(results(plain, x), truth),
        all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
    )


def results(attention: Attention, x: Inputs) -> tuple[Tensor, ...]:
    """The output and the gradients of q, chunk_k, chunk_v and the weights."""
    out = attention(x)
    return out.detach(), *torch.autograd.grad(out, x.leaves, x.dout)


def failures(attention: Attention, cases: Iterable[Case], device: str | torch.device) -> list[str]:
    """Compare on every case, print a line for each, and return those that failed, in words."""
    failed = []
    for case in cases:
        errors = compare(attention, case, device)
        where = f"{case.dtype}, {case.rows} rows"
        print(f"{where}: relative error / plain torch's: {errors}", flush=True)
        if errors.failures:
            failed.append(f"{where}: {', '.join(errors.failures)}")
    return failed


def _errors(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(NAMES, found, truth, strict=True)
    return {name: ((x.double() - y).norm() / y.norm()).item() for name, x, y in pairs}
