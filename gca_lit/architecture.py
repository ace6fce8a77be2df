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
    """Raise ValueError with the differences when the two are not the same; of another backend only its name."""
    nothing, backend = "nothing", "attention.backend"
    if saved.get(backend) != running.get(backend):
        saved, running = (
            {k: v for k, v in one.items() if k == backend or not k.startswith("attention.")} for one in (saved, running)
        )
    different = [
        f"{key}: {saved.get(key, nothing)} in the checkpoint, {running.get(key, nothing)} in this run"
        for key in sorted(saved.keys() | running.keys())
        if saved.get(key, nothing) != running.get(key, nothing)
    ]
    if different:
        raise ValueError("the checkpoint has another architecture; " + "; ".join(different))
