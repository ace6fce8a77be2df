"""Length curriculum: says when rows grow, and lets them grow once the tasks are solved at the present length."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class LengthGrowth(Callback):
    """Logs every change of the row length, and where the data have a growth rule, asks it at its fixed optimizer steps
    and switches to the next length when it says so.

    The answers since the last check are summed over all ranks, so all decide alike. A task without a single answer (its
    rows do not fit the present length yet) is left out, and while a switch is still to come nothing is asked.
    """

    def __init__(self) -> None:
        self._checked = -1
        self._length: int | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = trainer.global_step
        if self._length not in (None, data.stage_length):
            rank_zero_info(f"step {step}: rows have {data.stage_length:,} tokens")
        self._length = data.stage_length
        if data.growth is None or step == self._checked or not data.growth.due(step):
            return
        self._checked = step
        accuracies = self._accuracies(trainer, pl_module, data.task_names)
        pl_module.log("train_length_stage", float(data.stage_length))
        if data.switch_pending or not accuracies or not data.growth.observe(accuracies):
            return
        longer = data.growth.next_length(data.stage_length, data.train_length)
        if longer is not None:
            data.switch_length(longer)
            worst = min(accuracies.values())
            rank_zero_info(f"step {step}: rows will grow to {longer:,} tokens (answer accuracy {worst:.2f})")

    def _accuracies(self, trainer: Trainer, model: Any, names: list[str]) -> dict[str, float]:
        """Share of right answers of each task that had any, over all ranks."""
        counts = model.take_answer_counts()
        flat = [float(number) for name in names for number in counts.get(name, (0, 0))]
        total = torch.tensor(flat, dtype=torch.float64, device=trainer.strategy.root_device)
        pairs = trainer.strategy.reduce(total, reduce_op="sum").view(-1, 2).tolist()
        return {name: correct / n for name, (correct, n) in zip(names, pairs, strict=True) if n}
