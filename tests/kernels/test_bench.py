"""The benchmark of grouped cross attention, without a GPU: correctness part, roofline, rows, table and picture."""

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_gca
import cases
import check
import rivals
import roofline

TINY = cases.Case(batch=2, rows=32, heads=4, kv_heads=2, width=16, slots=3, chunk=8, block=8, dtype="float32")
CEILINGS = roofline.Ceilings(copy=4e12, matmul=7e14)
PAPER = """
import torch

def attention(q, k, v, weights, scale, offset):
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous() and weights.is_contiguous() and offset == 0
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    p = torch.einsum("zhsd,zhkcd->zhksc", q, k).mul(scale).softmax(-1)
    return torch.einsum("zhksc,zhkcd,zk->zhsd", p, v, weights.to(v.dtype))
"""


@pytest.mark.parametrize(("chunk", "block", "slots"), [(8, 8, 3), (4, 8, 3), (16, 8, 9)])
def test_a_selection_is_causal_and_distinct(chunk, block, slots):
    case = replace(TINY, rows=64, chunk=chunk, block=block, slots=slots)
    x = cases.make_inputs(case, "cpu")
    filled = x.ids >= 0
    for query, chosen in enumerate(x.ids.unbind(1)):
        for ids in chosen.tolist():
            visible = [i for i in ids if i >= 0]
            assert len(visible) == len(set(visible)) == min(slots, query * block // chunk)
            assert all((i + 1) * chunk <= query * block for i in visible)
    assert filled.sum() == case.filled_slots
    assert torch.allclose(x.weights.sum(-1), filled.any(-1).float())
    assert (x.weights[~filled] == 0).all()


def test_inputs_need_whole_chunks():
    with pytest.raises(ValueError, match="rows must be a multiple"):
        cases.make_inputs(replace(TINY, rows=33), "cpu")


def test_roofline():
    case = replace(cases.BASE, batch=4)
    filled = 4 * (256 * 8 - 36)  # query chunk i < 8 sees i chunks
    assert roofline.flops(case) == (4 * filled * 64 * 12 * 64 * 64, 10 * filled * 64 * 12 * 64 * 64)
    rows = 4 * 16384 * 12 * 64 * 2
    assert roofline.moved_bytes(case) == (4 * rows, 7 * rows)
    assert roofline.gathered_bytes(case) == 16 * rows
    slow_copy = roofline.floor_ms(case, roofline.Ceilings(copy=1e9, matmul=1e15))
    assert slow_copy.total == pytest.approx(11 * rows / 1e6)
    slow_product = roofline.floor_ms(case, roofline.Ceilings(copy=1e15, matmul=1e9))
    assert slow_product.total == pytest.approx(roofline.flops(case).total / 1e6)


def test_ceilings(monkeypatch):
    monkeypatch.setattr(roofline, "median_ms", lambda call, leaves=(): [call(), 2.0][1])
    assert roofline.measure_ceilings("cpu", copied=1000, side=10) == (1e6, 1e6)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_rivals_compute_the_same(kv_heads, tmp_path):
    case = replace(TINY, kv_heads=kv_heads, dtype="bfloat16")
    (tmp_path / "ltriton").mkdir()
    (tmp_path / "ltriton" / "gca.py").write_text(PAPER)
    x = cases.make_inputs(case, "cpu")
    truth = check.results(rivals.gca("reference"), x.double())
    found = check.results(rivals.gather_sdpa, x.double())
    torch.testing.assert_close(found, truth)
    assert max(check.compare(rivals.paper(tmp_path), case, "cpu").own.values()) < 0.02
    with pytest.raises(ValueError, match="takes bf16"):
        rivals.paper(tmp_path)(x.double())


def test_paper_needs_a_checkout(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkout"):
        rivals.paper(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself checks")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_kernels_pass(dtype):
    assert check.failures(rivals.gca("triton"), [replace(TINY, dtype=dtype)], "cpu") == []


def test_failures_are_named(capsys):
    plain = rivals.gca("reference")
    assert check.failures(plain, [TINY], "cpu") == []
    assert "relative error" in capsys.readouterr().out
    assert check.failures(lambda x: plain(replace(x, weights=2 * x.weights)), [TINY], "cpu") == [
        "float32, 32 rows: out, dq, dchunk_k, dchunk_v, dweights"
    ]
    assert check.failures(lambda x: plain(x) * float("nan"), [TINY], "cpu")[0].endswith("same bits")
    noisy = check.failures(lambda x: plain(x) + torch.rand(()) * 1e-9, [replace(TINY, dtype="float64")], "cpu")
    assert noisy[0].endswith("same bits")


def rows_of(monkeypatch, attentions, grid=(TINY,)):
    monkeypatch.setattr(bench_gca, "median_ms", lambda call, leaves=(): [call(), 0.5][1])
    monkeypatch.setattr(bench_gca, "extra_bytes", lambda call, leaves=(): [call(), 10**9][1])
    file = io.StringIO()
    origin = dict.fromkeys(("date", "gpu", "torch", "triton", "commit", "command"), "x")
    whole = bench_gca.write_rows(file, grid, attentions, {"reference": 0.25}, CEILINGS, origin, "cpu")
    return list(csv.DictReader(io.StringIO(file.getvalue()))), whole


def out_of_memory(x):
    raise torch.OutOfMemoryError("no")


def broken(x):
    raise RuntimeError("first line\nsecond line")


def test_rows(monkeypatch):
    plain = rivals.gca("reference")
    attentions = {"triton": plain, "reference": plain, "gather_sdpa": out_of_memory, "paper": broken}
    rows, whole = rows_of(monkeypatch, attentions)
    ours, reference, gather, paper = rows
    assert whole and list(ours) == list(bench_gca.COLUMNS)
    assert [row["rival"] for row in rows] == list(attentions)
    assert [row["note"] for row in rows] == ["", "", "out of memory", "RuntimeError: first line"]
    assert ours["forward_backward_ms"] == ours["forward_backward_shared_index_ms"] == "0.5"
    assert reference["error"] == "0.25" and reference["forward_backward_shared_index_ms"] == ""
    assert float(ours["share_of_floor"]) == pytest.approx(roofline.floor_ms(TINY, CEILINGS).total / 0.5, rel=1e-4)
    assert float(ours["tflops"]) == pytest.approx(roofline.flops(TINY).total / 0.5e9, rel=1e-4)
    assert ours["extra_backward_gb"] == "1" and gather["forward_ms"] == paper["tflops"] == ""


def test_a_row_of_ours_that_fails_is_told(monkeypatch):
    rows, whole = rows_of(monkeypatch, {"triton": broken, "reference": rivals.gca("reference")})
    assert not whole and rows[1]["forward_ms"] == "0.5"


def test_plain_torch_is_spared_a_huge_copy(monkeypatch):
    monkeypatch.setattr(bench_gca, "LARGEST_COPY", 1)
    (row,), _ = rows_of(monkeypatch, {"reference": broken})
    assert row["note"].startswith("skipped")


def test_table_and_picture(monkeypatch, tmp_path, capsys):
    def time_case(row, case, attention, device):
        attention(None)
        row |= dict.fromkeys(bench_gca.COLUMNS[bench_gca.COLUMNS.index("forward_ms") :], 0.5)

    monkeypatch.setattr(bench_gca, "time_case", time_case)
    attentions = {"triton": lambda x: x, "paper": lambda x: x, "gather_sdpa": out_of_memory}
    rows, _ = rows_of(monkeypatch, attentions, [*cases.BARS, replace(cases.BASE, rows=4096)])
    path = tmp_path / "bench_gca.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, bench_gca.COLUMNS)
        writer.writeheader()
        writer.writerows(row | {"copy_tb_s": "4", "matmul_tflops": "700"} for row in rows)
    capsys.readouterr()
    assert bench_gca.main(["--table", str(path), "--picture", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| B 4, T 16K, 12/12, D 64, K 8 | 0.5 | 0.5 | 0.5 | 0.5 |")
    assert lines[2].endswith("| 0.5 (1.0x, 0.50 GB) | out of memory |")
    assert path.with_suffix(".png").stat().st_size > 0


def test_grids_vary_the_base():
    for grid in cases.GRIDS.values():
        assert len(set(grid)) == len(grid) and set(cases.BARS) <= set(grid)


def test_errors_of_the_command(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("rival\n")
    for arguments, message in [(["--table", str(tmp_path / "empty.csv")], "has no rows"), ([], "CUDA device")]:
        if torch.cuda.is_available() and not arguments:
            continue
        with pytest.raises(SystemExit):
            bench_gca.main(arguments)
        assert message in capsys.readouterr().err


def test_nothing_is_timed_when_ours_is_wrong(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_gca, "failures", lambda *_: ["bfloat16, 512 rows: dq"])
    monkeypatch.setattr(bench_gca, "measure_ceilings", broken)
    options = bench_gca.argparse.Namespace(output=tmp_path / "new", grid="bars", commit="x")
    assert bench_gca.run(options, {"triton": broken}) == 1
    assert "wrong: bfloat16, 512 rows: dq" in capsys.readouterr().err and not (tmp_path / "new").exists()
