"""SIGTERM and SIGINT: save, and tell by the exit code what ended the run."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class Stopped(SystemExit):
    """Training was ended by a signal, on all ranks before the same batch."""

    on_all_ranks = True


class GracefulStop(Callback):
    """Ends training before the next batch, on all ranks when one of them gets SIGTERM or SIGINT. What callbacks
    measure at the end of a validation (lengths, Rouge) is finished first.

    The exit code is 128 + the signal's number: 143 and 130. A second signal ends the process at once, as the first one
    does outside of training. Where Lightning starts the other ranks itself, these exit with 0: it would kill the first
    one for anything else.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._training = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._receive)  # the trainer puts the former handlers back at its end

    on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signal, self._training = 0, True
        self.on_sanity_check_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop(trainer)

    def _receive(self, number: int, frame: Any) -> None:
        if self._signal or not self._training:
            raise SystemExit(128 + number)
        self._signal = number

    def _stop(self, trainer: Trainer) -> None:
        number = self._signal
        if trainer.world_size > 1:
            mine = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if number:
            rank_zero_info(f"{signal.Signals(number).name}: training stops at step {trainer.global_step}")
            started_by_lightning = trainer.global_rank > 0 and isinstance(
                trainer.strategy.cluster_environment,  # type: ignore[attr-defined]
                LightningEnvironment,
            )
            raise Stopped(0 if started_by_lightning else 128 + number)
