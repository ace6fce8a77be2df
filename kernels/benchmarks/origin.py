"""Where a row of a benchmark comes from, and the file it goes to."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def origin(commit: str | None) -> dict[str, str]:
    """Date, GPU, versions, commit (that of this file's checkout when None is given) and command line."""
    import triton

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit or git_commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def git_commit() -> str:
    """The commit of this file's checkout, with -dirty behind it when something is not committed.

    Raises ValueError where git cannot tell.
    """
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError("git cannot name the commit of this folder: give --commit") from error
    return done.stdout.strip()


def append(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Put rows at the end of a CSV file, which is made when it is not there; `columns` are those of the first row.

    Raises ValueError when the file has other columns.
    """
    columns = list(columns or rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        found = next(csv.reader(file), None)
        if found not in (None, columns):
            raise ValueError(f"{path} has other columns than this benchmark: give another folder")
        writer = csv.DictWriter(file, columns)
        if found is None:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
