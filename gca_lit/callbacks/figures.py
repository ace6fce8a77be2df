"""Pictures beside the curves: what callbacks draw, in TensorBoard too."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gca_lit.results import plots


def show(trainer: Trainer, name: str, path: Path, step: int) -> None:
    """Add the PNG at `path` to each TensorBoard logger of `trainer`, as image `name` of optimizer step `step`."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, plots.pyplot().imread(path)[..., :3], step, dataformats="HWC")
