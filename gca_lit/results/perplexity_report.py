"""Language models side by side: `python -m gca_lit.results.perplexity_report RUN_DIR... --output DIR`.

Of each results file, which all run directories must have, a Markdown table and a panel of a figure: perplexity behind
each left context, or by position where whole passages were scored (`scored: null`). Runs are called as their folders.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gca_lit.arguments import Arguments, said
from gca_lit.results.file import Row, read_results
from gca_lit.results.plots import colors_of, pyplot, title
from gca_lit.results.tables import missing, short_length
from gca_lit.whole_file import saving

Runs = dict[str, list[Row]]  # the rows of each run

SAME = ("scored_tokens", "text", "tokenizer", "seed", "split", "precision")
"""What rows must have in common, or their perplexities do not compare."""
NEAR = 1024
"""Positions before this one are one column."""
TALLEST = 1.6
"""A panel ends at this multiple of its lowest perplexity; what lies above is in the table alone."""


@dataclass(frozen=True)
class Comparison:
    """What one results file says about all runs.

    name: of the file, without its ending.
    axis: "left context", a column for each evaluation length, the scored tokens counted; or "position", the end of each
        range of positions within passages of one length.
    cells: of each run and column the perplexity, or a word that says why there is none.
    rows: one of each run.
    """

    name: str
    axis: str
    cells: dict[str, dict[int, float | str]]
    rows: dict[str, Row]

    @property
    def columns(self) -> list[int]:
        """Those in which some run has a number."""
        numbers = {at for cells in self.cells.values() for at, cell in cells.items() if isinstance(cell, float)}
        return sorted(numbers)


def compare(name: str, runs: Runs) -> Comparison:
    """Raises ValueError when rows did not score the same tokens, or no number is there to compare."""
    whole = any(row["position_buckets"] for rows in runs.values() for row in rows)
    axis, cells = ("position", _by_position(name, runs)) if whole else ("left context", _by_context(name, runs))
    found = Comparison(name, axis, cells, {run: rows[-1] for run, rows in runs.items()})
    if not found.columns:
        raise ValueError(f"{name}: no row is done, the reasons are in its rows")
    return found


def table(found: Comparison) -> str:
    """Markdown, a line for each run."""
    columns = found.columns
    head = " | ".join(short_length(at) for at in columns)
    lines = [
        f"### {found.name}: perplexity by {found.axis}, in tokens\n",
        f"| run | backend | parameters | steps | {head} |",
        f"|---|---|---:|---:|{'---:|' * len(columns)}",
    ]
    for run, cells in found.cells.items():
        row = found.rows[run]
        shown = [f"{cell:.2f}" if isinstance(cell, float) else cell for cell in (cells.get(at, "") for at in columns)]
        size = f"{row['params']:,} | {row['global_step']:,}"
        lines.append(f"| {run} | {row['backend']} | {size} | {' | '.join(shown)} |")
    origins = dict.fromkeys(
        f"{row['hardware']}, torch {row['versions']['torch']}, commit {row['commit']}" for row in found.rows.values()
    )
    return "\n".join(lines) + "\n\n" + "\n".join(origins) + "\n"


def picture(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Perplexity against left context or position, a panel for each comparison; dashed lines are training lengths."""
    plt = pyplot()
    width = min(2, len(comparisons))
    height = -(-len(comparisons) // width)
    size = (1 + 5.4 * width, 0.8 + 3.4 * height)
    figure, grid = plt.subplots(height, width, squeeze=False, layout="constrained", figsize=size)
    colors = colors_of(run for found in comparisons for run in found.cells)
    for axes, found in zip(grid.flat, comparisons, strict=False):
        _curves(axes, found, colors)
    for axes in grid.flat[len(comparisons) :]:
        axes.axis("off")
    handles = {handle.get_label(): handle for axes in grid.flat for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.results.perplexity_report", description="Compare language models.")
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder of a run, by whose name it is called")
    parser.add_argument(
        "--output", type=Path, default=Path(), help="where perplexity.md and perplexity.png go (default: here)"
    )
    parser.add_argument("--files", nargs="+", default=["books.jsonl", "math.jsonl"], help="results files of each run")
    parser.add_argument("--split", default="val", help="rows of this split of the data: val or test")
    options = parser.parse_args(arguments)
    folders = {folder.name: folder for folder in options.run_dir}
    if len(folders) < len(options.run_dir):
        parser.error("two run directories have one name: compare runs of different names")
    try:
        comparisons = [
            compare(Path(file).stem, {run: newest(folder / file, options.split) for run, folder in folders.items()})
            for file in options.files
        ]
        text = "\n".join(table(found) for found in comparisons)
        with saving(f"{options.output} could not be written"):
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "perplexity.md").write_text(text, encoding="utf-8")
            picture(comparisons, options.output / "perplexity.png")
    except (ValueError, OSError) as error:
        parser.error(said(error))
    print(text, end="")


def newest(path: Path, split: str) -> list[Row]:
    """Rows of perplexity with the weights and settings of the last one.

    Raises ValueError when there are none, and like `read_results`.
    """
    rows = [row for row in read_results(path) if row["task"] == "perplexity" and row.get("split", split) == split]
    if not rows:
        raise ValueError(
            f"{path} has no rows of perplexity, split {split}: write them by lightning_cli.py validate with "
            f"--length_generalization.output {path.name}, or name other --files"
        )
    mine = ("checkpoint_sha256", "backend", "window", "k")
    return [row for row in rows if all(row[name] == rows[-1][name] for name in mine)]


def _by_context(name: str, runs: Runs) -> dict[str, dict[int, float | str]]:
    done = {run: {row["eval_length"]: row for row in rows} for run, rows in runs.items()}
    _check_same(name, [row for rows in done.values() for row in rows.values() if row["status"] == "done"])
    return {
        run: {
            at: (row["perplexity"] or "not finite") if row["status"] == "done" else missing(row)
            for at, row in rows.items()
        }
        for run, rows in done.items()
    }


def _by_position(name: str, runs: Runs) -> dict[str, dict[int, float | str]]:
    """At the longest length that all runs have scored whole, for passages of another length are other text."""
    whole = {
        run: {row["eval_length"]: row for row in rows if row["status"] == "done" and row["position_buckets"]}
        for run, rows in runs.items()
    }
    lengths = set.intersection(*(set(rows) for rows in whole.values()))
    if not lengths:
        raise ValueError(f"{name}: no length was scored whole in every run: validate all with the same factors")
    chosen = {run: rows[max(lengths)] for run, rows in whole.items()}
    _check_same(name, list(chosen.values()))
    return {run: _ranges(row["position_buckets"]) for run, row in chosen.items()}


def _ranges(buckets: Sequence[Row]) -> dict[int, float | str]:
    """Perplexity by the end of each range of positions."""
    tokens: Counter[int] = Counter()
    nll: Counter[int] = Counter()
    for bucket in buckets:
        stop = max(bucket["stop"], NEAR)
        tokens[stop] += bucket["scored_tokens"]
        nll[stop] += bucket["scored_tokens"] * bucket["nll"]
    return {stop: math.exp(nll[stop] / tokens[stop]) for stop in tokens}


def _check_same(name: str, rows: Sequence[Row]) -> None:
    for key in SAME:
        if len(values := {row.get(key) for row in rows}) > 1:
            raise ValueError(
                f"{name}: rows differ in {key} ({', '.join(sorted(map(str, values)))}), so their perplexities do not "
                "compare: validate all runs with the same settings"
            )


def _curves(axes: Any, found: Comparison, colors: Mapping[str, str]) -> None:
    values: list[float] = []
    for run, cells in found.cells.items():
        known = {at: cell for at, cell in sorted(cells.items()) if isinstance(cell, float)}
        axes.plot([*known], [*known.values()], "o-", color=colors[run], label=title(run), linewidth=1.8, markersize=5)
        values += known.values()
    for length in {row["train_length"] for row in found.rows.values()}:
        axes.axvline(length, color="0.35", linestyle="--", linewidth=1.2, zorder=1, label="training length")
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.columns, [short_length(at) for at in found.columns], fontsize=8)
    axes.minorticks_off()
    low, high = min(values), min(max(values), TALLEST * min(values))
    margin = 0.05 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(found.name, fontsize=10)
    axes.set_xlabel(f"{found.axis} in tokens", fontsize=9)
    axes.set_ylabel("perplexity", fontsize=9)


if __name__ == "__main__":
    main()
