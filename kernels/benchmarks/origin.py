"""Where a row of a benchmark comes from."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

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
