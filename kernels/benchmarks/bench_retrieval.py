"""What exact retrieval costs: the best K of N landmarks for the query chunks of a segment, and for one.

    PYTHONPATH=.:kernels python kernels/benchmarks/bench_retrieval.py --output DIR

Appends to DIR/bench_retrieval.csv a row for each case: queries in fp32, keys in bf16 of two widths, K 8, medians in
milliseconds, and the peak of device memory above the keys in GB = 1e9 bytes. Before it is timed, each result is
compared with a top-k over the whole score matrix, in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

import command
from gca_lit.model.retrieval import select
from measure import extra_bytes, median_ms

WIDTHS, TOP_K = (256, 768), 8
CASES = [(256, 4_096), (256, 65_536), (256, 262_144), (256, 1_048_576), (1, 262_144), (1, 1_048_576)]


def exact(queries: Tensor, keys: Tensor, first: int) -> Tensor:
    """Sorted ids [1, Q, K] of the best keys before each query, from all fp32 scores of a few queries at a time."""
    found = []
    for part in range(0, queries.shape[1], 16):
        scores = queries[:, part : part + 16].float() @ keys.float().transpose(1, 2)
        asking = torch.arange(first + part, first + part + scores.shape[1], device=keys.device)
        hidden = torch.arange(keys.shape[1], device=keys.device) >= asking[:, None]
        found.append(scores.masked_fill_(hidden, -torch.inf).topk(TOP_K).indices)
    return torch.cat(found, 1).sort(-1).values


def measure(queries: int, landmarks: int, width: int, device: str) -> dict[str, Any]:
    """One case: its time and memory. Raises SystemExit when other chunks are found than by the whole matrix."""
    g = torch.Generator(device).manual_seed(0)
    keys = torch.randn(1, landmarks, width, generator=g, device=device).bfloat16()
    asked = torch.randn(1, queries, width, generator=g, device=device)
    first = landmarks - queries

    def run() -> Tensor:
        with torch.no_grad():
            return select(asked, [keys], first, TOP_K).ids

    if not torch.equal(run().sort(-1).values, exact(asked, keys, first)):
        raise SystemExit(f"wrong: {queries} queries of {landmarks} landmarks select other chunks than a full top-k")
    row: dict[str, Any] = {"queries": queries, "landmarks": landmarks, "width": width, "top_k": TOP_K}
    if device == "cuda":
        row |= {"median_ms": median_ms(run), "extra_gb": extra_bytes(run) / 1e9}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("Benchmark of retrieval.", "bench_retrieval.csv")
    options = parser.parse_args(arguments)
    common = command.begin(parser, options)
    torch.set_float32_matmul_precision("highest")
    for width, (queries, landmarks) in product(WIDTHS, CASES):
        row = {**common, **measure(queries, landmarks, width, "cuda")}
        said = f"{queries} of {landmarks:,}, width {width}: {row['median_ms']:.2f} ms, {row['extra_gb']:.2f} GB"
        command.record(options.output / "bench_retrieval.csv", row, COLUMNS, said)


COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "queries", "landmarks", "width", "top_k"),
    *("median_ms", "extra_gb"),
)


if __name__ == "__main__":
    main()
