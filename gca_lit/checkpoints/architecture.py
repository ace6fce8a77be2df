"""What a checkpoint's weights depend on, and the refusal of weights made for something else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gca_lit.attention.base import AttentionBackend
from gca_lit.model import DecoderConfig

FREE_IN_DECODER = ("gradient_checkpointing", "kv_dtype", "init")
"""Settings of the decoder that a run may change over a checkpoint's."""


def architecture(attention: AttentionBackend, decoder: DecoderConfig, vocab_size: int) -> dict[str, Any]:
    """Everything that must be the same for the weights to mean the same, in plain numbers and strings."""
    about: dict[str, Any] = {"attention.backend": f"{type(attention).__module__}.{type(attention).__qualname__}"}
    about |= {f"attention.{k}": v for k, v in vars(attention).items() if k not in attention.free_settings}
    about |= {f"decoder.{k}": v for k, v in asdict(decoder).items() if k not in FREE_IN_DECODER}
    return about | {"vocab_size": vocab_size}


def refuse_other_architecture(saved: dict[str, Any], running: dict[str, Any]) -> None:
    """Raise ValueError with the differences when the two are not the same."""
    if found := differences(saved, running):
        raise ValueError("the checkpoint has another architecture; " + "; ".join(found))


def differences(saved: dict[str, Any], running: dict[str, Any]) -> list[str]:
    """What a checkpoint's architecture has otherwise than this run's; of another backend only its name."""
    nothing, backend = "nothing", "attention.backend"
    if saved.get(backend) != running.get(backend):
        saved, running = (
            {k: v for k, v in one.items() if k == backend or not k.startswith("attention.")} for one in (saved, running)
        )
    return [
        f"{key}: {saved.get(key, nothing)} in the checkpoint, {running.get(key, nothing)} in this run"
        for key in unlike(saved, running)
    ]


def unlike(saved: dict[str, Any], running: dict[str, Any]) -> list[str]:
    """Names of the settings that are not the same in both; a switch that one of them does not name is off."""
    return [key for key in sorted(saved.keys() | running.keys()) if saved.get(key, False) != running.get(key, False)]


def refuse_other_tokenizer(saved: str | None, running: str | None) -> None:
    """Raise ValueError when both are known and are not the same: their hashes, behind their names, count."""
    if saved is not None and running is not None and saved.split()[-1] != running.split()[-1]:
        raise ValueError(
            f"the checkpoint was trained with tokenizer {saved}, this run has {running}: set data.tokenizer to that "
            "one, and the data to shards made with it"
        )
