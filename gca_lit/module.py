"""The LightningModule of training: steps, loss and optimizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from gca_lit.answers import AnswerCounts
from gca_lit.attention.base import AttentionBackend
from gca_lit.checkpoints.architecture import architecture, refuse_other_architecture, refuse_other_tokenizer
from gca_lit.checkpoints.optimizer import (
    Settings,
    keep_settings,
    number_by_parameters,
    refuse_other_optimizer,
    settings_of,
)
from gca_lit.checkpoints.warm_start import warm_start
from gca_lit.memory import ChunkStore, HostStore
from gca_lit.model import DecoderConfig, RowLoss, chunked_cross_entropy
from gca_lit.network import NetworkModule
from gca_lit.schedule import Schedule
from gca_lit.scoring import predictions

_PAPER_SIZE = DecoderConfig()
_COSINE = Schedule()
_ADAMW: OptimizerCallable = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)


class CausalLM(NetworkModule):
    """A causal language model over an attention backend.

    Args:
        attention: the backend; any subclass of AttentionBackend by class_path.
        vocab_size: token ids of the tokenizer; linked from the data.
        tokenizer: name and hash of the tokenizer, linked from the data; a checkpoint of another one is refused.
        decoder: size and shape.
        optimizer: makes the optimizer from parameter groups; norms and other vectors get no weight decay.
        schedule: of the learning rate.
        store: where chunk K/V go in evaluation, predict and generate; null is a HostStore.
        predict_segment: text tokens of one forward while predicting.
        compile: compile layers, chunk encoder and loss with torch.compile: for the first row length, then once more for
            all others.
        init_from: file of a checkpoint whose weights training starts from, with a new optimizer; null: random ones.
            A run that goes on from a checkpoint of its own has them from there.
    """

    def __init__(
        self,
        attention: AttentionBackend,
        vocab_size: int,
        decoder: DecoderConfig = _PAPER_SIZE,
        optimizer: OptimizerCallable = _ADAMW,
        schedule: Schedule = _COSINE,
        store: ChunkStore | None = None,
        predict_segment: int = 16_384,
        compile: bool = False,
        tokenizer: str | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(attention, decoder, vocab_size, compile)
        if predict_segment < 1:
            raise ValueError(f"predict_segment must be at least 1 token, got {predict_segment}")
        self.optimizer, self.schedule = optimizer, schedule
        self.store: ChunkStore = HostStore() if store is None else store
        self.predict_segment = predict_segment
        self.tokenizer = tokenizer
        self.init_from = init_from
        self.train_length = 0
        """The longest row, in text tokens, that the weights were trained on; kept in checkpoints."""
        self._optimizer_settings: Settings = []
        self._trained_with: str | None = None
        self.val_nll = MeanMetric()
        self._answers = AnswerCounts()

    def refuse_other_run(self, saved: dict[str, Any]) -> None:
        """Raise ValueError when training cannot go on from a checkpoint with the record `saved`."""
        self._refuse_other_model(saved)
        refuse_other_optimizer(saved.get("optimizer"), self.optimizer([torch.nn.Parameter(torch.zeros(1, 1))]))

    def take_answer_counts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each task, (tokens predicted right, tokens scored) in training rows since the last call."""
        return self._answers.take(self.trainer.datamodule.task_names)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        refuse_other_optimizer(self._trained_with, self.trainer.optimizers[0])
        rows = self.trainer.datamodule.train_length  # type: ignore[attr-defined]
        if self.max_length is not None and rows > self.max_length:
            raise ValueError(
                f"the attention takes at most max_length = {self.max_length:,} tokens, but data.train_length is "
                f"{rows:,}: shorten the rows, or set another max_length"
            )
        if self.init_from is not None and self.trainer.ckpt_path is None:
            self.train_length = warm_start(self, Path(self.init_from), self.tokenizer, self._architecture())

    def on_train_start(self) -> None:
        """A run that goes on has the momenta of its checkpoint and the settings of its own."""
        if self.trainer.ckpt_path is not None:
            scheduler = cast(LambdaLR, self.lr_schedulers())
            keep_settings(self.trainer.optimizers[0], scheduler, self._optimizer_settings)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch, noise=batch.rows + self._noise_offset())
        self.train_length = max(self.train_length, batch.tokens.shape[1])
        self._answers.add(batch.task, loss, len(self.trainer.datamodule.task_names))  # type: ignore[attr-defined]
        mean = loss.mean()
        self.log("train_loss", mean, prog_bar=True)
        self.log("train_accuracy", loss.correct.sum() / loss.count.sum().clamp(min=1), prog_bar=True)
        self.log("train_length", float(batch.tokens.shape[1]), prog_bar=True)
        return mean

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self._loss(batch)
        self.val_nll.update(loss.nll.sum() / loss.count.sum().clamp(min=1), loss.count.sum())

    def on_validation_epoch_end(self) -> None:
        self._log_nll("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_nll("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        decode = self.trainer.datamodule.tokenizer.decode  # type: ignore[attr-defined]
        return predictions(self, batch, self.predict_segment, self.store, decode)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self._decoder.parameter_groups())
        max_steps = self.trainer.max_steps
        scheduler = LambdaLR(optimizer, partial(self.schedule.factor, max_steps=max_steps))
        self._optimizer_settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gca_lit"] = {
            "train_length": self.train_length,
            "tokenizer": self.tokenizer,
            "architecture": self._architecture(),
            "optimizer": type(self.trainer.optimizers[0]).__name__ if self.trainer.optimizers else None,
        }
        for state, optimizer in zip(checkpoint.get("optimizer_states", ()), self.trainer.optimizers, strict=False):
            number_by_parameters(state, optimizer, self.parameters())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("gca_lit")
        if saved is None:
            raise ValueError("this checkpoint was not made by gca_lit: it has no record of its architecture")
        self._refuse_other_model(saved)
        if "state_dict" in checkpoint:  # weights in shards are not read as a whole
            path = None if self._trainer is None else self.trainer.ckpt_path
            self.refuse_other_weights(checkpoint["state_dict"], str(path or "the checkpoint"))
        self.train_length, self._trained_with = saved["train_length"], saved.get("optimizer")

    def _refuse_other_model(self, saved: dict[str, Any]) -> None:
        refuse_other_tokenizer(saved.get("tokenizer"), self.tokenizer)
        refuse_other_architecture(saved["architecture"], self._architecture())

    def _architecture(self) -> dict[str, Any]:
        return architecture(self.attention, self.config, self.vocab_size)

    def _loss(self, batch: Any, noise: Tensor | None = None) -> RowLoss:
        hidden = self._decoder(batch.tokens, documents=batch.documents, noise=noise).hidden
        return chunked_cross_entropy(self._decoder.token_loss, hidden, batch.targets)

    def _log_nll(self, split: str) -> None:
        nll = self.val_nll.compute()
        self.log_dict({f"{split}_loss": nll, f"{split}_perplexity": nll.exp()}, prog_bar=True, sync_dist=True)
        self.val_nll.reset()

    def _noise_offset(self) -> int:
        """Moves row numbers, so that another seed of the data draws other noise."""
        seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        return (seed * 0x9E3779B97F4A7C15) % (1 << 62)
