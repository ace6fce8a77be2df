"""The shapes that are timed, and random inputs for them.

Letters: B batch, T query rows, Q query chunks, K slots, N chunks in the table, C rows of a chunk, H query heads,
J key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gca_kernels.gca.index import GCAIndex


@dataclass(frozen=True)
class Case:
    """One shape: B, T, H, J, D, K, C, the rows of a query chunk, and the name of a torch dtype."""

    batch: int = 1
    rows: int = 16384
    heads: int = 12
    kv_heads: int = 12
    width: int = 64
    slots: int = 8
    chunk: int = 64
    block: int = 64
    dtype: str = "bfloat16"

    @property
    def queries(self) -> int:
        return self.rows // self.block

    @property
    def chunks(self) -> int:
        return self.rows // self.chunk

    @property
    def filled_slots(self) -> int:
        """Slots that are not empty, over the batch: query chunk i sees the chunks that ended before it began."""
        seen = (i * self.block // self.chunk for i in range(self.queries))
        return self.batch * sum(min(self.slots, chunks) for chunks in seen)

    @property
    def itemsize(self) -> int:
        return torch_dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an attention takes: q, dout [B, T, H, D]; chunk_k, chunk_v [B, N, C, J, D]; ids, weights [B, Q, K]."""

    q: Tensor
    chunk_k: Tensor
    chunk_v: Tensor
    ids: Tensor
    weights: Tensor
    dout: Tensor
    block: int
    index: GCAIndex | None = None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.q, self.chunk_k, self.chunk_v, self.weights

    def double(self) -> Inputs:
        """The same numbers as new fp64 leaves."""
        q, k, v, weights = (leaf.detach().double().requires_grad_() for leaf in self.leaves)
        return replace(self, q=q, chunk_k=k, chunk_v=v, weights=weights, dout=self.dout.double())


BASE = Case()
BARS = (replace(BASE, batch=4), replace(BASE, batch=4, heads=16, kv_heads=4), BASE)
GROUPED = replace(BASE, heads=16, kv_heads=4)
GRIDS = {
    "bars": BARS,
    "full": (
        *BARS,
        *(replace(BASE, rows=rows) for rows in (4096, 65536, 131072)),
        *(replace(BASE, slots=slots) for slots in (4, 16, 32)),
        replace(BASE, width=128),
        replace(BASE, dtype="float16"),
        GROUPED,
        replace(BASE, heads=32, kv_heads=8),
        *(replace(GROUPED, rows=rows) for rows in (4096, 65536, 131072)),
        *(replace(GROUPED, slots=slots) for slots in (4, 16, 32)),
        replace(GROUPED, width=128),
    ),
}


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def make_inputs(case: Case, device: str | torch.device, seed: int = 0) -> Inputs:
    """Normal q, K, V and output gradient, a random causal selection; q, K, V and the weights are leaves."""
    if case.rows % case.block or case.rows % case.chunk:
        raise ValueError(f"rows must be a multiple of block and chunk, got {case}")
    random = torch.Generator(device).manual_seed(seed)
    dtype = torch_dtype(case.dtype)
    rows = (case.batch, case.rows, case.heads, case.width)
    table = (case.batch, case.chunks, case.chunk, case.kv_heads, case.width)
    q, k, v, dout = (torch.randn(s, generator=random, device=device, dtype=dtype) for s in (rows, table, table, rows))
    ids, weights = select(case, random)
    for leaf in (q, k, v, weights):
        leaf.requires_grad_()
    return Inputs(q, k, v, ids, weights, dout, case.block)


def select(case: Case, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct chunks drawn uniformly from those before the query chunk, and softmax weights, both [B, Q, K].

    Where fewer than K chunks are visible, the slots left over are empty: id -1, weight 0.
    """
    device = random.device
    ends = (torch.arange(case.chunks, device=device) + 1) * case.chunk
    starts = torch.arange(case.queries, device=device)[:, None] * case.block
    draws = torch.rand(case.batch, case.queries, case.chunks, generator=random, device=device)
    drawn, chosen = draws.masked_fill(ends > starts, -1.0).topk(min(case.slots, case.chunks), sorted=True)
    ids = torch.full((case.batch, case.queries, case.slots), -1, device=device)
    ids[..., : chosen.shape[-1]] = torch.where(drawn >= 0, chosen, -1)
    scores = torch.randn(ids.shape, generator=random, device=device).masked_fill(ids < 0, float("-inf"))
    return ids, scores.softmax(-1).nan_to_num(0.0)
