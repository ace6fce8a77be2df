"""The benchmark of whole training steps, without a GPU: it trains what it says, and refuses rows that do not fit."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_training
from origin import append


def test_both_models_train(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_training, "VOCABULARY", 300)
    for case in bench_training.cases([(2, 1)], [256]):
        small = replace(case, width=16, layers=2)
        row = bench_training.measure(small.decoder, small.length, 512, "cpu", warmup=2, steps=1)
        assert row["batch"] == 2 and row["tokens_per_s"] == pytest.approx(512e3 / row["step_ms"])
        append(tmp_path / "rows.csv", [vars(small) | row], bench_training.COLUMNS)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0].split(",") == list(bench_training.COLUMNS) and len(lines) == 3
    assert [line.split(",")[6] for line in lines[1:]] == ["gca", "sliding_window"]


def test_rows_must_fill_a_step():
    case = next(bench_training.cases([(2, 1)], [256]))
    with pytest.raises(ValueError, match="--tokens 500 is not a multiple of the row length 256"):
        bench_training.measure(case.decoder, case.length, 500, "cpu")
