from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gca_lit.data.curriculum import LengthRule
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.mixture import Mixture
from gca_lit.data.predict import Predict
from gca_lit.data.stream import HORIZON, PREFETCH, Batch
from gca_lit.tasks import Perplexity
from gca_lit.tasks.base import Task


class Recorder(LightningModule):
    """Keeps the batches that it was trained on."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []
        self.fail_at = fail_at

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("stopped on purpose")
        self.seen.append(batch)
        return self.weight * batch.tokens.float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.task.eq(-1).all()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SwitchAt(Callback):
    def __init__(self, step: int, length: int) -> None:
        self.step, self.length = step, length

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.datamodule.switch_length(self.length)  # type: ignore[attr-defined]


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture
def make(write: Callable[..., str]) -> Iterator[Callable[..., ArrowDataModule]]:
    made: list[ArrowDataModule] = []

    def build(**settings: Any) -> ArrowDataModule:
        val = write("val", sizes=(300, 400))
        given = {"train": write(), "val": val, "test": val, "train_length": 64, "batch_size": 2, **settings}
        made.append(ArrowDataModule(**given))
        return made[-1]

    yield build
    for data in made:
        data.teardown("fit")  # workers left to the garbage collector take seconds each


def fit(
    data: ArrowDataModule, steps: int, *callbacks: Callback, module: Recorder | None = None, **settings: Any
) -> list[Batch]:
    module = module or Recorder()
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    ckpt = settings.pop("ckpt_path", None)
    trainer = Trainer(accelerator="cpu", max_steps=steps, callbacks=list(callbacks), **quiet, **settings)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module.seen


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.rows.equal(right.rows) and left.tokens.equal(right.tokens) and left.targets.equal(right.targets)


@pytest.mark.parametrize("saved, workers", [(3, 0), (16, 0), (17, 0), (17, 2), (25, 0), (32, 0)])
def test_resumes_exactly(make: Callable[..., ArrowDataModule], tmp_path: Path, saved: int, workers: int) -> None:
    settings: dict[str, Any] = {"stages": [(0, 16), (5, 32), (20, 64)], "reset_at_document": True}
    unbroken = fit(make(**settings), 36)
    fit(make(**settings, num_workers=workers), saved, SaveAt(saved, tmp_path / "x.ckpt"))
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["ArrowDataModule"]["position"] == 2 * saved
    assert_equal(unbroken[saved:], fit(make(**settings), 36, ckpt_path=tmp_path / "x.ckpt"))
    assert [batch.tokens.shape[1] for batch in unbroken] == [16] * 5 + [32] * 15 + [64] * 16


@pytest.mark.parametrize("saved", [4, 12, 30])
def test_resumes_a_switch_of_growth(
    make: Callable[..., ArrowDataModule], mark_task: Task, tmp_path: Path, saved: int
) -> None:
    settings: dict[str, Any] = {"growth": LengthRule(16), "tasks": [mark_task], "mixture": Mixture(text=0.5)}
    unbroken = fit(make(**settings), 34, SwitchAt(4, 32))
    assert [batch.tokens.shape[1] for batch in unbroken] == [16] * (4 + HORIZON) + [32] * (30 - HORIZON)
    fit(make(**settings), saved, SwitchAt(4, 32), SaveAt(saved, tmp_path / "x.ckpt"))
    assert_equal(unbroken[saved:], fit(make(**settings), 34, ckpt_path=tmp_path / "x.ckpt"))


def test_an_interrupted_batch_is_repeated(make: Callable[..., ArrowDataModule], tmp_path: Path) -> None:
    unbroken = fit(make(), 8)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(make(), 8, SaveAt(-1, tmp_path / "x.ckpt"), module=Recorder(fail_at=5))
    assert_equal(unbroken[5:], fit(make(), 8, ckpt_path=tmp_path / "x.ckpt"))


def test_stages_count_optimizer_steps(make: Callable[..., ArrowDataModule]) -> None:
    seen = fit(make(stages=[(0, 32), (7, 64)]), 12, accumulate_grad_batches=3)
    assert [batch.tokens.shape[1] for batch in seen] == [32] * 21 + [64] * 15


def test_resumes_with_another_batch_size(make: Callable[..., ArrowDataModule], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stages": [(0, 16), (5, 32)]}
    fit(make(**settings), 3, SaveAt(3, tmp_path / "x.ckpt"))
    seen = fit(make(**settings, batch_size=4), 8, ckpt_path=tmp_path / "x.ckpt")
    assert [batch.tokens.shape for batch in seen] == [(16, 16)] * 2 + [(8, 32)] * 3
    assert seen[0].rows[0] == 3 * 2 * 64


@pytest.mark.parametrize("changed", [{"seed": 2}, {"train_length": 32}, {"train": "other"}])
def test_refuses_to_go_on_with_other_data(
    make: Callable[..., ArrowDataModule], write: Callable[..., str], changed: dict[str, Any]
) -> None:
    data = make()
    data.setup("fit")
    if "train" in changed:
        changed = {"train": write("other", sizes=(700, 1, 901, 500))}
    other = make(**changed)
    other.setup("fit")
    with pytest.raises(ValueError, match=r"cannot go on with this data: .* was .*, now .*model.init_from"):
        other.load_state_dict(data.state_dict())


def test_switches_take_effect_after_the_horizon(make: Callable[..., ArrowDataModule]) -> None:
    data = make(stages=[(0, 16)], num_workers=HORIZON // PREFETCH, batch_size=1)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    assert data.stage_length == 16 and not data.switch_pending
    lengths = [next(batches).tokens.shape[1] for _ in range(3)]
    assert data.switch_length(64) == 3 + HORIZON and data.switch_pending
    lengths += [next(batches).tokens.shape[1] for _ in range(HORIZON + 2)]
    assert lengths == [16] * (3 + HORIZON) + [64] * 2
    assert data.stage_length == 64 and not data.switch_pending
    with pytest.raises(ValueError, match="length 48 must be positive and divide train_length 64"):
        data.switch_length(48)


def test_settings_are_checked_early(make: Callable[..., ArrowDataModule], mark_task: Task) -> None:
    assert make(train="nowhere").vocab_size == 257
    mixed: dict[str, Any] = {"tasks": [mark_task], "mixture": Mixture(text=0.5)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_workers": 9}, "data.num_workers must be 0 to 8"),
        ({"stages": [(0, 16)], "growth": LengthRule(16)}, "give one of them"),
        ({"stages": [(0, 24)]}, "data.stages: length 24 must be positive and divide train_length 64"),
        ({"growth": LengthRule(24)}, "data.growth.start: length 24 must be positive and divide train_length 64"),
        ({"growth": LengthRule(16)}, "there is no task"),
        ({"growth": LengthRule(16, threshold={"x": 0.5}), "tasks": [mark_task]}, "no entry for task mark"),
        (
            {"growth": LengthRule(16, threshold={"mark": 0.5, "x": 0.5}), "tasks": [mark_task]},
            "growth.threshold names x, but the tasks are mark: add those to data.tasks",
        ),
        ({"tasks": [mark_task, mark_task]}, "different names"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            make(**settings)
    short = {"stages": [(0, 4)], "predict": Predict("episodes"), **mixed}
    with pytest.raises(ValueError, match="rows of 4 tokens are too short for task mark, which takes 8"):
        make(**short).setup("fit")
    for stage in ("validate", "test", "predict"):
        make(**short).setup(stage)
    for stage in ("fit", "test"):
        with pytest.raises(ValueError, match="too few for one block of train_length 4096"):
            make(train_length=4096).setup(stage)
    with pytest.raises(ValueError, match=r"data\.test is not set"):
        make(test=None).setup("test")


def test_tasks_and_haystack(make: Callable[..., ArrowDataModule], mark_task: Task) -> None:
    data = make(tasks=[mark_task], align=8)
    assert data.task_names == ["mark"]
    assert [task.align for task in data.tasks("chunk", 3) + data.tasks("end", 3)] == [8, None]
    assert data.haystack("val", 3).take(0, 1000).shape == (1000,)
    with pytest.raises(ValueError, match=r"needs data\.align"):
        make(tasks=[mark_task]).tasks("chunk", 3)


def test_perplexity_needs_a_document_of_its_longest_length(make: Callable[..., ArrowDataModule]) -> None:
    data = make(tasks=[Perplexity(longest=401)], predict=Predict("episodes"))
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(ValueError, match=r"longest is 401, but no document of .*val has 401 tokens"):
            data.setup(stage)
    make(tasks=[Perplexity(longest=400)]).setup("test")


def test_predict(make: Callable[..., ArrowDataModule], mark_task: Task, tmp_path: Path) -> None:
    def items(**settings: Any) -> list[dict[str, Any]]:
        data = make(tasks=[mark_task], predict=Predict(**settings))
        data.setup("predict")
        return list(data.predict_dataloader())

    assert [item["tokens"].shape for item in items(length=350)] == [(1, 300), (1, 350)]
    episodes = items(source="episodes", count=3)
    assert [(item["kind"], item["index"], item["answer"]) for item in episodes] == [
        ("mark", i, (63, 64)) for i in range(3)
    ]
    (tmp_path / "x.txt").write_text("abc")
    (item,) = items(source="file", file=str(tmp_path / "x.txt"))
    assert item["tokens"].tolist() == [[97, 98, 99]] and item["targets"].tolist() == [[98, 99, -100]]
    with pytest.raises(ValueError, match=r"data\.predict\.file names the text"):
        Predict(source="file")


@pytest.mark.parametrize(
    "stage, length", [("growth: {start: 16, threshold: {single_needle: 0.8}}", 16), ("stages: [[0, 32], [9, 64]]", 32)]
)
def test_yaml(tmp_path: Path, stage: str, length: int) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ArrowDataModule, "data")
    (tmp_path / "x.yaml").write_text(f"""
data:
  train: a
  val: b
  train_length: 64
  tasks: [gca_lit.tasks.passkey.SingleNeedle]
  mixture: {{text: 1.0, loss: all}}
  predict: {{source: episodes, count: 2}}
  {stage}
""")
    data = parser.instantiate(parser.parse_path(tmp_path / "x.yaml")).data
    assert (data.stage_length, data.task_names) == (length, ["single_needle"])
