"""A file of results: one JSON object a line, appended safely, so that a broken sweep goes on where it stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gca_lit.whole_file import saving

Row = dict[str, Any]
POINT = (
    *("split", "text", "task", "task_settings", "placement", "eval_length", "depth", "seed"),
    *("backend", "window", "k", "checkpoint_sha256", "precision"),
)


IN_EVERY_ROW = {"task", "backend", "eval_length", "checkpoint_sha256"}
"""What results of an evaluation have, whatever else."""


class ResultsFile:
    """The rows of one JSON-lines file.

    A last line that was cut off by a crash is dropped with a warning, from the file too. Raises ValueError for a broken
    line anywhere else, and for a file of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = self._load() if self.path.exists() else []

    def append(self, row: Row) -> None:
        """Write one row and wait until it is on the disk. Raises NotSaved when the disk does not take it."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with saving(f"{self.path} could not be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)

    def finished(self, point: Row, n: int) -> bool:
        """Whether a row is done for the same point (see POINT), with the same number of episodes."""
        wanted = _key(point)
        return any(row["status"] == "done" and row["n"] == n and _key(row) == wanted for row in self.rows)

    def _load(self) -> list[Row]:
        content = self.path.read_bytes()
        rows, tail = _parse(self.path, content)
        if tail:
            warnings.warn(f"{self.path}: the last line is cut off and removed, its point runs again", stacklevel=3)
            os.truncate(self.path, len(content) - len(tail))
        return rows


def read_results(path: Path) -> list[Row]:
    """The rows of evaluations in a file, none when it is not there; a last line that was cut off is left out.

    Raises ValueError for a damaged file and for one that holds something else.
    """
    rows, _ = _parse(path, path.read_bytes() if path.exists() else b"")
    if not all(row.keys() >= IN_EVERY_ROW for row in rows):
        raise _another_kind(path)
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every point, in order of first appearance: a later run replaces a partial or skipped row."""
    found: dict[str, Row] = {}
    for row in rows:
        found[_key(row)] = row
    return list(found.values())


def _parse(path: Path, content: bytes) -> tuple[list[Row], bytes]:
    """The rows, and what stands behind the last whole line."""
    if content and not content.startswith(b"{"):
        raise _another_kind(path)
    *lines, tail = content.split(b"\n")
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; repair or move the file") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is damaged: a line is no JSON object; repair or move the file")
    return rows, tail


def _another_kind(path: Path) -> ValueError:
    return ValueError(f"{path} is no results file: name a .jsonl file that LengthGeneralization has written")


def _key(row: Row) -> str:
    return json.dumps([row.get(name) for name in POINT], sort_keys=True)
