"""The benchmark of retrieval, without a GPU: it compares before it times."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_retrieval


def test_it_finds_what_a_full_top_k_finds():
    assert bench_retrieval.measure(20, 700, 64, "cpu")["landmarks"] == 700


def test_it_refuses_other_chunks(monkeypatch):
    monkeypatch.setattr(bench_retrieval, "exact", lambda queries, keys, first: torch.zeros(1, 3, 8, dtype=torch.long))
    with pytest.raises(SystemExit, match="wrong: 3 queries of 100"):
        bench_retrieval.measure(3, 100, 64, "cpu")
