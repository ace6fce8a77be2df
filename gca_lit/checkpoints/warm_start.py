"""Training that starts from the weights of a checkpoint, with a new optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from gca_lit.checkpoints.architecture import differences, refuse_other_tokenizer
from gca_lit.checkpoints.files import read_checkpoint
from gca_lit.network import NetworkModule


def warm_start(model: NetworkModule, path: Path, tokenizer: str | None, architecture: dict[str, Any]) -> int:
    """Load the weights of the checkpoint file `path` into `model`.

    Settings that shape no weights, such as the chunk size, may differ: the differences are told, and training adapts.

    Args:
        tokenizer, architecture: those of this run, see `gca_lit.checkpoints.architecture`.

    Returns:
        the longest row, in text tokens, that the weights were trained on.

    Raises OSError or ValueError for a path that is no whole checkpoint, and for weights that do not fit.
    """
    try:
        checkpoint = read_checkpoint(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"model.init_from: {error}; name another checkpoint with --model.init_from") from error
    saved, weights = checkpoint["gca_lit"], checkpoint["state_dict"]
    refuse_other_tokenizer(saved.get("tokenizer"), tokenizer)
    told = "; ".join(differences(saved["architecture"], architecture))
    try:
        model.refuse_other_weights(weights, f"model.init_from: {path}")
    except ValueError as error:
        raise ValueError(f"{told}; {error}" if told else str(error)) from error
    options = StateDictOptions(full_state_dict=True)  # of weights in shards each rank takes its own
    set_model_state_dict(model, weights, options=options)
    rank_zero_info(f"weights of {path}, trained for {checkpoint['global_step']:,} steps")
    if told:
        rank_zero_warn(f"the weights of {path} were trained with other settings; {told}")
    return int(saved["train_length"])
