"""What Nsight Compute counts in the kernels of grouped cross attention: how busy the device is, and what holds it back.

    PYTHONPATH=.:kernels python kernels/benchmarks/profile_gca.py --output DIR
    PYTHONPATH=.:kernels python kernels/benchmarks/profile_gca.py --plot DIR/profile_gca.csv

Runs `ncu` over the bars of bench_gca.py that have batch 4, appends to DIR/profile_gca.csv a row for each of their
kernels, and prints the table; --plot only prints. Kernels are profiled one at a time, with the clocks as they are.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

import command
from cases import BARS, make_inputs
from gca_kernels import gca_attention, gca_index
from report import Row, about, read, title

KERNELS = {"forward_kernel": "forward", "query_kernel": "backward, q and weights", "chunk_kernel": "backward, K and V"}
CASES, RUNS = BARS[:2], 2
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis", "InstructionStats")
METRICS = {
    "Duration": "ms",
    "Compute (SM) Throughput": "compute_percent",
    "DRAM Throughput": "dram_percent",
    "L1/TEX Cache Throughput": "l1_percent",
    "L2 Cache Throughput": "l2_percent",
    "L2 Hit Rate": "l2_hit_percent",
    "Achieved Occupancy": "occupancy_percent",
    "Registers Per Thread": "registers",
    "Warp Cycles Per Issued Instruction": "cycles_per_instruction",
}
"""Columns by what ncu calls them."""
COLUMNS = ("date", "gpu", "torch", "triton", "commit", "command", "case", "kernel", *METRICS.values())


def attend() -> None:
    """The kernels of each case, RUNS times: what ncu looks at."""
    for case in CASES:
        inputs = make_inputs(case, "cuda")
        index = gca_index(inputs.ids, case.chunks)
        for _ in range(RUNS):
            out = gca_attention(
                *(inputs.q, inputs.chunk_k, inputs.chunk_v, inputs.ids, inputs.weights), block=inputs.block, index=index
            )
            out.backward(inputs.dout)
    torch.cuda.synchronize()


def counted(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Rows from what `ncu --csv --page details` prints over `attend`: the last run of each case."""
    launches: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(line for line in lines if line.startswith('"')):
        row = launches.setdefault(line["ID"], {"kernel": line["Kernel Name"]})
        if name := METRICS.get(line["Metric Name"]):
            value = float(line["Metric Value"].replace(",", ""))
            row[name] = value / {"ns": 1e6, "us": 1e3, "ms": 1}[line["Metric Unit"]] if name == "ms" else value
    wanted = [row for row in launches.values() if row["kernel"] in KERNELS]
    if len(wanted) != len(CASES) * RUNS * len(KERNELS):
        raise SystemExit(f"ncu saw {len(wanted)} kernels of {', '.join(KERNELS)}: it cannot profile on this machine")
    of_case = torch.arange(len(wanted)).view(len(CASES), RUNS, len(KERNELS))[:, -1]
    return [{"case": title(case)} | wanted[i] for case, last in zip(CASES, of_case.tolist(), strict=True) for i in last]


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each kernel; percentages are of the device's peaks."""
    lines = [
        "| case (H/J) | kernel | ms | SM | device memory | L1 | L2 | warps | registers | cycles an instruction |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        percent = [f"{float(row[f'{of}_percent']):.0f}%" for of in ("compute", "dram", "l1", "l2", "occupancy")]
        cells = [row["case"], KERNELS[row["kernel"]], f"{float(row['ms']):.3f}", *percent]
        cells += [f"{float(row['registers']):.0f}", f"{float(row['cycles_per_instruction']):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{about(rows[-1])}.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("Profile of the kernels.", "profile_gca.csv", figure=True)
    parser.add_argument("--attend", action="store_true", help="only run the kernels: what ncu is given")
    options = parser.parse_args(arguments)
    if options.attend:
        attend()
        return
    path = options.plot or options.output / "profile_gca.csv"
    if options.output:
        common = command.begin(parser, options)
        for row in counted(_profile()):
            command.record(path, common | row, COLUMNS, f"{row['case']} {row['kernel']}: {row['ms']:.3f} ms")
    print(table(read(path)), end="")


def _profile() -> list[str]:
    sections = [part for name in SECTIONS for part in ("--section", name)]
    what = ["-k", f"regex:{'|'.join(KERNELS)}", *sections, sys.executable, __file__, "--output", ".", "--attend"]
    run = ["ncu", "--clock-control", "none", "--csv", "--page", "details", *what]
    try:
        done = subprocess.run(run, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("ncu is not on the PATH: install NVIDIA Nsight Compute") from None
    if done.returncode:
        raise SystemExit(f"ncu ended with {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
