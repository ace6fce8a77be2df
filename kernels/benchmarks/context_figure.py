"""What bench_context measured, as a table, and as a figure: grouped cross attention relative to the sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gca_lit.results.plots import pyplot, short_length
from report import about, read

Row = dict[str, str]


NAMES = {"gca": "GCA", "sliding_window": "sliding window"}
COLUMNS = {
    "first_tokens_per_s": ",.0f",
    "again_tokens_per_s": ",.0f",
    "full_tokens_per_s": ",.0f",
    "decode_tokens_per_s": ".0f",
    "fastest_tokens_per_s": ".0f",
    "host_ms": ".1f",
    "first_ms": ".1f",
    "token_ms": ".2f",
    "slowest_token_ms": ".1f",
    "read_peak_gb": ".2f",
    "decode_peak_gb": ".2f",
    "landmarks_gb": ".2f",
    "state_host_gb": ".1f",
}


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each row."""
    lines = [
        "| model | | context | read, tokens/s | again | every output | decoded, tokens/s | fastest turn | host, ms "
        "| ms a token, first ones | median | slowest "
        "| GB, reading | decoding | landmarks | on the host |",
        f"|---|---|{'---:|' * (1 + len(COLUMNS))}",
    ]
    for row in rows:
        cells = [row["model"], NAMES[row["backend"]], short_length(int(row["length"]))]
        cells += [format(float(row[name]), form) if row[name] else row["note"] for name, form in COLUMNS.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{about(rows[-1])}.\n"


def relative(rows: Sequence[Row], column: str) -> dict[str, list[tuple[int, float]]]:
    """Of each model (length, GCA's value over the sliding window's, of a speed that of the times) where both are known;
    later rows count."""
    values = {(row["model"], row["backend"], int(row["length"])): float(row[column]) for row in rows if row[column]}
    ratios: dict[str, list[tuple[int, float]]] = {}
    for (model, backend, length), value in sorted(values.items()):
        beside = values.get((model, "sliding_window", length))
        if backend == "gca" and beside:
            ratio = beside / value if column.endswith("_per_s") else value / beside
            ratios.setdefault(model, []).append((length, ratio))
    return ratios


def draw(path: Path) -> Path:
    """Time per token and device memory against context length, relative to the sliding window, beside the CSV."""
    plt, rows = pyplot(), read(path)
    panels = {"decode_tokens_per_s": "time per token, decoding", "decode_peak_gb": "device memory, decoding"}
    curves = {column: relative(rows, column) for column in panels}
    if not all(curves.values()):
        raise ValueError(f"{path} has no model and length with both backends: measure gca and sliding_window")
    figure, both = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, (column, what) in zip(both, panels.items(), strict=True):
        for model, points in curves[column].items():
            axes.plot(*zip(*points, strict=True), "o-", label=f"GCA, {model}", linewidth=1.8, markersize=5)
        axes.axhline(1, color="k", linestyle="--", linewidth=1.2, label="sliding window")
        axes.set_xscale("log", base=2)
        lengths = sorted({length for points in curves[column].values() for length, _ in points})
        axes.set_xticks(lengths, [short_length(length) for length in lengths], fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("context, text tokens", fontsize=9)
        axes.set_ylabel(f"{what},\ntimes that of sliding window", fontsize=9)
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Long contexts, bf16, {rows[-1]['gpu']}", fontsize=11)
    figure.savefig(path.with_suffix(".png"), dpi=160)
    plt.close(figure)
    return path.with_suffix(".png")
