"""What the runs of these tests are given by class_path: a record of every batch, and faults at chosen moments."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gca_lit.callbacks import SkipNonFinite, sweep


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


class Record(Callback):
    """Appends a line for each batch: its number, the numbers of its rows, hashes of ids and targets, the exact loss."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        line = {
            "batch": trainer.fit_loop.total_batch_idx,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "logger_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "rows": batch.rows.tolist(),
            "tokens": digest(batch.tokens),
            "targets": digest(batch.targets),
            "loss": repr(outputs["loss"].item() * trainer.accumulate_grad_batches),
            "growth": trainer.datamodule.state_dict()["growth"],  # type: ignore[attr-defined]
            "weights": digest(torch.cat([p.detach().flatten() for p in module.parameters()])),
            "skipped": sum(one.skipped for one in trainer.callbacks if isinstance(one, SkipNonFinite)),  # type: ignore[attr-defined]
            "lr": repr(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        with open(
            Path(trainer.default_root_dir) / f"batches.{trainer.global_rank}.jsonl", "a", encoding="utf-8"
        ) as file:
            file.write(json.dumps(line) + "\n")


class RecordValidations(Callback):
    """Appends a line for each validation of training: after how many batches and steps it came, and the exact loss."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        line = {
            "batches": trainer.fit_loop.total_batch_idx + 1,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "logger_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "loss": repr(trainer.callback_metrics["val_loss"].item()),
        }
        with open(Path(trainer.default_root_dir) / "validations.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class FaultInValidation(Callback):
    """Ends the run when the validation behind batch `at` (from 0, over all epochs) starts, or `behind` it.

    Args:
        at: number of the batch.
        kind: "raise", or the name of a signal.
        behind: at the end of the validation instead.
    """

    def __init__(self, at: int, kind: str, behind: bool = False) -> None:
        self.at, self.kind, self.behind = at, kind, behind

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.behind:
            self._end(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.behind:
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if trainer.fit_loop.total_batch_idx == self.at:
            if self.kind == "raise":
                _fail()
            os.kill(os.getpid(), getattr(signal, self.kind))


class Fault(Callback):
    """Ends or disturbs the run once batch `at` (from 0, over all epochs) has begun.

    Args:
        at: number of the batch.
        kind: "raise", "raise in step" (inside of the optimizer step), "raise in transfer" (before the batch), the
            name of a signal (to this process), "SIGTERM to all" (from another process, to its workers too), "kill
            worker", "nan" (poisons a gradient) or "nan loss".
        rank: which rank does it.
        until: nan: the first batch after `at` that is whole again.
    """

    def __init__(self, at: int, kind: str, rank: int = 0, until: int | None = None) -> None:
        self.at, self.kind, self.rank, self.until = at, kind, rank, at + 1 if until is None else until
        self._inside = False

    def _due(self, trainer: Trainer) -> bool:
        here = self.at <= trainer.fit_loop.total_batch_idx < self.until
        return here and trainer.global_rank == self.rank

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.kind == "raise in transfer" and trainer.fit_loop.total_batch_idx == self.at - 1:
            trainer.strategy.batch_to_device = _fail  # type: ignore[method-assign]

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        if not self._due(trainer):
            return
        if self.kind == "raise":
            raise RuntimeError("stopped on purpose")
        if self.kind.endswith("to all"):
            workers = trainer.datamodule._loaders[0]._loader._iterator._workers  # type: ignore[attr-defined]
            pids = [os.getpid(), *(worker.pid for worker in workers)]
            subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
        elif self.kind.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.kind))
        if self.kind == "kill worker":
            worker = trainer.datamodule._loaders[0]._loader._iterator._workers[0]  # type: ignore[attr-defined]
            os.kill(worker.pid, signal.SIGKILL)

        if self.kind == "nan loss":
            loss.data.fill_(torch.nan)

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if self.kind == "nan" and self._due(trainer):
            next(module.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if self.kind == "raise in step" and self._due(trainer):
            optimizer.register_step_post_hook(_fail)


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("stopped on purpose")


class KillInSave(Callback):
    """Kills the process in the middle of writing the checkpoint of `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.global_step == self.step:
            checkpoint["last"] = _KillsWhenWritten()


class _KillsWhenWritten(dict):  # type: ignore[type-arg]
    def __reduce_ex__(self, protocol: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class HostMemory(Callback):
    """Makes a rank believe that its host has this many bytes, by rank."""

    def __init__(self, free: list[int]) -> None:
        self.free = free

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        sweep.free_host_bytes = lambda: self.free[trainer.global_rank]
