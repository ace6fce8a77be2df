"""What is found while training goes on, and that training does not notice."""

import csv
import math
import warnings
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from gca_lit.callbacks import RetrievalProbe
from gca_lit.callbacks.retrieval_probe import ProbeTally
from gca_lit.cli import main
from gca_lit.model import Decoder
from gca_lit.scoring import Retrieved, Score, selection_weights
from gca_lit.tasks.base import Episode
from tests.callbacks.counting_fakes import FakeData, FakeModule, ZeroHaystack, trainer
from tests.cli.conftest import TINY

PROBE = ["--trainer.callbacks+=RetrievalProbe", "--trainer.callbacks.every_n_steps=2", "--trainer.callbacks.episodes=3"]

# Chunks of 10: needles are in chunk 2 and in chunks 3 and 4, the question ends in chunk 6, the answer is in chunk 8.
EPISODE = Episode(torch.zeros(90), torch.zeros(90), ((23, 27), (38, 42)), 65, (81, 84), 0.3, 54)


class Data(FakeData):
    stage_length = 12

    def haystack(self, split: str, seed: int) -> ZeroHaystack:
        assert split == "train"
        return ZeroHaystack()


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """What was logged of probes, by step."""
    (file,) = folder.rglob("metrics.csv")
    with open(file, encoding="utf-8", newline="") as lines:
        rows = [({k: v for k, v in row.items() if k.startswith("probe/") and v}, row) for row in csv.DictReader(lines)]
    return {int(row["step"]): {k: float(v) for k, v in probe.items()} for probe, row in rows if probe}


def fit(folder: Path, probe: RetrievalProbe, model: Any = None, data: Any = None, **settings: Any) -> None:
    settings = {"max_epochs": 4, "limit_val_batches": 0, "log_every_n_steps": 3} | settings
    trainer(folder, probe, logger=CSVLogger(folder), **settings).fit(model or FakeModule(), data or Data())


def scored(*parts: Retrieved) -> Score:
    nothing = torch.empty(0)
    return Score(
        nothing, nothing, nothing, nothing, nothing, parts, 0, 0.0, dict.fromkeys(("device", "host", "disk"), 0)
    )


def group(ids: list[list[int]], weights: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids]), torch.tensor([weights])


def test_weights_of_needles_and_entropy() -> None:
    """Column j serves chunk 6 + j, of which 7 and 8 count; the needle in two chunks has the weight of both."""
    first = group([[2, 3, 9], [2, 3, 4], [1, 2, -1]], [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.75, 0.25, 0.0]])
    second = group([[3, 4, 9], [0, 1, 5], [4, -1, -1]], [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    weights, entropies = selection_weights(scored(Retrieved(6, (first, second))), EPISODE, 10)
    assert weights is not None and entropies is not None
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.8], [0.0, 1.0]]))
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    torch.testing.assert_close(entropies, torch.tensor([expected, 0.0]))


def test_weights_over_segments_and_rows() -> None:
    ids, early = torch.tensor([[[0, 1]], [[2, 4]]]), torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]])
    parts = scored(Retrieved(7, ((ids, early),)), Retrieved(8, ((ids, early.flip(-1)),)))
    weights, entropies = selection_weights(parts, EPISODE, 10, row=1)
    assert weights is not None and entropies is not None
    torch.testing.assert_close(weights, torch.tensor([[0.9, 0.9]]))
    torch.testing.assert_close(entropies, torch.tensor([-0.9 * math.log(0.9) - 0.1 * math.log(0.1)]))


def test_nothing_to_weigh() -> None:
    one = scored(Retrieved(7, (group([[2, 3], [2, 3]], [[0.5, 0.5]] * 2),)))
    near = replace(EPISODE, needles=((68, 72),))
    assert selection_weights(one, near, 10) == selection_weights(one, EPISODE, None) == (None, None)
    assert selection_weights(scored(), EPISODE, 10) == (None, None)


