"""Pictures of length_generalization.jsonl; with tables: `python -m gca_lit.results.plots RUN_DIR... --output DIR`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from gca_lit.arguments import Arguments, said
from gca_lit.results.file import Row, latest, read_results
from gca_lit.results.tables import missing, pool_depths, short_length, summary, table, tell_tasks_apart
from gca_lit.whole_file import saving

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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.results.plots", description="Compare runs by evaluation length.")
    parser.add_argument("run", nargs="+", type=Path, help="folder with a results file, or a results file")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        help="where table.md and accuracy_by_length.png go (default: this folder)",
    )
    parser.add_argument("--split", default="val", help="rows of this split of the data: val or test")
    parser.add_argument("--file", default="length_generalization.jsonl", help="name of the results file in a folder")
    options = parser.parse_args(arguments)
    files = [path if path.is_file() else path / options.file for path in options.run]
    if absent := [str(path) for path, file in zip(options.run, files, strict=True) if not file.exists()]:
        parser.error(f"there is no {options.file} in {', '.join(absent)}: lightning_cli.py validate writes it")
    try:
        rows = tell_tasks_apart(_read(files, options.split))
        if not rows:
            raise ValueError(f"there are no rows of split {options.split} in {', '.join(map(str, options.run))}")
        text = "\n".join(part for part in (summary(rows), table(rows)) if part)
        with saving(f"{options.output} could not be written"):
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "table.md").write_text(text, encoding="utf-8")
            accuracy_by_length(rows, options.output / "accuracy_by_length.png")
    except (ValueError, OSError) as error:
        parser.error(said(error))
    print(text, end="")


def _read(paths: Sequence[Path], split: str) -> list[Row]:
    """Rows of a split, of each backend's newest checkpoint; a backend in several files gets the run in its name."""
    files = []
    for path in paths:
        rows = [row for row in latest(read_results(path)) if row.get("split", split) == split]
        newest = {row["backend"]: row["checkpoint_sha256"] for row in rows}
        run = path.parent.name if path.name == "length_generalization.jsonl" else path.stem
        files.append((run, [row for row in rows if row["checkpoint_sha256"] == newest[row["backend"]]]))
    backends = [backend for _, rows in files for backend in {row["backend"] for row in rows}]
    return [
        row | {"backend": f"{row['backend']} ({run})"} if backends.count(row["backend"]) > 1 else row
        for run, rows in files
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
    pooled = pool_depths(rows)
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


def title(backend: str) -> str:
    return TITLES.get(backend, backend)


def _placement(placement: str) -> str:
    return "question at the chunk border" if placement == "chunk" else "question at the end"


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
