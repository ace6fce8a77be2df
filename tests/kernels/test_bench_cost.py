"""The benchmark of what training costs, without a GPU: its models, its rows, its table and its figure."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_cost
from cost_figure import draw, latest, ratio, table
from origin import append
from recipe import recipe_model
from report import read

TINY = bench_cost.Size(16, 2, 4, 16, recompute=True, vocabulary=300)
RESULTS = Path(__file__).parents[2] / "kernels" / "benchmarks" / "results" / "bench_cost.csv"
LENGTH, TOKENS, PEAK = 256, 512, 1e12


def cost(model, length=LENGTH):
    return bench_cost.cost(TINY, model, length, TOKENS, "cpu", warmup=1, steps=1, peak=PEAK)


def test_attention_is_that_of_the_language_models(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    attention = recipe_model(Path("configs/experiment/lm_25m.yaml")).attention
    assert vars(bench_cost.BACKENDS["gca_1_group"]) == vars(attention)
    assert bench_cost.BACKENDS["sliding_window"].window == attention.window


@pytest.mark.parametrize("model", bench_cost.BACKENDS)
def test_a_row_is_of_the_model_that_it_names(model):
    row, decoder = cost(model), TINY.decoder(model)
    assert set(row) <= set(bench_cost.COLUMNS) and row["note"] == "" and row["batch"] == 2
    assert row["params"] == sum(p.numel() for p in decoder.parameters())
    assert row["layers"] == len(decoder.attention.plan(decoder.config.layers)) == 4 + 2 * (model == "sliding_window")
    assert row["mfu"] == pytest.approx(2 * 3 * decoder.flops(LENGTH) / (row["step_ms"] / 1e3) / PEAK)
    assert getattr(decoder.attention, "groups", None) == {"gca_1_group": 1, "gca_2_groups": 2}.get(model)


def test_what_does_not_fit_is_a_note(monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried too much.\nmore")

    assert cost("full", 500)["note"] == "--tokens 512 is not a multiple of the row length 500"
    monkeypatch.setattr(bench_cost, "measure", too_large)
    row = cost("full")
    assert row["note"] == "CUDA out of memory. Tried too much." and row["params"] > 0 and "mfu" not in row


@pytest.mark.parametrize(("size", "millions"), [("25m", 25), ("128m", 128), ("350m", 350)])
def test_sizes_are_about_those_of_their_names(size, millions):
    for model in bench_cost.BACKENDS:
        with torch.device("meta"):
            params = sum(p.numel() for p in bench_cost.SIZES[size].decoder(model).parameters())
        assert 0.7 < params / (millions * 1e6) < 1.1


def measured(size, model, ms=None, command="a", note=""):
    row = dict.fromkeys(bench_cost.COLUMNS, "") | {"size": size, "model": model, "length": "16384", "params": "1000"}
    row |= {"command": command, "gpu": "a GPU", "note": note}
    if ms is None:
        return row
    speeds = {"step_ms": str(ms), "tokens_per_s": str(2e3 * 16_384 / ms), "peak_gb": str(ms / 10), "mfu": "0.25"}
    return row | {"batch": "2"} | speeds


ROWS = [
    measured("25m", "full", 999),
    measured("25m", "sliding_window", 200),
    measured("25m", "full", 400),
    measured("25m", "gca_1_group", 300, command="b"),
    measured("350m", "sliding_window", 800),
    measured("350m", "full", note="out of memory"),
]


def test_ratios_are_of_one_run_and_the_last_rows():
    cases = latest(ROWS)
    assert [case[0] + " " + case[2] for case in cases] == [
        *("25m sliding_window", "25m gca_1_group", "25m full", "350m sliding_window", "350m full")
    ]
    ratios = {case[::2]: ratio(cases, case, "step_ms") for case in cases}
    assert ratios["25m", "full"] == 2 and ratios["25m", "gca_1_group"] is None and ratios["350m", "full"] is None
    assert ratio(cases, ("25m", 16_384, "full"), "tokens_per_s") == pytest.approx(0.5)


def test_table_and_figure_come_from_the_csv_alone(tmp_path, capsys):
    path = tmp_path / "bench_cost.csv"
    append(path, ROWS, bench_cost.COLUMNS)
    bench_cost.main(["--plot", str(path)])
    printed = capsys.readouterr().out
    assert printed == table(ROWS) + f"{path.with_suffix('.png')}\n"
    assert (
        "| 25m | 16,384 | full attention | 1,000 | 400.0 (2.00x) | 81,920 (0.50x) | 40.0 (2.00x) | 25.0% |  |"
        in printed
    )
    assert "| 350m | 16,384 | full attention | 1,000 |  |  |  |  | out of memory |" in printed
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_named(tmp_path):
    append(tmp_path / "bench_cost.csv", ROWS[-1:], bench_cost.COLUMNS)
    with pytest.raises(ValueError, match="has no row with a time"):
        draw(tmp_path / "bench_cost.csv")


def test_the_page_has_the_table_of_the_rows():
    page = Path(__file__).parents[2] / "docs" / "results" / "cost.md"
    assert table(read(RESULTS)) in page.read_text(encoding="utf-8")
