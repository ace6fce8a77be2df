"""Tables of length_generalization.jsonl in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gca_lit.results.file import Row
from gca_lit.tasks.metrics import wilson
from gca_lit.units import size


def tell_tasks_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, with what differs in its name where a task was asked with several settings: "multi_key (keys 32)"."""
    settings: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        for name, value in (row.get("task_settings") or {}).items():
            settings.setdefault(row["task"], {}).setdefault(name, set()).add(json.dumps(value))
    told = []
    for row in rows:
        mine = row.get("task_settings") or {}
        differing = [f"{name} {mine[name]}" for name in mine if len(settings[row["task"]][name]) > 1]
        told.append(row | {"task": f"{row['task']} ({', '.join(differing)})"} if differing else row)
    return told


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table of exact match and its 95 % interval: a line for each task and backend, in their order, a
    column for each length. Empty where no row has a question with an answer."""
    rows = [row for row in rows if row["placement"] is not None]
    named = [name for name in ("task", "placement", "backend") if len({row[name] for row in rows}) > 1] or ["task"]
    lengths = {row["eval_length"]: row["factor"] for row in sorted(rows, key=lambda row: row["eval_length"])}
    lines: dict[tuple[str, ...], dict[int, Row]] = {tuple(row[name] for name in named): {} for row in rows}
    for row in pool_depths(rows):
        lines[tuple(row[name] for name in named)][row["eval_length"]] = row
    if not lines:
        return ""
    heads = [f"{short_length(length)} ({factor:g}x)" for length, factor in lengths.items()]
    text = [_line([" ".join(named), *heads]), _line(["---", *["---:"] * len(heads)])]
    text += [_line([", ".join(names), *(_cell(found.get(n)) for n in lengths)]) for names, found in lines.items()]
    return "".join(text)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["accuracy"] is None:
        return missing(row)
    return f"{row['accuracy']:.3f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] of {row['n']}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


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
    for row in pool_depths(rows):
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
            sizes = " | ".join(size(held) for held in (device, row["host_bytes"], row["disk_bytes"]))
            result = f"{score} | {row['n']}{partial} | {interval} | {speed} | {sizes} |"
        where = f"| {row['task']} | {row['placement'] or ''} | {row['eval_length']:,} | {row['factor']:g} "
        lines.append(f"{where}| {row['backend']} | {result}")
    return "\n".join(lines) + "\n"


def pool_depths(rows: Iterable[Row]) -> list[Row]:
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
