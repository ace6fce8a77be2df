"""Publish the weights of a checkpoint: `python -m gca_lit.checkpoints.export CHECKPOINT --output FILE.safetensors`.

validate, test, predict, generate, python -m gca_lit.trace and model.init_from take the file in the place of a
checkpoint; training cannot go on from it, for it has nothing of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gca_lit.arguments import Arguments, said
from gca_lit.checkpoints.files import read_checkpoint
from gca_lit.checkpoints.weights import SUFFIX, write_weights


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.checkpoints.export", description="Publish the weights of a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True, help=f"new {SUFFIX} file")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default="bfloat16",
        help="what the weights are rounded to (default: bfloat16, half the size); float32 rounds nothing",
    )
    options = parser.parse_args(arguments)
    if options.output.suffix != SUFFIX:
        parser.error(f"--output {options.output} must end in {SUFFIX}")
    if options.output.exists():
        parser.error(f"{options.output} is there already: name a new file")
    try:
        write_weights(read_checkpoint(options.checkpoint), options.output, getattr(torch, options.dtype))
    except (OSError, ValueError) as error:
        parser.error(said(error))
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, {options.dtype}")


if __name__ == "__main__":
    main()
