"""Optimizer steps whose loss or gradients are not finite change nothing."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

NAMED = 8  # rows that the error names


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradients that are not finite."""

    on_all_ranks = True


class SkipNonFinite(Callback):
    """Skips the optimizer step, on all ranks, when the loss or a gradient of one of them is NaN or infinite.

    Weights and the state of the optimizer stay as they are; the step counts for `max_steps` and the schedule. The
    number of skipped steps is logged as `skipped_steps` and kept in checkpoints. Under 16-mixed precision the gradient
    scaler skips by itself, since gradients that overflow are its way to find the scale: there only losses count here.

    Args:
        max_in_a_row: training stops with NonFiniteError at this many such steps in a row.
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"SkipNonFinite: max_in_a_row must be at least 1, got {max_in_a_row}")
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self._in_a_row = 0
        self._wrong: Tensor | None = None
        self._rows: list[Any] = []
        self._clip: int | float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clip = trainer.gradient_clip_val

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rows.append(getattr(batch, "rows", None))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        wrong = ~loss.detach().isfinite()
        self._wrong = wrong if self._wrong is None else self._wrong | wrong

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        params = () if scaled else (p for group in optimizer.param_groups for p in group["params"])
        grads = [_local(p.grad) for p in params if p.grad is not None]
        grads = [grad for grad in grads if grad.numel()]  # a sharded parameter may have no part here
        wrong = torch.zeros((), device=pl_module.device) if self._wrong is None else self._wrong.float()
        if grads:
            largest = torch.nn.utils.get_total_norm(grads, float("inf"))
            wrong = torch.maximum(wrong, (~largest.isfinite()).float())
        rows, self._rows, self._wrong = self._rows, [], None
        if not trainer.strategy.reduce(wrong, reduce_op="max"):
            self._in_a_row = 0
            return
        if self._in_a_row + 1 >= self.max_in_a_row:
            raise NonFiniteError(self._message(trainer.global_step, rows, mine=bool(wrong)))
        self.skipped += 1
        self._in_a_row += 1
        if not scaled:
            pl_module.zero_grad(set_to_none=True)
            trainer.gradient_clip_val = None  # there is nothing to clip, and torch fails to clip that by value
        rank_zero_warn(f"step {trainer.global_step} is skipped: loss or gradients are not finite")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trainer.gradient_clip_val = self._clip
        pl_module.log("skipped_steps", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def _message(self, step: int, rows: list[Any], mine: bool) -> str:
        numbers = [number for some in rows if some is not None for number in some.tolist()]
        shown = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
        return (
            f"loss or gradients were not finite in {self.max_in_a_row} optimizer steps in a row, up to step {step}, "
            f"on {'this' if mine else 'another'} rank (the rows of this one: {shown}): go on from a checkpoint of "
            "before these steps, or start anew, with a lower learning rate, a longer warm-up, a lower "
            "trainer.gradient_clip_val or trainer.precision 32-true"
        )


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
