"""A file of results: one JSON object a line, appended safely, so that a broken sweep goes on where it stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
POINT = (
    *("split", "text", "task", "task_settings", "placement", "eval_length", "depth", "seed"),
    *("backend", "window", "k", "checkpoint_sha256"),
)


class ResultsFile:
    """The rows of one JSON-lines file.

    A last line that was cut off by a crash is dropped with a warning, from the file too. A broken line anywhere else is
    a damaged file and raises ValueError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = self._load() if self.path.exists() else []

    def append(self, row: Row) -> None:
        """Write one row and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def finished(self, point: Row, n: int) -> bool:
        """Whether a row is done for the same point (see POINT), with the same number of episodes."""
        wanted = _key(point)
        return any(row["status"] == "done" and row["n"] == n and _key(row) == wanted for row in self.rows)

    def _load(self) -> list[Row]:
        content = self.path.read_bytes()
        *lines, tail = content.split(b"\n")
        if tail:
            warnings.warn(f"{self.path}: the last line is cut off and removed, its point runs again", stacklevel=3)
            os.truncate(self.path, len(content) - len(tail))
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: {error}; repair or move the file.") from None


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every point, in order of first appearance: a later run replaces a partial or skipped row."""
    found: dict[str, Row] = {}
    for row in rows:
        found[_key(row)] = row
    return list(found.values())


def _key(row: Row) -> str:
    return json.dumps([row.get(name) for name in POINT], sort_keys=True)
