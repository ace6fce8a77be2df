"""The Markdown table and the picture of bench_gca.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cases import BARS, BASE, Case

Row = dict[str, str]
Group = dict[str, Row]  # the rows of one case by rival

OURS = "triton"
COLORS = {OURS: "#0b6e99", "paper": "#c0504d", "gather_sdpa": "#d98200", "reference": "#7f7f7f"}
NAMES = {OURS: "gca_kernels", "paper": "the paper's code", "gather_sdpa": "gather + SDPA", "reference": "plain torch"}


def read(path: str | Path) -> list[Row]:
    """Raises ValueError when the file has no rows."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows: the run that wrote it timed nothing")
    return rows


def about(row: Row) -> str:
    """Where a row was measured."""
    return f"{row['gpu']}, torch {row['torch']}, Triton {row['triton']}, {row['date']}, commit {row['commit']}"


def title(case: Case) -> str:
    shape = f"B {case.batch}, T {_count(case.rows)}, {case.heads}/{case.kv_heads}, D {case.width}, K {case.slots}"
    return shape if case.dtype == BASE.dtype else f"{shape}, {case.dtype}"


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each case: milliseconds of ours, then forward + backward of the rivals.

    A rival's cell holds its milliseconds, how many times ours that is, and its extra memory in the backward. A cell
    that could not be measured says why.
    """
    groups = _by_case(rows)
    rivals = _rivals(groups)
    head = ["case (H/J)", "forward", "backward", "both", "both, shared index"]
    head += ["TFLOP/s", "of the floor", "extra GB", *(NAMES[name] for name in rivals)]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for case, group in groups.items():
        lines.append(_line([title(case), *_own_cells(group.get(OURS)), *(_rival_cell(group, name) for name in rivals)]))
    return "\n".join(lines) + f"\n\n{_origin(rows[0])}\n"


def picture(rows: Sequence[Row], path: str | Path) -> None:
    """Time against the number of rows beside the roofline, and how many times faster ours is on the three bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _times(left, rows)
    _ratios(right, _by_case(rows))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    handles = {handle.get_label(): handle for axes in (left, right) for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(f"Grouped cross attention, one layer, bf16, {rows[0]['gpu']}", fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _times(axes: Any, rows: Sequence[Row]) -> None:
    shown = [row for row in rows if _case(row) == replace(BASE, rows=int(row["rows"]))]
    for name, color in COLORS.items():
        mine = [row for row in shown if row["rival"] == name and row["forward_backward_ms"]]
        points = sorted((int(row["rows"]), float(row["forward_backward_ms"])) for row in mine)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=NAMES[name], linewidth=1.8, markersize=5)
    floor = sorted({(int(row["rows"]), float(row["floor_ms"])) for row in shown})
    if floor:
        axes.plot(*zip(*floor, strict=True), "k--", linewidth=1.2, label="roofline")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([rows for rows, _ in floor], [_count(rows) for rows, _ in floor], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(f"query rows (B {BASE.batch}, {BASE.heads} heads, D {BASE.width}, K {BASE.slots})", fontsize=9)
    axes.set_ylabel("forward + backward, ms", fontsize=9)
    axes.grid(color="0.9", linewidth=0.8)


def _ratios(axes: Any, groups: dict[Case, Group]) -> None:
    cases = [case for case in BARS if case in groups]
    rivals = _rivals(groups)
    for number, name in enumerate(rivals):
        for place, case in enumerate(cases):
            if ratio := _ratio(groups[case], name):
                x = place + (number - (len(rivals) - 1) / 2) * 0.27
                axes.bar(x, ratio, width=0.25, color=COLORS[name], label=NAMES[name])
                axes.annotate(f"{ratio:.1f}x", (x, ratio), ha="center", va="bottom", fontsize=8)
    axes.axhline(1, color=COLORS[OURS], linewidth=1.5)
    labels = [f"B {case.batch}, H/J {case.heads}/{case.kv_heads}" for case in cases]
    axes.set_xticks(range(len(cases)), labels, fontsize=8)
    axes.set_xlabel(f"{_count(BASE.rows)} query rows, D {BASE.width}, K {BASE.slots}", fontsize=9)
    axes.set_ylabel(f"forward + backward, times that of {NAMES[OURS]}", fontsize=9)
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _own_cells(row: Row | None) -> list[str]:
    if row is None:
        return [""] * 7
    times = ("forward_ms", "backward_ms", "forward_backward_ms", "forward_backward_shared_index_ms")
    cells = [*(_number(row[name], ".3g") for name in times), _number(row["tflops"], ".0f")]
    cells += [_number(row["share_of_floor"], ".0%"), _number(row["extra_backward_gb"], ".2f")]
    return [cells[0] or row["note"], *cells[1:]]


def _rival_cell(group: Group, name: str) -> str:
    row = group.get(name)
    if row is None or not row["forward_backward_ms"]:
        return row["note"] if row else ""
    ratio, extra = _ratio(group, name), _number(row["extra_backward_gb"], ".2f")
    brackets = ", ".join([f"{ratio:.1f}x"] * bool(ratio) + [f"{extra} GB"] * bool(extra))
    return f"{_number(row['forward_backward_ms'], '.3g')} ({brackets})"


def _ratio(group: Group, name: str) -> float | None:
    """How many times our forward + backward a rival takes, where both are known."""
    times = [group[key]["forward_backward_ms"] if key in group else "" for key in (name, OURS)]
    return float(times[0]) / float(times[1]) if all(times) else None


def _origin(row: Row) -> str:
    rates = f"copy {_number(row['copy_tb_s'], '.2f')} TB/s, bf16 product {_number(row['matmul_tflops'], '.0f')} TFLOP/s"
    return f"{about(row)}; {rates}."


def _rivals(groups: dict[Case, Group]) -> list[str]:
    return [name for name in COLORS if name != OURS and any(name in group for group in groups.values())]


def _by_case(rows: Sequence[Row]) -> dict[Case, Group]:
    groups: dict[Case, Group] = {}
    for row in rows:
        groups.setdefault(_case(row), {})[row["rival"]] = row
    return groups


def _case(row: Row) -> Case:
    values: dict[str, Any] = {field.name: int(row[field.name]) for field in fields(Case) if field.name != "dtype"}
    return Case(**values, dtype=row["dtype"])


def _count(rows: int) -> str:
    return f"{rows // 1024}K" if rows % 1024 == 0 else str(rows)


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
