"""Before or after the first batch: before it, an error is in the settings."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class Begun(Callback):
    """Knows whether the run has come to its first batch."""

    at_work = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_work = True

    on_validation_start = on_test_start = on_predict_start = on_train_start
