"""How fast a HostStore gives chunks back to a CUDA device: staged by the CPU, read directly by a kernel, and the floor.

    python kernels/benchmarks/bench_gather.py --output DIR

Appends to DIR/bench_gather.csv a row for each selection and way. The chunks are those of the paper's model: 63 rows of
12 heads of 64, K and V, bf16. Times are medians of the wall clock with the device idle before and after; every run
reads other chunks. The way "copy" is one copy of as many bytes from pinned memory. GB = 1e9 bytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gca_lit.memory import HostStore
from origin import append, origin

CHUNKS, C, J, D = 16384, 63, 12, 64
CHUNK_BYTES = 2 * C * J * D * torch.bfloat16.itemsize
WARMUP, RUNS = 3, 20


def random_chunks(count: int) -> Tensor:
    return torch.randperm(CHUNKS)[:count].sort().values


def neighbours(runs: int, length: int) -> Tensor:
    """Runs of consecutive chunks, anywhere in the memory."""
    first = torch.randperm(CHUNKS // length)[:runs].sort().values * length
    return (first[:, None] + torch.arange(length)).flatten()


# 256 query chunks of 8 slots that share no chunk, the same with much in common, and one decoded chunk.
SELECTIONS: dict[str, Callable[[], Tensor]] = {
    "segment_random": lambda: random_chunks(2048),
    "segment_clustered": lambda: neighbours(75, 8),
    "decoded_chunk": lambda: random_chunks(8),
}


def filled(store: HostStore) -> HostStore:
    """The store with CHUNKS chunks, the same ones at every call."""
    g = torch.Generator("cuda").manual_seed(0)
    for _ in range(0, CHUNKS, 1024):
        k, v = torch.randn(2, 1, 1024, C, J, D, dtype=torch.bfloat16, device="cuda", generator=g)
        store.write(k, v)
    return store


def median_ms(read: Callable[[Tensor], object], select: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(WARMUP + RUNS):
        ids = select()[None].cuda()
        torch.cuda.synchronize()
        start = time.perf_counter()
        read(ids)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[WARMUP:])


def measure() -> list[dict[str, object]]:
    """A row for each selection and way, after a check that both ways give the same bytes."""
    staged, direct = (filled(HostStore(gather=gather)) for gather in ("staged", "direct"))
    pinned = torch.empty(CHUNKS // 8, CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
    ways: dict[str, Callable[[Tensor], object]] = {
        "staged": staged.read,
        "direct": direct.read,
        "copy": lambda ids: pinned[: ids.numel()].to("cuda", non_blocking=True),
    }
    rows: list[dict[str, object]] = []
    for name, select in SELECTIONS.items():
        ids = select()[None].cuda()
        if not all(torch.equal(a, b) for a, b in zip(staged.read(ids), direct.read(ids), strict=True)):
            raise SystemExit(f"wrong: the direct read of {name} gives other bytes than the staged one")
        for way, read in ways.items():
            ms = median_ms(read, select)
            speed = ids.numel() * CHUNK_BYTES / ms / 1e6
            rows.append({"selection": name, "way": way, "chunks": ids.numel(), "median_ms": ms, "gb_per_s": speed})
            print(f"{name}: {way}, {ids.numel()} chunks, {ms:.3f} ms, {speed:.1f} GB/s", flush=True)
    staged.close()
    direct.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of reading chunks from host memory.")
    parser.add_argument("--output", type=Path, required=True, help="folder of bench_gather.csv")
    parser.add_argument("--commit", help="what is measured; git is asked when it is not given")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    torch.manual_seed(0)
    try:
        common = {**origin(options.commit), "cpu_threads": torch.get_num_threads(), "chunk_bytes": CHUNK_BYTES}
    except ValueError as error:
        parser.error(str(error))
    rows = [{**common, **row} for row in measure()]
    append(options.output / "bench_gather.csv", rows)


if __name__ == "__main__":
    main()
