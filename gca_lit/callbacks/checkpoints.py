"""When a run saves, and which checkpoints stay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from gca_lit.checkpoints.files import LAST, is_remote
from gca_lit.whole_file import PART, NotSaved

KEPT = 2


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose `save_last` keeps the newest two as `last-step=N.ckpt` and also saves the last
    step of training.

    An exception saves the state after the last complete optimizer step. Nothing is saved where that state is gone
    (inside of an optimizer step), and under several ranks only what stops all of them at the same step can save.

    Training that starts before the step of a checkpoint in its directory sets that checkpoint aside by another name.
    """

    _whole = False
    """Whether weights, optimizer and schedule belong to the same step."""
    _refused: NotSaved | None = None
    """Of the last checkpoint that the disk did not take."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._whole = True
        self._last_global_step_saved = trainer.global_step
        if trainer.is_global_zero and not is_remote(self._folder):
            _tidy(self._folder, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._whole = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._whole:
            return  # no optimizer step ends with this batch
        self._whole = True
        super().on_train_batch_end(trainer, pl_module, *args)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._last_global_step_saved = 0  # what is saved of this step does not know of this validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._should_save_on_exception(trainer) or exception is self._refused:
            return
        alone = trainer.world_size > 1 and not getattr(exception, "on_all_ranks", False)
        if not self._whole or alone:
            where = "in one of several ranks" if alone else "inside of an optimizer step"
            rank_zero_warn(f"{type(exception).__name__} came {where}: nothing is saved, earlier checkpoints stay")
        elif self.save_last:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            rank_zero_info(f"{type(exception).__name__} at step {trainer.global_step}: saved {self.last_model_path}")
        else:
            super().on_exception(trainer, pl_module, exception)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if not self.save_last or is_remote(self._folder):
            return super()._save_last_checkpoint(trainer, monitor_candidates)
        self.last_model_path = str(self._folder / LAST.replace("*", str(trainer.global_step)))
        try:
            self._save_checkpoint(trainer, self.last_model_path)
        except NotSaved as refused:
            if trainer.world_size > 1 or not Path(self.last_model_path).exists():  # the other ranks wait for this one
                raise
            self._last_global_step_saved = trainer.global_step
            rank_zero_warn(f"{refused} The one of this step that was saved before its validation stays.")
        if trainer.is_global_zero:
            for path in sorted(self._folder.glob(LAST), key=_step)[:-KEPT]:
                trainer.strategy.remove_checkpoint(path)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except NotSaved as refused:
            self._refused = refused
            raise

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath)


def _step(path: Path) -> int:
    found = re.search(r"step=(\d+)", path.name)
    return int(found[1]) if found else -1


def _tidy(folder: Path, step: int) -> None:
    """Remove what a killed run had half written, and set aside checkpoints beyond `step`."""
    for part in folder.glob(LAST + PART):
        part.unlink()
    for path in folder.glob(LAST):
        if _step(path) > step:
            number = next(n for n in range(1, 1 << 30) if not path.with_name(f"{path.name}.{n}").exists())
            aside = path.rename(path.with_name(f"{path.name}.{number}"))
            rank_zero_warn(f"training starts at step {step}: {path} is set aside as {aside.name}")
