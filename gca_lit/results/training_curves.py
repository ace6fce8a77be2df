"""Training loss against the tokens seen: `python -m gca_lit.results.training_curves RUN_DIR... --output PNG`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

from gca_lit.arguments import Arguments, said
from gca_lit.results.plots import colors_of, pyplot, title
from gca_lit.whole_file import saving

Points = list[tuple[float, float]]  # tokens seen, loss in nats a token

TOKENS, LOSS = "throughput/tokens_seen", "train_loss"
FILES = "csv/version_*/metrics.csv"


def training_losses(folder: Path) -> Points:
    """What the CSV files of a run have logged, in order.

    Each start of a run has a file of its own; one that went on from a checkpoint replaces what was logged after that.
    Raises FileNotFoundError without the folder, and ValueError when there is nothing, or a file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no directory {folder}")
    files = sorted(folder.glob(FILES), key=lambda path: int(path.parent.name[8:]))
    if not files:
        raise ValueError(f"{folder} is not the directory of a run with the CSV logger: it has no {FILES}")
    points: dict[float, float] = {}
    for path in files:
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = [(row.get(TOKENS), row.get(LOSS)) for row in csv.DictReader(file)]
            logged = {float(tokens): float(loss) for tokens, loss in rows if tokens and loss}
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {error}; repair or move the file") from error
        begun = min(logged, default=math.inf)
        points = {tokens: loss for tokens, loss in points.items() if tokens < begun} | logged
    if not points:
        raise ValueError(f"{folder}/csv has no {TOKENS} and {LOSS}: train for log_every_n_steps at least")
    return sorted(points.items())


def smooth(points: Points, parts: int = 30) -> Points:
    """Means over `parts` equal ranges of tokens: single batches differ by what they hold."""
    width = points[-1][0] / parts
    ranges = [list(part) for _, part in groupby(points, lambda point: math.ceil(point[0] / width))]
    return [(fmean(tokens for tokens, _ in part), fmean(loss for _, loss in part)) for part in ranges]


def draw(losses: Mapping[str, Points], path: str | Path) -> None:
    """One curve for each run, smoothed."""
    plt = pyplot()
    figure, axes = plt.subplots(layout="constrained", figsize=(6.4, 4.2))
    colors = colors_of(losses)
    for run, points in losses.items():
        tokens, nats = zip(*smooth(points), strict=True)
        axes.plot([n / 1e6 for n in tokens], nats, color=colors[run], label=title(run), linewidth=1.2)
    axes.set_xlabel("million tokens seen", fontsize=9)
    axes.set_ylabel("training loss, nats a token", fontsize=9)
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.results.training_curves", description="Training loss by tokens.")
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder of a run, by whose name it is called")
    parser.add_argument("--output", type=Path, default=Path("training_loss.png"), help="the picture")
    options = parser.parse_args(arguments)
    if options.output.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--output {options.output} must end in .png, .pdf or .svg")
    try:
        losses = {folder.name: training_losses(folder) for folder in options.run_dir}
        with saving(f"{options.output} could not be written"):
            options.output.parent.mkdir(parents=True, exist_ok=True)
            draw(losses, options.output)
    except (ValueError, OSError) as error:
        parser.error(said(error))
    print(options.output)


if __name__ == "__main__":
    main()
