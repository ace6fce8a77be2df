"""Says when torch.compile has been at work, so that a recompilation during a run is never silent."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch._dynamo.utils import counters


class CompileReport(Callback):
    """Logs how many graphs were compiled in a batch, and the row length that asked for them."""

    def __init__(self) -> None:
        self._graphs = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._report(f"step {trainer.global_step}", batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._report(f"validation at step {trainer.global_step}", batch)

    def _report(self, when: str, batch: Any) -> None:
        graphs = counters["stats"]["unique_graphs"]
        if graphs > self._graphs:
            length = batch.tokens.shape[1]
            new, self._graphs = graphs - self._graphs, graphs
            rank_zero_info(f"{when}: {new} graphs compiled for rows of {length:,} tokens, {graphs} since the start")
