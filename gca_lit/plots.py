"""Pictures and tables of length_generalization.jsonl: `python -m gca_lit.plots RUN_DIR... --output DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from gca_lit.results import ResultsFile, Row, latest
from gca_lit.tasks.metrics import wilson

COLORS = {"gca": "#0b6e99", "full": "#c0504d", "sliding_window": "#7f7f7f"}
OTHER_COLORS = ("#6a4c93", "#8a9a00", "#d98200", "#2f7d4f")
TITLES = {"gca": "GCA", "full": "Full attention", "sliding_window": "Sliding window"}


def heat_map(rows: Sequence[Row], task: str, path: str | Path) -> None:
    """Exact match (or perplexity) of one task by evaluation length and depth, one panel for each placement.

    rows: of one backend. Cells without a number say why: "skipped", "max_length".
    Raises ValueError when no row belongs to `task`.
    """
    rows = [row for row in rows if row["task"] == task]
    if not rows:
        raise ValueError(f"heat_map: there are no rows of task {task}")
    plt = pyplot()
    key = "perplexity" if any(row.get("perplexity") for row in rows) else "accuracy"
    placements = list(dict.fromkeys(row["placement"] for row in rows))
    lengths = sorted({row["eval_length"] for row in rows})
    depths = sorted({row["depth"] for row in rows}, key=lambda depth: -1.0 if depth is None else depth)
    figure, panels = plt.subplots(
        len(placements),
        1,
        squeeze=False,
        layout="constrained",
        figsize=(max(5.5, 2.2 + 1.0 * len(lengths)), 1.0 + len(placements) * (0.7 + 0.4 * len(depths))),
    )
    for axes, placement in zip(panels[:, 0], placements, strict=True):
        mine = [row for row in rows if row["placement"] == placement]
        image = _panel(axes, mine, lengths, depths, key)
        if placement is not None and len(placements) > 1:
            axes.set_title(_placement(placement), fontsize=9, loc="right")
    panels[-1, 0].set_xlabel("evaluation length in tokens (multiple of the training length)", fontsize=9)
    measure = ", exact match" if key == "accuracy" else ""
    figure.suptitle(f"{title(rows[0]['backend'])}: {task}{measure}", fontsize=11)
    if key == "accuracy":
        bar = figure.colorbar(image, ax=panels[:, 0].tolist(), fraction=0.04, pad=0.02)
        bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def accuracy_by_length(rows: Sequence[Row], path: str | Path) -> None:
    """Exact match of all backends against evaluation length, one panel for each task and placement.

    Bars are 95 % Wilson intervals over all depths; hollow marks on the axis are lengths that were skipped.
    Raises ValueError when no row has or could have an accuracy.
    """
    rows = [row for row in rows if row["placement"] is not None]
    if not rows:
        raise ValueError("accuracy_by_length: there are no rows of tasks that ask a question")
    plt = pyplot()
    panels_of = sorted({(row["task"], row["placement"]) for row in rows})
    colors = colors_of(row["backend"] for row in rows)
    columns = min(2, len(panels_of))
    height = -(-len(panels_of) // columns)
    figure, grid = plt.subplots(
        height,
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(1 + 5.4 * columns, 0.8 + 3.1 * height),
        sharey=True,
    )
    for axes, (task, placement) in zip(grid.flat, panels_of, strict=False):
        _curves(axes, [row for row in rows if (row["task"], row["placement"]) == (task, placement)], colors)
        axes.set_title(f"{task}, {_placement(placement)}", fontsize=10)
    for axes in grid.flat[len(panels_of) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel("exact match", fontsize=9)
    handles = {handle.get_label(): handle for axes in grid.flat for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, one line for each task, placement, length and backend; all depths together.

    Peak memory by tier: the device's is the allocator's peak on a GPU, and on a CPU the K/V and landmarks beside the
    chunk store; host and disk are the chunk store's.
    """
    lines = [
        "| task | placement | length | factor | backend | exact match | n | 95 % interval | tokens/s "
        "| device | host | disk |",
        "|---|---|---:|---:|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in _pool_depths(rows):
        if row["status"] == "skipped":
            result = f"{row['reason']} | | | | | | |"
        else:
            if row["accuracy"] is not None:
                score, interval = f"{row['accuracy']:.3f}", f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
            else:
                score, interval = f"perplexity {row.get('perplexity') or float('inf'):.2f}", ""
            partial = " (partial)" if row["status"] == "partial" else ""
            speed = f"{row['tokens_per_second']:,.0f}" if row["tokens_per_second"] else ""
            device = row["peak_device_bytes"] or row["state_bytes"]
            sizes = " | ".join(_size(size) for size in (device, row["host_bytes"], row["disk_bytes"]))
            result = f"{score} | {row['n']}{partial} | {interval} | {speed} | {sizes} |"
        where = f"| {row['task']} | {row['placement'] or ''} | {row['eval_length']:,} | {row['factor']:g} "
        lines.append(f"{where}| {row['backend']} | {result}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gca_lit.plots", description="Compare runs by evaluation length.")
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder with a results file")
    parser.add_argument("--output", type=Path, default=Path(), help="where table.md and accuracy_by_length.png go")
    parser.add_argument("--split", default="val", help="rows of this split of the data: val or test")
    parser.add_argument("--file", default="length_generalization.jsonl", help="name of the results file")
    options = parser.parse_args(arguments)
    if missing := [str(folder) for folder in options.run_dir if not (folder / options.file).exists()]:
        parser.error(f"there is no {options.file} in {', '.join(missing)}: run LengthGeneralization first")
    rows = _read([folder / options.file for folder in options.run_dir], options.split)
    if not rows:
        parser.error(f"there are no rows of split {options.split} in {', '.join(map(str, options.run_dir))}")
    text = table(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    accuracy_by_length(rows, options.output / "accuracy_by_length.png")
    print(text, end="")


def _read(paths: Sequence[Path], split: str) -> list[Row]:
    """Rows of a split, of each backend's newest checkpoint; a backend in several files gets the folder in its name."""
    files = []
    for path in paths:
        rows = [row for row in latest(ResultsFile(path).rows) if row.get("split", split) == split]
        newest = {row["backend"]: row["checkpoint_sha256"] for row in rows}
        files.append((path, [row for row in rows if row["checkpoint_sha256"] == newest[row["backend"]]]))
    backends = [backend for _, rows in files for backend in {row["backend"] for row in rows}]
    return [
        row | {"backend": f"{row['backend']} ({path.parent.name})"} if backends.count(row["backend"]) > 1 else row
        for path, rows in files
        for row in rows
    ]


def _panel(axes: Any, rows: Sequence[Row], lengths: list[int], depths: list[float | None], key: str) -> Any:
    """Draw one length x depth map; the image, for a colour bar."""
    grid = [[float("nan")] * len(lengths) for _ in depths]
    for row in rows:
        x, y = lengths.index(row["eval_length"]), depths.index(row["depth"])
        value = row.get(key)
        if value is None:
            label, color = missing(row), "0.45"
        else:
            grid[y][x] = value
            label = f"{value:.2f}" if key == "accuracy" else f"{value:.1f}"
            color = "white" if key == "accuracy" and value < 0.6 else "black"
        size = 9 if value is not None else 7
        axes.text(x, y, label, ha="center", va="center", fontsize=size, color=color)
    limits = {"vmin": 0, "vmax": 1} if key == "accuracy" else {"alpha": 0.35}
    image = axes.imshow(grid, aspect="auto", cmap="viridis" if key == "accuracy" else "viridis_r", **limits)
    factors = {row["eval_length"]: row["factor"] for row in rows}
    ticks = [
        f"{short_length(length)}\n{factors[length]:g}x" if length in factors else short_length(length)
        for length in lengths
    ]
    axes.set_xticks(range(len(lengths)), ticks, fontsize=8)
    _mark_training_length(axes, lengths, rows[0]["train_length"])
    axes.set_xticks([x - 0.5 for x in range(1, len(lengths))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(depths))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.set_yticks(range(len(depths)), ["any" if d is None else f"{d:.0%}" for d in depths], fontsize=8)
    axes.set_ylabel("depth", fontsize=9)
    axes.spines[:].set_visible(False)
    return image


def _mark_training_length(axes: Any, lengths: list[int], train_length: int) -> None:
    """A line behind the last column that is no longer than the training length."""
    inside = sum(length <= train_length for length in lengths)
    axes.axvline(inside - 0.5, color="black", linewidth=1.6, linestyle="--", clip_on=False)
    axes.annotate(
        f"trained to {short_length(train_length)}",
        (inside - 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center" if inside else "left",
        fontsize=8,
    )


def colors_of(backends: Iterable[str]) -> dict[str, str]:
    """A colour for each backend, the known ones first."""
    names = set(backends)
    others = zip(sorted(names - set(COLORS)), cycle(OTHER_COLORS), strict=False)
    return {name: color for name, color in COLORS.items() if name in names} | dict(others)


def _curves(axes: Any, rows: Sequence[Row], colors: dict[str, str]) -> None:
    pooled = _pool_depths(rows)
    for number, (backend, color) in enumerate(colors.items()):
        mine = [row for row in pooled if row["backend"] == backend]
        known = [row for row in mine if row["accuracy"] is not None]
        errors = [
            [max(0.0, row["accuracy"] - row["ci_low"]) for row in known],
            [max(0.0, row["ci_high"] - row["accuracy"]) for row in known],
        ]
        axes.errorbar(
            [row["eval_length"] for row in known],
            [row["accuracy"] for row in known],
            yerr=errors,
            color=color,
            marker="o",
            markersize=5,
            linewidth=1.8,
            capsize=2.5,
            elinewidth=1,
            label=title(backend),
            zorder=3,
        )
        height = -0.07 - 0.06 * number
        last = {missing(row): row["eval_length"] for row in mine if row["accuracy"] is None}
        hollow = [row["eval_length"] for row in mine if row["accuracy"] is None]
        axes.plot(hollow, [height] * len(hollow), "o", markerfacecolor="none", color=color, markersize=5)
        for word, length in last.items():
            axes.annotate(
                word,
                (length, height),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=color,
                annotation_clip=False,
            )
    lengths = sorted({row["eval_length"] for row in pooled})
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        lengths, [short_length(length) for length in lengths], fontsize=8, rotation=45 if len(lengths) > 8 else 0
    )
    axes.minorticks_off()
    for train_length in sorted({row["train_length"] for row in pooled}):
        axes.axvline(train_length, color="0.35", linestyle="--", linewidth=1.2, zorder=1, label="training length")
    axes.set_ylim(-0.07 - 0.06 * len(colors), 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=8)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("evaluation length in tokens", fontsize=9)


def _pool_depths(rows: Iterable[Row]) -> list[Row]:
    """One row for each task, placement, length and backend: counts added, speed and memory of the worst depth."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["placement"] or "", row["eval_length"], row["backend"]), []).append(row)
    pooled = []
    for _, group in sorted(groups.items()):
        counted = [row for row in group if row["n"]]
        if not counted:
            pooled.append(group[0])
            continue
        one = dict(counted[0])
        one["n"] = sum(row["n"] for row in counted)
        one["status"] = "done" if all(row["status"] == "done" for row in group) else "partial"
        if one["correct"] is not None:
            one["correct"] = sum(row["correct"] for row in counted)
            one["accuracy"] = one["correct"] / one["n"]
            one["ci_low"], one["ci_high"] = wilson(one["correct"], one["n"])
        speeds = [row["tokens_per_second"] for row in counted if row["tokens_per_second"]]
        one["tokens_per_second"] = min(speeds, default=None)
        for name in ("peak_device_bytes", "state_bytes", "host_bytes", "disk_bytes"):
            one[name] = max((row[name] for row in counted if row[name] is not None), default=None)
        pooled.append(one)
    return pooled


def short_length(length: int) -> str:
    """16,384 -> 16K and 16,384,000 -> 16M, as people say them."""
    for unit, sizes in (("M", (1_024_000, 1 << 20, 1_000_000)), ("K", (1024, 1000))):
        if length >= sizes[-1]:
            whole = next((length // size for size in sizes if length % size == 0), None)
            return f"{whole or round(length / sizes[0], 2):g}{unit}"
    return str(length)


def missing(row: Row) -> str:
    """Why a row has no number, in a word."""
    return "max_length" if (row["reason"] or "").startswith("max_length") else str(row["status"])


def title(backend: str) -> str:
    return TITLES.get(backend, backend)


def _placement(placement: str) -> str:
    return "question at the chunk border" if placement == "chunk" else "question at the end"


def _size(held: int) -> str:
    size, unit = float(held), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.{0 if unit == 'B' else 1}f} {unit}"


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
