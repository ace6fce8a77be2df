"""Growth, predictions and memory inside a real Trainer."""

import json
import resource
from typing import Any

import pytest
import torch

from gca_lit.callbacks import LengthGrowth, MemoryReport, PredictionWriter
from gca_lit.data.curriculum import LengthRule
from gca_lit.memory import HostStore
from gca_lit.whole_file import NotSaved
from tests.callbacks.counting_fakes import FakeData, FakeModule, trainer


class GrowingData(FakeData):
    train_length = 64
    stage_length = 16
    switch_pending = False
    task_names = ("counting", "riddle", "never_fits")

    def __init__(self, growth: LengthRule | None) -> None:
        super().__init__()
        self.growth = growth
        self.switches: list[int] = []

    def switch_length(self, length: int) -> int:
        self.switches.append(length)
        self.stage_length = length
        return 0


class Answering(FakeModule):
    def __init__(self, *answers: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def take_answer_counts(self) -> dict[str, Any]:
        return {name: torch.tensor(pair) for name, pair in next(self.answers).items()}


def test_rows_grow_when_all_tasks_are_solved(tmp_path, caplog):
    data = GrowingData(LengthRule(start=16, check_every=2, threshold=0.9, window=1))
    module = Answering(
        {"counting": (9, 10)},
        {"riddle": (1, 10)},
        {"counting": (10, 10), "riddle": (9, 10)},
        {"riddle": (10, 10)},
        *[{"counting": (5, 5)}] * 4,
    )
    with caplog.at_level("INFO"):
        trainer(tmp_path, LengthGrowth(), max_epochs=8, limit_val_batches=0).fit(module, data)
    assert data.switches == [32, 64]  # at steps 4 and 6; there is no longer length at step 8
    assert "step 4: rows will grow to 32 tokens (answer accuracy 0.95)" in caplog.text


def test_nothing_grows_while_a_switch_is_pending_or_without_a_rule(tmp_path):
    data = GrowingData(LengthRule(start=16, check_every=1, window=1))
    data.switch_pending = True
    trainer(tmp_path, LengthGrowth(), max_epochs=1, limit_val_batches=0).fit(Answering({"counting": (1, 1)}), data)
    trainer(tmp_path, LengthGrowth(), max_epochs=1, limit_val_batches=0).fit(Answering(), GrowingData(None))
    assert data.switches == []


def test_predictions_are_lines(tmp_path):
    class Predicting(FakeModule):
        def predict_step(self, batch: Any, index: int) -> list[dict[str, Any]]:
            return [{"answer": "é", "nll": torch.tensor(0.5), "selected": [{"chunks": torch.tensor([1, 2])}]}] * 2

    for _ in range(2):  # the file is begun anew
        trainer(tmp_path, PredictionWriter()).predict(Predicting(), FakeData())
        lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"answer": "é", "nll": 0.5, "selected": [{"chunks": [1, 2]}]}
        ] * 2


def test_predictions_on_a_full_disk(tmp_path):
    class Predicting(FakeModule):
        def predict_step(self, batch: Any, index: int) -> list[dict[str, Any]]:
            return [{"answer": "x" * 100_000}]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(NotSaved, match=r"predictions.jsonl could not be written: File too large; make room"):
            trainer(tmp_path, PredictionWriter()).predict(Predicting(), FakeData())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_memory_is_logged_in_gib(tmp_path):
    class Storing(FakeModule):
        store = HostStore()

    (metrics,) = trainer(tmp_path, MemoryReport()).validate(Storing(), FakeData(), verbose=False)
    memory = {name: value for name, value in metrics.items() if name.startswith("memory/")}
    assert memory.keys() == {"memory/process_gib"}  # a store is empty between the lengths, which have rows of their own
    assert 0.01 < memory["memory/process_gib"] < 100