def test_means_leave_out_episodes_without_anything_to_judge() -> None:
    tally, near = ProbeTally(), replace(EPISODE, needles=((68, 72), (23, 27)))
    ids = torch.tensor([[[2, 3], [2, 3]]]).expand(3, -1, -1)
    weights = torch.tensor([[[1.0, 0.0]] * 2, [[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2])
    score = replace(scored(Retrieved(7, ((ids, weights),))), rows=torch.tensor([0, 1, 2]))
    score = replace(score, correct=torch.tensor([True, True, False]))
    tally.add(score, [EPISODE, near, EPISODE], 10)
    assert tally.scalars() == pytest.approx(
        {
            "accuracy": 2 / 3,
            "recall_at_1": 0,
            "recall_at_k": 0,
            "group1_needle1_weight": 0.75,
            "group1_needle2_weight": 0.25,
            "entropy_group1": math.log(2) / 2,
        }
    )


def test_rows_of_the_present_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One optimizer step an epoch; what is due is logged whatever log_every_n_steps is; there are no chunks."""
    with caplog.at_level("INFO"):
        fit(tmp_path, RetrievalProbe(2))
    assert logged(tmp_path) == {step: {"probe/counting/accuracy": 1.0} for step in (2, 4)}
    assert "step 4, 12 tokens: counting accuracy 1.00" in caplog.text


def test_length_segment_and_wrong_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModule(reach=38)
    with caplog.at_level("INFO"):
        fit(tmp_path, RetrievalProbe(4, length=40, segment=10), model)
    assert logged(tmp_path) == {4: {"probe/counting/accuracy": 0.0}}
    assert "step 4, 40 tokens: counting accuracy 0.00" in caplog.text
    assert model.steps == 4 and model.training


def test_rows_too_short_for_a_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Data()
    data.stage_length = 7
    with caplog.at_level("INFO"):
        fit(tmp_path, RetrievalProbe(4), data=data)
    assert "step 4, 7 tokens: counting needs 8" in caplog.text
    assert not any(tmp_path.rglob("metrics.csv")) or not logged(tmp_path)


def test_once_a_step_when_gradients_are_accumulated(tmp_path: Path) -> None:
    class Long(Data):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(list(range(8)))

    model = FakeModule()
    fit(tmp_path, RetrievalProbe(1), model, Long(), max_epochs=1, accumulate_grad_batches=4)
    assert list(logged(tmp_path)) == [1, 2] and model.steps == 2


def run(folder: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[float]:
    """The losses of four steps of a tiny model with two retrieval groups, through the command line."""
    noted = Losses()
    config = folder.with_suffix(".yaml")
    config.write_text(TINY.format(shards=shards, run=folder), encoding="utf-8")
    monkeypatch.setattr("gca_lit.cli.MemoryReport", lambda: noted)  # one more callback
    sizes = ["--model.attention.init_args.groups=2", "--model.decoder.layers=3", "--trainer.max_steps=4"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", str(config), *sizes, *flags])
    return noted.values


def test_training_goes_on_as_without_it(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise of retrieval."""
    losses = {name: run(tmp_path / name, shards, monkeypatch, *flags) for name, flags in (("with", PROBE), ("no", []))}
    assert len(losses["with"]) == 4 and losses["with"] == losses["no"]
    found = logged(tmp_path / "with")
    names = ["accuracy", "recall_at_1", "recall_at_k", "group1_needle1_weight", "group2_needle1_weight"]
    names += ["entropy_group1", "entropy_group2"]
    assert list(found) == [2, 4] and set(found[2]) == {f"probe/single_needle/{name}" for name in names}
    for row in found.values():
        assert all(0 < row[f"probe/single_needle/entropy_group{group}"] <= math.log(2) for group in (1, 2))
        assert 0 <= row["probe/single_needle/group1_needle1_weight"] <= 1


@pytest.mark.slow
def test_compiled_and_in_half_precision(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "compile_parts", partialmethod(Decoder.compile_parts, backend="aot_eager"))
    run(tmp_path / "run", shards, monkeypatch, *PROBE, "--model.compile=true", "--trainer.precision=bf16-mixed")
    assert list(logged(tmp_path / "run")) == [2, 4]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["every_n_steps", "episodes", "segment"])
def test_wrong_settings(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        RetrievalProbe(**({"every_n_steps": 1} | {name: 0}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["riddle"]}, "the data have no task with needles named riddle"),
        ({"tasks": ["perplexity"]}, "the data have no task with needles named perplexity"),
        ({"length": 7}, "length must be at least 8 and at most 20 tokens, got 7"),
        ({"length": 21}, "length must be at least 8 and at most 20 tokens, got 21"),
    ],
)
def test_refused_before_training(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, RetrievalProbe(1, **settings), FakeModule(max_length=20))


def test_data_without_needles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "tasks", lambda *_: [])
    with pytest.raises(ValueError, match="the data have no task with needles: give"):
        fit(tmp_path, RetrievalProbe(1))
