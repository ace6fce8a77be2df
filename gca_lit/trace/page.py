"""A trace for people: a page that works offline, a picture of all selections, and what was counted, as JSON."""

from __future__ import annotations

import html
import json
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from string import Template
from typing import IO, Any

import torch

from gca_lit.results import plots
from gca_lit.trace.script import SCRIPT
from gca_lit.trace.selections import Trace, measure
from gca_lit.trace.template import TEMPLATE
from gca_lit.whole_file import WholeFile, part_of, saving

SUFFIXES = (".html", ".json", ".png")
BINS = 600
"""Cells of the picture in each direction, at most."""


def save(found: Trace, title: str, about: dict[str, Any], page: Path, group: int = 0) -> dict[str, Any]:
    """Write `page`, and beside it a .png and a .json of the same name; returns what stands in the .json.

    Args:
        found: what was selected.
        title: of the page, the document's name.
        about: of the model and the run, for the .json; `backend` and `global_step` are shown.
        page: a file name that ends in .html.
        group: the retrieval group that is shown first.

    Raises:
        ValueError: another file name, or a group that the model does not have.
        NotSaved: the disk does not take it; the page is there only when all of them are.
    """
    if page.suffix != ".html":
        raise ValueError(f"{page} must end in .html: a .json and a .png are written beside it")
    if not 0 <= group < len(found.ids):
        raise ValueError(f"there is no retrieval group {group}: the model has 0 to {len(found.ids) - 1}")
    size = {"tokens": found.tokens, "chunk_size": found.chunk_size, "window_chunks": found.window}
    groups = measure(found)
    results = {"document": title, **size, "k": found.ids.shape[-1], "groups": groups, **about}
    drawn = BytesIO()
    picture(found, title, drawn)
    contents = (
        html_page(found, title, about, groups, group).encode(),
        (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(),
        drawn.getvalue(),
    )
    with saving(f"{page} could not be written"), ExitStack() as files:
        page.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            files.enter_context(WholeFile(page.with_suffix(suffix))).write(content)
    return results


def files(page: Path) -> list[Path]:
    """All that `save` writes, under the final names and those before."""
    written = [page.with_suffix(suffix) for suffix in SUFFIXES]
    return written + [part_of(path) for path in written]


def html_page(found: Trace, title: str, about: dict[str, Any], groups: list[dict[str, Any]], group: int) -> str:
    """The page as text: texts and selections as JSON, from which its script shows a part at a time."""
    size = f"{found.tokens:,} tokens in chunks of {found.chunk_size}"
    data = {
        "about": f"{about['backend']}, step {about['global_step']:,}, {size}",
        "texts": found.texts,
        "chunkSize": found.chunk_size,
        "window": found.window,
        "slots": found.ids.shape[-1],
        "group": group,
        "strong": strong_weight(found.weights),
        "groups": [
            {
                "ids": ids.flatten().tolist(),
                "weights": (weights.flatten() * 10_000).round().int().tolist(),
                "measures": lines(measures, found.window),
            }
            for ids, weights, measures in zip(found.ids, found.weights, groups, strict=True)
        ],
    }
    inert = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(TEMPLATE).substitute(TITLE=html.escape(title), SCRIPT=SCRIPT, DATA=inert)


def lines(measures: dict[str, Any], window: int) -> list[tuple[str, str]]:
    """What was counted of one group, as names and values for people."""
    shown = [
        ("chunks with a selection", f"{measures['chunks']:,}"),
        ("distance, mean", _number(measures["distance"], " chunks")),
        (f"selections within the last {window} chunks only", _percent(measures["recent"])),
        ("weight on them", _percent(measures["recent_weight"])),
        ("the same for random selections", _percent(measures["recent_chance"])),
        ("entropy of the weights", _number(measures["entropy"], " nats")),
        ("the same for equal weights", _number(measures["entropy_uniform"], " nats")),
    ]
    references = measures["references"]
    if references["count"]:
        shown += [
            ("references to labels before the window", f"{references['count']:,}"),
            ("label's chunk selected", _percent(references["found"])),
            ("selected for the next chunk", _percent(references["found_next"])),
            ("by random selections", _percent(references["chance"])),
            ("by the nearest outside the window", _percent(references["nearest"])),
        ]
    return shown


def picture(found: Trace, title: str, file: IO[bytes]) -> None:
    """Draw what each chunk looks back to, one panel for each group; where cells meet, the largest weight counts."""
    plt = plots.pyplot()
    G, N, _ = found.ids.shape
    strong = strong_weight(found.weights)
    figure, panels = plt.subplots(1, G, squeeze=False, layout="constrained", figsize=(1.2 + 4.6 * G, 4.8))
    for group, axes in enumerate(panels[0]):
        grid = selection_grid(found.ids[group], found.weights[group])
        image = axes.imshow(
            grid.where(grid > 0, torch.nan).numpy(),
            extent=(0, N, 0, N),
            origin="lower",
            cmap="viridis_r",
            vmin=0,
            vmax=strong,
            interpolation="nearest",
        )
        axes.plot([found.window, N], [0, N - found.window], color="0.4", linestyle="--", linewidth=1, label="window")
        axes.set_xlim(0, N)
        axes.set_ylim(0, N)
        axes.set_title(f"group {group}" if G > 1 else "", fontsize=10)
        axes.set_xlabel("chunk", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("chunk looked back to", fontsize=9)
    panels[0, 0].legend(loc="upper left", frameon=False, fontsize=8)
    extend = "neither" if strong == 1 else "max"
    bar = figure.colorbar(image, ax=panels[0].tolist(), fraction=0.04, pad=0.02, label="weight", extend=extend)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"What is retrieved: {title}", fontsize=11, parse_math=False)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def strong_weight(weights: torch.Tensor) -> float:
    """The weight that is drawn in full strength: one of a hundred weights above 0 is at least as large."""
    some = weights[weights > 0].double().sort().values
    return some[int(0.99 * len(some))].item() if len(some) else 1.0


def selection_grid(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """ids, weights [N, K] -> the largest weight [n, n] of each cell (chunk looked back to, chunk), n at most BINS."""
    N = len(ids)
    n = min(N, BINS)
    chunk, slot = (ids >= 0).nonzero(as_tuple=True)
    cells = ids[chunk, slot] * n // N * n + chunk * n // N
    return torch.zeros(n * n).scatter_reduce_(0, cells, weights[chunk, slot], "amax").view(n, n)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None, unit: str) -> str:
    return "none" if value is None else f"{value:,.{0 if value >= 100 else 2}f}{unit}"
