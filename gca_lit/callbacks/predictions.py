"""Predictions as JSON lines, one a document or episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gca_lit.whole_file import saving


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, a list of dicts, one line each, as it comes.

    The usual fields are answer, expected, nll, exact_match and selected (chunk numbers with weights); any others are
    kept. Tensors become lists. The file lies in the trainer's default_root_dir and is begun anew by every predict; with
    several ranks each writes its own, `predictions.rank0.jsonl` and so on. Raises NotSaved when the disk does not take
    it.

    Args:
        output: name of the file.
    """

    def __init__(self, output: str = "predictions.jsonl") -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self._file: IO[str] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / self.output
        if trainer.world_size > 1:
            path = path.with_name(f"{path.stem}.rank{trainer.global_rank}{path.suffix}")
        with saving(f"{path} could not be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  (closed in on_predict_end)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._file is not None
        with saving(f"{self._file.name} could not be written"):
            for one in prediction or ():
                self._file.write(json.dumps(one, ensure_ascii=False, default=_plain) + "\n")
            self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is not None:
            rank_zero_info(f"predictions: {self._file.name}")
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # what a full disk did not take is written again
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return str(value)
