"""Correctness, speed and memory of grouped cross attention on a CUDA device, beside other ways to compute it.

    python kernels/benchmarks/bench_gca.py --output DIR [--grid full] [--paper CHECKOUT]
    python kernels/benchmarks/bench_gca.py --table DIR/bench_gca.csv

The first writes DIR/bench_gca.csv, a row for each case and rival, and DIR/bench_gca.png; it times nothing and exits
with 1 when the Triton implementation is wrong. Times are medians in milliseconds, memory is in GB = 1e9 bytes. The
time of the backward is that of both passes less that of a forward without gradients.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TextIO

import torch

import report
from cases import GRIDS, Case, Inputs, make_inputs
from check import CHECKED, MEDIUM, compare, failures
from gca_kernels import gca_index
from measure import extra_bytes, median_ms
from origin import origin
from rivals import Attention, gather_sdpa, gca, paper
from roofline import Ceilings, floor_ms, flops, gathered_bytes, measure_ceilings

OURS = report.OURS
COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "copy_tb_s", "matmul_tflops"),
    *(field.name for field in fields(Case)),
    *("rival", "error", "forward_ms", "backward_ms", "forward_backward_ms", "forward_backward_shared_index_ms"),
    *("extra_backward_gb", "extra_total_gb", "floor_forward_ms", "floor_backward_ms", "floor_ms"),
    *("tflops", "share_of_floor", "note"),
)
LARGEST_COPY = 40e9


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Benchmark of grouped cross attention.")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of bench_gca.csv and bench_gca.png")
    parser.add_argument("--grid", choices=GRIDS, default="bars", help="three rows, or about twenty")
    parser.add_argument("--paper", type=Path, help="a checkout of github.com/ant-research/long-context-modeling")
    parser.add_argument("--commit", help="what is measured; git is asked when it is not given")
    parser.add_argument("--table", type=Path, metavar="CSV", help="only print the Markdown table of this file")
    parser.add_argument("--picture", type=Path, metavar="CSV", help="only draw this file, beside it")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            print(report.table(report.read(options.table)), end="")
        if options.picture:
            report.picture(report.read(options.picture), options.picture.with_suffix(".png"))
        if options.table or options.picture:
            return 0
        if not torch.cuda.is_available():
            raise ValueError("timing needs a CUDA device; --table and --picture do not")
        options.origin = origin(options.commit)
        rivals = {OURS: gca("triton"), "reference": gca("reference"), "gather_sdpa": gather_sdpa}
        rivals |= {"paper": paper(options.paper)} if options.paper else {}
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))
    return run(options, rivals)


def run(options: argparse.Namespace, rivals: Mapping[str, Attention]) -> int:
    """Check, measure the ceilings, time; 1 when ours is wrong or one of its rows is not complete."""
    if failed := failures(rivals[OURS], CHECKED, "cuda"):
        print("\n".join(f"wrong: {words}" for words in failed), file=sys.stderr)
        return 1
    errors = {name: _largest_error(attention) for name, attention in rivals.items()}
    ceilings = measure_ceilings("cuda")
    print(f"copy {ceilings.copy / 1e12:.2f} TB/s, bf16 product {ceilings.matmul / 1e12:.0f} TFLOP/s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "bench_gca.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        whole = write_rows(file, GRIDS[options.grid], rivals, errors, ceilings, options.origin, "cuda")
    rows = report.read(path)
    print(report.table(rows), end="")
    report.picture(rows, path.with_suffix(".png"))
    return 0 if whole else 1


def write_rows(
    file: TextIO,
    cases: Iterable[Case],
    rivals: Mapping[str, Attention],
    errors: Mapping[str, float | None],
    ceilings: Ceilings,
    origin: Mapping[str, str],
    device: str,
) -> bool:
    """Time every rival on every case and write each row at once; False when a row of ours has a note."""
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    whole = True
    for case in cases:
        for name, attention in rivals.items():
            row = {**origin, **asdict(case), "rival": name, "error": errors.get(name)}
            row |= {"copy_tb_s": ceilings.copy / 1e12, "matmul_tflops": ceilings.matmul / 1e12}
            row |= _roofline(case, ceilings)
            row["note"] = _note(row, case, attention, device)
            if time := row.get("forward_backward_ms", 0.0):
                row |= {"tflops": flops(case).total / time / 1e9, "share_of_floor": row["floor_ms"] / time}
            whole &= name != OURS or not row["note"]
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
            file.flush()
            print(f"{report.title(case)}: {name} {row['note'] or f'{time:.3f} ms'}", flush=True)
            _free()
    return whole


def time_case(row: dict[str, Any], case: Case, attention: Attention, device: str) -> None:
    """Put times and memory into `row`, each as soon as it is known. Gradients count as memory of the backward."""
    x = make_inputs(case, device)

    def both(x: Inputs = x) -> None:
        attention(x).backward(x.dout)

    with torch.no_grad():
        row["forward_ms"] = median_ms(lambda: attention(x))
    row["forward_backward_ms"] = median_ms(both, x.leaves)
    row["backward_ms"] = row["forward_backward_ms"] - row["forward_ms"]
    row["extra_total_gb"] = extra_bytes(both, x.leaves) / 1e9
    out = attention(x)
    row["extra_backward_gb"] = extra_bytes(lambda: out.backward(x.dout), x.leaves) / 1e9
    if row["rival"] == OURS:
        shared = replace(x, index=gca_index(x.ids, case.chunks))
        row["forward_backward_shared_index_ms"] = median_ms(lambda: both(shared), x.leaves)


def _note(row: dict[str, Any], case: Case, attention: Attention, device: str) -> str:
    """Time the case into `row`; why it is not complete, or nothing."""
    if row["rival"] == "reference" and gathered_bytes(case) > LARGEST_COPY:
        return f"skipped: K and V copied once per slot take {gathered_bytes(case) / 1e9:.0f} GB"
    try:
        time_case(row, case, attention, device)
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # one rival that cannot run a case does not cost the other rows
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


def _roofline(case: Case, ceilings: Ceilings) -> dict[str, float]:
    floor = floor_ms(case, ceilings)
    return {"floor_forward_ms": floor.forward, "floor_backward_ms": floor.backward, "floor_ms": floor.total}


def _largest_error(attention: Attention) -> float | None:
    """Of the output and the gradients in bf16, against fp64; None when the rival cannot run the case."""
    try:
        return max(compare(attention, MEDIUM, "cuda").own.values())
    except Exception as error:
        print(f"not compared: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
