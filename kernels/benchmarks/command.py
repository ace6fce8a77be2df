"""What the command lines of the benchmarks of models have in common."""

from __future__ import annotations

import gc
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from origin import append, origin


def parser(description: str, table: str, figure: bool = False) -> ArgumentParser:
    """Takes --output, the folder of the CSV file `table`, and --commit; --plot instead where there is a figure."""
    made = ArgumentParser(description=description)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help=f"folder of {table}")
    if figure:
        what.add_argument("--plot", type=Path, metavar="CSV", help="only show what these rows say")
    made.add_argument("--commit", help="what is measured; git is asked when it is not given")
    return made


def begin(made: ArgumentParser, options: Namespace) -> dict[str, str]:
    """The origin of all rows to come; ends the command where there is no CUDA device, or no name of a commit."""
    if not torch.cuda.is_available():
        made.error("this benchmark needs a CUDA device")
    try:
        return origin(options.commit)
    except ValueError as error:
        made.error(str(error))


def record(path: Path, row: Mapping[str, Any], columns: Sequence[str], said: str) -> None:
    """Print what a row says, put it at the end of the CSV file `path`, and give back the memory that it took."""
    print(said, flush=True)
    append(path, [row], columns)
    free_memory()


def free_memory() -> None:
    """Give back what nobody uses, pinned memory too: what is measured next must not find it ready."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()
