"""A step that is not finite changes nothing, on any rank; too many in a row end the run."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gca_lit.callbacks import SkipNonFinite
from gca_lit.callbacks.skip_non_finite import NonFiniteError
from gca_lit.exits import lost
from tests.callbacks.counting_fakes import trainer


class Batch(NamedTuple):
    value: Tensor
    rows: Tensor


class Line(LightningModule):
    """One loss a batch, by number; `spoil` makes the gradient NaN though the loss is finite."""

    def __init__(self, values: list[float], spoil: int | None = None) -> None:
        super().__init__()
        self.weight, self.frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        self.values, self.spoil = values, spoil
        self.seen: list[tuple[Tensor, dict[str, Any]]] = []

    def train_dataloader(self) -> DataLoader[Any]:
        batches = [
            Batch(torch.tensor(value), torch.tensor([10 * n, 10 * n + 1])) for n, value in enumerate(self.values)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        weight = self.weight * 1
        if index == self.spoil:
            weight.register_hook(lambda grad: grad * torch.nan)
        return (weight * batch.value).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        state = self.trainer.optimizers[0].state_dict()["state"]
        copied = {key: {name: value.clone() for name, value in one.items()} for key, one in state.items()}
        self.seen.append((self.weight.detach().clone(), copied))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def fit(module: Line, folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    fitted = trainer(folder, *callbacks, max_epochs=1, log_every_n_steps=1, **settings)
    fitted.fit(module)
    return fitted


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    "clip", [{}, {"gradient_clip_val": 1.0}, {"gradient_clip_val": 1, "gradient_clip_algorithm": "value"}]
)
@pytest.mark.parametrize(
    "module", [Line([1.0, torch.nan, 2.0]), Line([1.0, torch.inf, 2.0]), Line([1.0, 1.0, 2.0], spoil=1)]
)
def test_a_skipped_step_changes_nothing(tmp_path: Path, module: Line, clip: dict[str, Any]) -> None:
    module = Line(module.values, module.spoil)
    callback = SkipNonFinite()
    fitted = fit(module, tmp_path, callback, **clip)
    assert_same(module.seen[1], module.seen[0])
    assert not module.seen[2][0].equal(module.seen[1][0]) and module.seen[2][0].isfinite().all()
    assert callback.skipped == 1 and fitted.global_step == 3
    assert fitted.logged_metrics["skipped_steps"] == 1


def test_one_bad_batch_spoils_its_window(tmp_path: Path) -> None:
    module, callback = Line([1.0, 1.0, torch.nan, 1.0, 1.0, 1.0]), SkipNonFinite()
    fit(module, tmp_path, callback, accumulate_grad_batches=2)
    assert callback.skipped == 1
    assert_same(module.seen[3], module.seen[1])
    assert not module.seen[5][0].equal(module.seen[3][0])


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    module = Line([1.0, torch.nan, 1.0, torch.nan, torch.nan, 1.0])
    message = "not finite in 2 optimizer steps in a row, up to step 4, on this rank (the rows of this one: 40, 41): "
    with pytest.raises(NonFiniteError, match=re.escape(message) + ".*lower learning rate") as ended:
        fit(module, tmp_path, SkipNonFinite(max_in_a_row=2))
    assert lost(ended.value) == str(ended.value)  # a command line says it in one line
    with pytest.raises(ValueError, match="max_in_a_row must be at least 1"):
        SkipNonFinite(max_in_a_row=0)


def test_the_count_is_kept_in_checkpoints(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="x")
    fit(Line([1.0, torch.nan]), tmp_path, SkipNonFinite(), saver, enable_checkpointing=True)
    callback = SkipNonFinite(max_in_a_row=2)
    resumed = trainer(tmp_path, callback, max_epochs=2)
    with pytest.raises(NonFiniteError):
        resumed.fit(Line([torch.nan]), ckpt_path=tmp_path / "x.ckpt")
    assert callback.skipped == 1


def test_the_scaler_of_16_mixed_skips_by_itself(tmp_path: Path) -> None:
    """Gradients that overflow are its way to the scale and no fault; a loss that is not finite is one."""
    module, callback = Line([1.0, 1.0, torch.nan, 1.0], spoil=1), SkipNonFinite()
    fit(module, tmp_path, callback, plugins=[MixedPrecision("16-mixed", "cpu")])
    assert callback.skipped == 1
    assert_same(module.seen[1][0], module.seen[0][0])
    assert_same(module.seen[2][0], module.seen[0][0])
    assert not module.seen[3][0].equal(module.seen[2][0])
