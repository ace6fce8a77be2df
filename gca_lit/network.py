"""The network of a LightningModule, and the protocol by which callbacks and generation use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from gca_lit.attention.base import AttentionBackend
from gca_lit.memory import ChunkStore
from gca_lit.model import Decoder, DecoderConfig, ModelState, Read, Step

NAMED = 3
"""Tensors that an error names at most."""


class NetworkModule(LightningModule):
    """A LightningModule around a `Decoder`: all use of it enters through the decoder's forward.

    Args:
        attention: the backend.
        config: size and shape.
        vocab_size: token ids of the tokenizer.
        compile: compile layers, chunk encoder and loss.
    """

    def __init__(self, attention: AttentionBackend, config: DecoderConfig, vocab_size: int, compile: bool) -> None:
        super().__init__()
        attention.plan(config.layers)
        self.attention, self.config, self.vocab_size = attention, config, vocab_size
        self.compiled = compile
        self.network: Decoder | None = None

    def configure_model(self) -> None:
        """Build the network, once, and say what it is. A seed gives the same weights on every device."""
        if self.network is not None:
            return
        device = torch.get_default_device()
        with device if device.type == "meta" else torch.device("cpu"):
            self.network = Decoder(self.config, self.attention, self.vocab_size)
        if self.compiled:
            self.network.compile_parts()
        if self.device_mesh is not None:
            self.network.shard_parts(self.device_mesh)
        about = self.describe()
        said = f"{about['backend']}: {about['params']:,} parameters, "
        said += f"{about['kv_bytes_per_token']:,} bytes of K/V per token"
        settings = [f"{name} {value}" for name, value in vars(self.attention).items() if value is not None]
        rank_zero_info("; ".join((said, ", ".join(settings))))

    @property
    def chunk_size(self) -> int | None:
        return self.attention.chunk_size

    @property
    def max_length(self) -> int | None:
        return self.attention.max_length

    def new_state(self, batch_size: int, store: ChunkStore | None) -> ModelState:
        return self._decoder.new_state(batch_size, store)

    def step(self, tokens: Tensor, state: ModelState, read: Read = "all") -> Step:
        """See `Decoder.forward`; tokens may lie on the host, so that a long text takes no room on the device."""
        decoder = self._decoder
        device = decoder.embed.weight.device
        if device.type == "cuda" and tokens.device.type == "cpu":
            tokens = tokens.pin_memory()  # or the copy would wait for all that the device still has to do
        return decoder(tokens.to(device, non_blocking=True), state, read)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden)

    def kv_bytes(self, length: int, batch_size: int) -> dict[str, int]:
        """Bytes of K/V for inputs of `length` tokens: "store" in a chunk store, "state" beside it."""
        one = self.attention.kv_bytes(self.config, self.config.layers, length, self._kv_itemsize())
        return {tier: batch_size * size for tier, size in one.items()}

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of a forward over rows of `length` text tokens, a token; see `Decoder.flops`."""
        return self._decoder.flops(length) / length

    def describe(self) -> dict[str, Any]:
        """What results say about the model: backend, window, k, chunk_size, params, kv_bytes_per_token."""
        far = 1 << 24
        growth = [sum(self.kv_bytes(length, 1).values()) for length in (far, 2 * far)]
        params = sum(p.numel() for p in self._decoder.parameters())
        per_token = round((growth[1] - growth[0]) / far)
        return self.attention.describe() | {"params": params, "kv_bytes_per_token": per_token}

    def refuse_other_weights(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Raise ValueError, with names and shapes, when `weights`, of the file `source`, are not of this model."""
        self.configure_model()
        ours = {name: list(w.shape) for name, w in self.state_dict().items()}
        theirs = {name: list(w.shape) for name, w in weights.items()}
        wrong = [f"{name} is missing" for name in ours if name not in theirs]
        wrong += [f"{name} of shape {shape} is not in the model" for name, shape in theirs.items() if name not in ours]
        wrong += [
            f"{name} has shape {shape}, the model {ours[name]}"
            for name, shape in theirs.items()
            if shape != ours.get(name, shape)
        ]
        if wrong:
            more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
            raise ValueError(f"{source} does not fit: {'; '.join(wrong[:NAMED] + more)}")

    @property
    def _decoder(self) -> Decoder:
        network = self.network
        if network is None:
            self.configure_model()
            network = self.network
        assert network is not None
        return network

    def _kv_itemsize(self) -> int:
        if self.config.kv_dtype is not None:
            return getattr(torch, self.config.kv_dtype).itemsize
        half = self._trainer is not None and str(self.trainer.precision) in ("bf16-mixed", "16-mixed")
        return 2 if half else self._decoder.embed.weight.dtype.itemsize
