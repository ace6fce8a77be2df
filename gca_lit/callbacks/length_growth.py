"""Length curriculum: says when rows grow, and lets them grow once the tasks are solved at the present length."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor


class LengthGrowth(Callback):
    """Logs every change of the row length, and where the data have a growth rule, asks it at its fixed optimizer steps
    and switches to the next length when it says so.

    The answers since the last check are summed over all ranks, so all decide alike, and kept in checkpoints. A task
    without a single answer (its rows do not fit the present length yet) is left out, and while a switch is still to
    come nothing is asked.
    """

    def __init__(self) -> None:
        self._step = 0
        self._length: int | None = None
        self._answers: Tensor | None = None  # [tasks, 2]: right answers, answers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = trainer.global_step
        if self._length not in (None, data.stage_length):
            rank_zero_info(f"step {step}: rows have {data.stage_length:,} tokens")
        self._length = data.stage_length
        if data.growth is None or step == self._step:
            return
        self._step = step
        self._count(trainer, pl_module, data.task_names)
        if not data.growth.due(step):
            return
        accuracies = self._take_accuracies(data.task_names)
        pl_module.log("train_length_stage", float(data.stage_length))
        if data.switch_pending or not accuracies or not data.growth.observe(accuracies):
            return
        longer = data.growth.next_length(data.stage_length, data.train_length)
        if longer is not None:
            data.switch_length(longer)
            worst = min(accuracies.values())
            rank_zero_info(f"step {step}: rows will grow to {longer:,} tokens (answer accuracy {worst:.2f})")

    def state_dict(self) -> dict[str, Any]:
        return {"answers": None if self._answers is None else self._answers.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._answers = None if state["answers"] is None else torch.tensor(state["answers"], dtype=torch.float64)

    def _count(self, trainer: Trainer, model: Any, names: list[str]) -> None:
        """Add the answers of this step, of all ranks, without waiting for the device."""
        device, counts = trainer.strategy.root_device, model.take_answer_counts()
        none = torch.zeros((), device=device)
        pairs = [
            torch.stack([torch.as_tensor(n, device=device) for n in counts.get(name, (none, none))]) for name in names
        ]
        answers = trainer.strategy.reduce(torch.stack(pairs).double(), reduce_op="sum")
        self._answers = answers if self._answers is None else self._answers.to(device) + answers

    def _take_accuracies(self, names: list[str]) -> dict[str, float]:
        """Share of right answers of each task that had any since the last check."""
        assert self._answers is not None
        pairs, self._answers = self._answers.tolist(), None
        return {name: correct / n for name, (correct, n) in zip(names, pairs, strict=True) if n}
