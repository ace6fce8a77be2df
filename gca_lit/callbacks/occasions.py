"""When a callback works, and on which ranks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn


def sharded(trainer: Trainer) -> bool:
    """Whether the weights are divided over the ranks, so that all of them must run every forward together."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


class AtEvaluation(Callback):
    """Works at the end of validate and test and, if asked for, of every n-th validation of fit.

    during_fit_every: n; None never works in fit.
    loaded_step: optimizer step of the checkpoint that was loaded, None without one.
    """

    def __init__(self, during_fit_every: int | None) -> None:
        if during_fit_every is not None and during_fit_every < 1:
            raise ValueError(f"{type(self).__name__}: during_fit_every must be at least 1, got {during_fit_every}")
        self.during_fit_every = during_fit_every
        self.loaded_step: int | None = None
        self._validations = 0

    @abstractmethod
    def run(self, trainer: Trainer, model: Any, split: str) -> None:
        """Work on `split`, "val" or "test", on all ranks."""

    def works_in(self, stage: str) -> bool:
        """Whether it will work in a stage of Lightning: "fit", "validate", "test" or "predict"."""
        return stage in ("validate", "test") or (stage == "fit" and self.during_fit_every is not None)

    def step(self, trainer: Trainer) -> int:
        """Optimizer steps behind the weights that are evaluated."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        return trainer.global_step if fitting or self.loaded_step is None else self.loaded_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded_step = checkpoint.get("global_step")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._validations += 1
            if self.during_fit_every is None or self._validations % self.during_fit_every:
                return
        self.run(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run(trainer, pl_module, "test")


class EverySteps(Callback):
    """Works behind every n-th optimizer step: rank 0 alone, with sharded weights all ranks together."""

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"{type(self).__name__}: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._last = 0

    @abstractmethod
    def run(self, trainer: Trainer, model: Any, step: int) -> None:
        """Work behind optimizer step `step`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._last or step % self.every_n_steps:
            return
        self._last = step  # with accumulated gradients several batches end at a step
        if trainer.is_global_zero or sharded(trainer):
            self.run(trainer, pl_module, step)
