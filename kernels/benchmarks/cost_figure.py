"""The Markdown table and the figure of bench_cost.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gca_lit.results.plots import pyplot, short_length
from report import about, read

Row = dict[str, str]
Case = tuple[str, int, str]  # size, row length, model

BESIDE = "sliding_window"
NAMES = {
    BESIDE: "sliding window, two layers more",
    "gca_1_group": "GCA, one group",
    "gca_2_groups": "GCA, two groups",
    "full": "full attention",
}
COLORS = {BESIDE: "#7f7f7f", "gca_1_group": "#0b6e99", "gca_2_groups": "#6a4c93", "full": "#c0504d"}
RUN = ("date", "gpu", "torch", "triton", "commit", "command")
LENGTH = 16_384
"""Row length at which sizes are compared."""


def latest(rows: Sequence[Row]) -> dict[Case, Row]:
    """The last row of each case, by size, then length, then in the order of NAMES."""
    found = {(row["size"], int(row["length"]), row["model"]): row for row in rows}
    sizes, models = list(dict.fromkeys(row["size"] for row in rows)), list(NAMES)
    return dict(sorted(found.items(), key=lambda one: (sizes.index(one[0][0]), one[0][1], models.index(one[0][2]))))


def ratio(cases: Mapping[Case, Row], case: Case, column: str) -> float | None:
    """How many times the sliding window's value in the same run a case has, where both are known."""
    row, beside = cases[case], cases.get((*case[:2], BESIDE))
    if beside is None or any(row[name] != beside[name] for name in RUN) or not (row[column] and beside[column]):
        return None
    return float(row[column]) / float(beside[column])


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each case; brackets hold how many times that of the sliding window in the same run it is."""
    lines = [
        "| size | tokens a row | model | parameters | ms a step | tokens/s | peak memory, GB | MFU | |",
        "|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    cases = latest(rows)
    for case, row in cases.items():
        cells = [case[0], f"{case[1]:,}", NAMES[case[2]], f"{int(row['params']):,}"]
        for column, form in (("step_ms", ".1f"), ("tokens_per_s", ",.0f"), ("peak_gb", ".1f")):
            times = ratio(cases, case, column)
            cells.append(_number(row[column], form) + (f" ({times:.2f}x)" if times and case[2] != BESIDE else ""))
        lines.append(f"| {' | '.join([*cells, _number(row['mfu'], '.1%'), row['note'].replace('|', '/')])} |")
    origins = dict.fromkeys(_origin(row) for row in cases.values())
    return "\n".join(lines) + "\n\n" + "\n".join(origins) + "\n"


def draw(path: Path) -> Path:
    """Time of a step against row length, a panel for each size, and throughput by size; beside the CSV.

    Raises ValueError when nothing was timed.
    """
    cases = {case: row for case, row in latest(read(path)).items() if row["step_ms"]}
    if not cases:
        raise ValueError(f"{path} has no row with a time: its notes say why")
    plt = pyplot()
    sizes = list(dict.fromkeys(size for size, _, _ in cases))
    figure, panels = plt.subplots(1, len(sizes) + 1, figsize=(1 + 3.6 * (len(sizes) + 1), 4), layout="constrained")
    for axes, size in zip(panels, sizes, strict=False):
        _times(axes, {case: row for case, row in cases.items() if case[0] == size})
        axes.set_title(size, fontsize=10)
    _throughput(panels[-1], cases, sizes)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"Training, bf16, {next(reversed(cases.values()))['gpu']}", fontsize=11)
    figure.savefig(path.with_suffix(".png"), dpi=160)
    plt.close(figure)
    return path.with_suffix(".png")


def _times(axes: Any, cases: Mapping[Case, Row]) -> None:
    for model, color in COLORS.items():
        points = [(length, float(row["step_ms"]) / 1e3) for (_, length, name), row in cases.items() if name == model]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=NAMES[model], linewidth=1.8, markersize=5)
    lengths = sorted({length for _, length, _ in cases})
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xticks(lengths, [short_length(length) for length in lengths], fontsize=8)
    axes.minorticks_off()
    row = next(iter(cases.values()))
    tokens = int(row["batch"]) * int(row["length"])
    axes.set_xlabel("text tokens of a row", fontsize=9)
    axes.set_ylabel(f"seconds for a step of {short_length(tokens)} tokens", fontsize=9)
    axes.grid(color="0.9", linewidth=0.8)


def _throughput(axes: Any, cases: Mapping[Case, Row], sizes: Sequence[str]) -> None:
    for number, (model, color) in enumerate(COLORS.items()):
        for place, size in enumerate(sizes):
            if row := cases.get((size, LENGTH, model)):
                x = place + (number - (len(COLORS) - 1) / 2) * 0.2
                axes.bar(x, float(row["tokens_per_s"]) / 1e3, width=0.18, color=color)
    axes.set_xticks(range(len(sizes)), sizes, fontsize=8)
    axes.set_title(f"rows of {short_length(LENGTH)}", fontsize=10)
    axes.set_xlabel("size", fontsize=9)
    axes.set_ylabel("thousand tokens/s", fontsize=9)
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _origin(row: Row) -> str:
    return f"{about(row)}: `{row['command']}`"


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else ""
