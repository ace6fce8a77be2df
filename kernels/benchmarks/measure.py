"""Time and memory of a call on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARMUP_MS, REPEAT_MS = 10, 60


def median_ms(call: Callable[[], Any], leaves: Sequence[Tensor] = ()) -> float:
    """Median milliseconds of `call`, the L2 cache cleared and the gradients of `leaves` dropped before each run."""
    from triton.testing import do_bench

    return float(do_bench(call, WARMUP_MS, REPEAT_MS, grad_to_none=list(leaves), return_mode="median"))


def extra_bytes(call: Callable[[], Any], leaves: Sequence[Tensor] = ()) -> int:
    """Peak of the memory allocated during `call` above what was allocated before, without gradients of `leaves`."""
    drop_gradients(leaves)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    drop_gradients(leaves)
    return peak - before


def drop_gradients(leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None
