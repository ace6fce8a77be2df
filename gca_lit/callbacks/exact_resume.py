"""Going on from a checkpoint exactly where its weights stand."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class ExactResume(Callback):
    """Sets Lightning's counters of batches and epochs anew from the optimizer step and the position in the data.

    A checkpoint that an exception saves counts batches whose gradients are lost, and one of another number of ranks or
    of accumulated batches counts in other batches. The position of the data has neither fault.

    A checkpoint also tells the step of the last whole validation. Where one is due at the step of the checkpoint, which
    is written before it, training goes on with that validation.
    """

    def __init__(self) -> None:
        self._validated_step = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated_step"] = self._validated_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        step: int = checkpoint["global_step"]
        if trainer.strategy.broadcast(step) != step:
            raise RuntimeError(f"the ranks found different checkpoints: this one is of step {step}, that of rank 0 not")
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if step == 0:
            del checkpoint["loops"]
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        accumulate, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
        share = limit / accumulate if isinstance(limit, int) else data.epoch_steps * limit
        per_epoch = max(1, min(data.epoch_steps, int(share)))
        epoch, steps = divmod(max(data.steps_done, 1) - 1, per_epoch)
        self._validated_step = checkpoint.get("validated_step", 0)
        to_validate = self._validated_step != step and validation_due(
            trainer, step * accumulate, epoch, (steps + 1) * accumulate, per_epoch * accumulate
        )
        set_counters(checkpoint["loops"]["fit_loop"], step, epoch, steps + 1, per_epoch, accumulate, to_validate)


def validation_due(trainer: Trainer, batches: int, epoch: int, batch: int, per_epoch: int) -> bool:
    """Whether Lightning validates behind `batches` of training: the `batch`-th (from 1) of `per_epoch` in `epoch`
    (from 0). One by wall time is never due."""
    every, interval = trainer.check_val_every_n_epoch, getattr(trainer, "val_check_interval", None)
    if interval is None or not trainer.enable_validation:
        return False
    if every is None:
        return batches % interval == 0
    if isinstance(interval, float):
        interval = max(1, int(per_epoch * interval))
    return (epoch + 1) % every == 0 and batch % interval == 0


def set_counters(
    loop: dict[str, Any], step: int, epoch: int, steps: int, per_epoch: int, accumulate: int, to_validate: bool
) -> None:
    """Make `loop`, the state of the fit loop, that at the end of a batch: the last one of optimizer step `step`; with
    `to_validate` that in the validation behind it, which then starts anew.

    It is the `steps`-th step (from 1) of `epoch` (from 0), which has `per_epoch` steps of `accumulate` batches.
    """

    def batches(steps: int) -> dict[str, int]:
        done = steps * accumulate
        return {"ready": done, "started": done, "processed": done, "completed": done if to_validate else done - 1}

    def all_of(numbers: dict[str, int]) -> dict[str, dict[str, int]]:
        return {"total": dict(numbers), "current": dict(numbers)}

    loop["epoch_progress"] = all_of({"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch})
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}
    loop["epoch_loop.batch_progress"] = {
        "total": batches(step),
        "current": batches(steps),
        "is_last_batch": steps == per_epoch,
    }
    loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = {
        "total": {"ready": step, "completed": step},
        "current": {"ready": steps, "completed": steps},
    }
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    loop["epoch_loop.val_loop.batch_progress"] = {
        "total": begun if to_validate else none,
        "current": none,
        "is_last_batch": False,
    }
