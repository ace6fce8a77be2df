"""What a checkpoint retrieves in a document, as a page:

python -m gca_lit.trace --config FILE ... --ckpt_path FILE --document FILE.txt --output FILE.html [flags of validate]
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_loader
from torch import Tensor

from gca_lit import provenance
from gca_lit.arguments import Arguments, line, said
from gca_lit.callbacks.budget import refuse_shortage
from gca_lit.checkpoints.files import WholeCheckpointIO
from gca_lit.cli import MISTAKES, Begun
from gca_lit.data.tokenizers import Tokenizer
from gca_lit.doctor.rehearsal import Rehearsal
from gca_lit.trace import page as trace_page
from gca_lit.trace.selections import refuse_without_retrieval, trace
from gca_lit.usage import UsageError, load_yaml
from gca_lit.whole_file import refuse_overwriting


def main(args: list[str] | None = None) -> int:
    """Trace a document and print what was counted. Returns 2, after one line, for what its writer can mend, and 130
    after an interrupt.
    """
    parser = Arguments(
        prog="python -m gca_lit.trace",
        usage="%(prog)s --config FILE ... --ckpt_path FILE --document FILE.txt --output FILE.html [flags of validate]",
        description="Show what a checkpoint retrieves in a document.",
        epilog="--config FILE is required, the configuration of the checkpoint: as for validate, it can be given "
        "several times. All other flags of validate can be given too.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint, or last")
    parser.add_argument("--document", required=True, type=Path, help="a text file in UTF-8")
    parser.add_argument("--output", required=True, type=Path, help="the page, FILE.html; .json and .png come beside it")
    parser.add_argument("--length", type=int, help="tokens of the document to take (default: all)")
    parser.add_argument("--group", type=int, default=0, help="retrieval group to show first (default: 0)")
    options, flags = parser.parse_known_args(args)
    if not any(re.match("(-c|--config)(=|$)", flag) for flag in flags):
        parser.error("name the configuration of the checkpoint with --config FILE")
    logging.disable(logging.WARNING)  # what Lightning says while it builds
    try:
        if options.output.suffix != ".html":
            raise UsageError(f"--output {options.output} must end in .html")
        cli, path = build(flags, options.ckpt_path)
        configs = [Path(str(config)) for config in cli.config.validate.config]
        refuse_overwriting(trace_page.files(options.output), [options.document, path, *configs])
        tokens = read_document(options.document, cli.datamodule.tokenizer, options.length)
        refuse_short(len(tokens), cli.model.chunk_size)
        step = load(cli.model, path)
        found = run(cli, tokens)
        about = describe(cli, path, step)
        results = trace_page.save(found, options.document.name, about, options.output, options.group)
    except MISTAKES as error:
        sys.stderr.write(line(said(error)))
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        logging.disable(logging.NOTSET)
    for group, measures in enumerate(results["groups"]):
        print(f"group {group}:")
        for name, value in trace_page.lines(measures, found.window):
            print(f"  {name}: {value}")
    print(options.output)
    return 0


def build(flags: list[str], ckpt_path: str) -> tuple[Any, Path]:
    """All that validate would build with these flags, and the checkpoint file that it would load."""
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args")
        cli = Rehearsal(Begun(), ["validate", *flags, "--ckpt_path", ckpt_path])
    if cli.refused is not None:
        raise cli.refused
    refuse_without_retrieval(cli.model)
    path = Path(cli._prepare_subcommand_kwargs("validate")["ckpt_path"])
    if not path.is_file():
        raise UsageError(f"{path} is not a checkpoint in one file on this machine: name one")
    return cli, path


def load(model: Any, path: Path) -> int:
    """Give the model its weights; the optimizer step that they are of."""
    checkpoint = WholeCheckpointIO().load_checkpoint(path)
    model.on_load_checkpoint(checkpoint)
    model.configure_model()
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint["global_step"]


def read_document(path: Path, tokenizer: Tokenizer, length: int | None) -> Tensor:
    """The tokens of a text file, the first `length` of them. Raises FileNotFoundError, or ValueError for no text."""
    if length is not None and length < 1:
        raise ValueError(f"--length must be at least 1 token, got {length}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = path.read_bytes().decode().removeprefix(BOM_UTF8.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text:
        raise ValueError(f"{path} is empty")
    return torch.tensor(tokenizer.encode(text)[:length], dtype=torch.int64)


def refuse_short(tokens: int, chunk_size: int) -> None:
    """Raise ValueError for a document without a third chunk, the first that anything is retrieved for."""
    if tokens <= 2 * chunk_size:
        raise ValueError(
            f"{tokens:,} tokens are too few: with chunks of {chunk_size}, nothing is retrieved before token "
            f"{2 * chunk_size + 1}; take more by --length, or a longer --document"
        )


def run(cli: Any, tokens: Tensor) -> Any:
    """Trace on the device and in the precision of the configuration. Raises ValueError when it does not fit."""
    model, device, precision = cli.model, cli.trainer.strategy.root_device, cli.trainer.precision_plugin
    refuse_shortage(model, len(tokens), model.store, device)
    model = precision.convert_module(model).to(device).eval()
    try:
        with precision.forward_context():
            decode = cli.datamodule.tokenizer.decode
            return trace(model, tokens, decode, model.predict_segment, model.store)
    finally:
        model.store.close()


def describe(cli: Any, path: Path, step: int) -> dict[str, Any]:
    """The model, its weights and where the numbers come from."""
    return {
        **cli.model.describe(),
        "checkpoint_sha256": provenance.file_sha256(path),
        "global_step": step,
        "precision": str(cli.trainer.precision),
        "tokenizer": cli.datamodule.tokenizer_id,
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
