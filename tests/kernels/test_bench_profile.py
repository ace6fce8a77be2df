"""The profile of the kernels, without a GPU: what is read of Nsight Compute's output, and the table of the results."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import profile_gca

KERNELS = Path(__file__).parents[2] / "kernels"
HEAD = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'


def printed(runs: int) -> list[str]:
    """What ncu prints over two cases: launch n takes n microseconds and 1,000 n registers."""
    lines = ["==PROF== Connected", HEAD]
    for number in range(len(profile_gca.CASES) * runs * 3):
        kernel = [*profile_gca.KERNELS][number % 3]
        lines += [f'"{number}","{kernel}","Duration","us","{number}"', f'"{number}","{kernel}","Other","%","1"']
        lines += [f'"{number}","{kernel}","Registers Per Thread","register/thread","{number},000"']
    return lines


def test_the_last_run_of_each_case_counts() -> None:
    rows = profile_gca.counted(printed(profile_gca.RUNS))
    assert [row["ms"] for row in rows] == [0.003, 0.004, 0.005, 0.009, 0.010, 0.011]
    assert [row["registers"] for row in rows] == [3e3, 4e3, 5e3, 9e3, 10e3, 11e3]
    assert [row["case"][:11] for row in rows] == ["B 4, T 16K,"] * 6 and "16/4" in rows[3]["case"]


def test_missing_kernels_are_an_error() -> None:
    with pytest.raises(SystemExit, match="ncu saw 6 kernels"):
        profile_gca.counted(printed(1))


def test_the_page_has_the_table_of_the_results() -> None:
    rows = profile_gca.read(KERNELS / "benchmarks" / "results" / "profile_gca.csv")
    assert profile_gca.table(rows) in (KERNELS / "README.md").read_text(encoding="utf-8")
