"""What the benchmarks of models have in common: when they refuse, and the file that rows go to."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import command
import origin


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
@pytest.mark.parametrize("name", ["bench_context", "bench_cost", "bench_retrieval", "bench_training"])
def test_none_measures_without_a_gpu(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        import_module(name).main(["--output", str(tmp_path)])
    assert "needs a CUDA device" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_commit_that_git_cannot_name_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    parser = command.parser("Benchmark.", "bench.csv")
    assert command.begin(parser, parser.parse_args(["--output", "x", "--commit", "abc"]))["commit"] == "abc"
    with pytest.raises(SystemExit):
        command.begin(parser, parser.parse_args(["--output", "x"]))
    assert "give --commit" in capsys.readouterr().err


def test_rows_follow_each_other_under_one_header(tmp_path, capsys):
    path = tmp_path / "new" / "bench.csv"
    for ms in (1.23456789, 2):
        command.record(path, {"ms": ms}, ("name", "ms"), f"took {ms}")
    assert path.read_text().splitlines() == ["name,ms", ",1.23457", ",2"]
    assert capsys.readouterr().out == "took 1.23456789\ntook 2\n"
    with pytest.raises(ValueError, match=r"bench.csv has other columns .* another folder"):
        command.record(path, {"ms": 3}, ("ms", "name"), "")
    assert len(path.read_text().splitlines()) == 3
