"""The benchmark of long contexts, without a GPU: it reads and continues what it says, and draws what was measured."""

import shutil
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_context
import turns
from context_figure import relative
from gca_lit.generation.sampling import Sampling, generate, read
from gca_lit.memory import DeviceStore, HostStore
from origin import append
from report import read as read_rows

LENGTH, SEGMENT = 900, 260  # three segments of 252 tokens and a shorter one
CONTEXT = torch.arange(LENGTH, dtype=torch.int32)[None] % 257
TINY = """
model:
  attention:
    class_path: GroupedCrossAttention
    init_args: {chunk_size: 63, window: 128, top_k: 8, encoder_layers: 1}
  decoder: {width: 16, heads: 2, kv_heads: 2, layers: 4, mlp_width: 16}
data:
  tokenizer: byte
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return lambda backend: bench_context.built(path, backend, compiled=False)


@pytest.mark.parametrize("backend", bench_context.BACKENDS)
@pytest.mark.parametrize("full", [False, True])
def test_a_context_is_read_and_continued(tiny, backend, full, monkeypatch):
    model = tiny(backend)
    steps, step = [], model.step
    monkeypatch.setattr(model, "step", lambda t, s, read="all": steps.append((t.shape[1], read)) or step(t, s, read))
    row = bench_context.measure(model, CONTEXT, SEGMENT, HostStore(slab_mib=1), full, "cpu")
    sizes = [252] * 3 + [144] if backend == "gca" else [260] * 3 + [120]
    reading = [(size, "none") for size in sizes[:-1]] + [(sizes[-1], "last")]
    everything = [(size, "all") for size in sizes] if full else []
    first = 2 * 63 + 8 if backend == "gca" else 8
    measured = reading + everything + reading + [(1, "last")] * (first - 1)
    assert steps[-len(measured) :] == measured
    assert set(row) <= set(bench_context.COLUMNS) and ("full_tokens_per_s" in row) == full
    assert row["first_ms"] > 0
    assert (row["state_host_gb"] > 0) == (backend == "gca")
    chunks = LENGTH // 63 if backend == "gca" else 0
    assert row["landmarks_gb"] == chunks * 16 * torch.bfloat16.itemsize / 1e9 <= row["state_device_gb"]


def test_the_store_is_the_one_given(tiny):
    row = bench_context.measure(tiny("gca"), CONTEXT, SEGMENT, DeviceStore(1), False, "cpu")
    assert row["state_host_gb"] == 0 and row["state_device_gb"] > 0


def test_models_decode_in_turns(tiny, monkeypatch):
    models, took = {name: tiny(name) for name in bench_context.BACKENDS}, []
    for name, model in models.items():
        step = model.step

        def taken(ids, *rest, name=name, step=step, **settings):
            took.append((name, ids.shape[1]))
            return step(ids, *rest, **settings)

        monkeypatch.setattr(model, "step", taken)
    monkeypatch.setattr(bench_context, "in_turns", partial(turns.in_turns, rounds=3, turn=4))
    options = Namespace(store="host", segment=SEGMENT, full_up_to=0)
    rows = bench_context.rows_of(models, LENGTH, options, "cpu")
    assert [row["backend"] for row in rows] == list(models) and {row["length"] for row in rows} == {LENGTH}
    in_turn = [(name, 1) for _ in range(3) for name in models for _ in range(4)]
    assert took[-len(in_turn) :] == in_turn
    for row in rows:
        assert row["slowest_token_ms"] >= row["token_ms"] > 0 and row["decode_tokens_per_s"] > 0
        assert row["fastest_tokens_per_s"] >= row["decode_tokens_per_s"] and row["host_ms"] > 0
        assert set(row) <= set(bench_context.COLUMNS) and row["note"] == ""


def test_a_model_without_room_leaves_the_others(tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room\nat all")

    models = {name: tiny(name) for name in bench_context.BACKENDS}
    monkeypatch.setattr(models["gca"], "step", full)
    monkeypatch.setattr(bench_context, "in_turns", partial(turns.in_turns, rounds=1, turn=2))
    gca, other = bench_context.rows_of(models, LENGTH, Namespace(store="host", segment=SEGMENT, full_up_to=0), "cpu")
    assert gca["note"] == "no room" and "decode_tokens_per_s" not in gca
    assert other["note"] == "" and other["decode_tokens_per_s"] > 0


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs before it can go on."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 9, "top_p": 0.9, "repetition_penalty": 1.1}])
@pytest.mark.parametrize("backend", bench_context.BACKENDS)
@torch.no_grad()
def test_the_host_waits_for_no_segment_that_only_writes_and_once_a_token(tiny, backend, sampling):
    model = tiny(backend)
    tokens = torch.randint(0, 257, (1, 63 * 4 + 10))
    state, segments = model.new_state(1, HostStore()), Waits()
    with segments:
        for part in tokens.split(63 * 2, 1):
            state = model.step(part, state, "none").state
    state, logits = read(model, tokens, model.new_state(1, HostStore()), 63 * 2)
    stream = generate(model, state, logits, Sampling(max_new_tokens=20, **sampling))
    next(stream), next(stream)  # the second fetches what serves the rest of its chunk
    with Waits() as waits:
        assert len(list(stream)) == 18
    assert segments.count == 0 and waits.count == 18


def rows(*cases):
    names = ("model", "backend", "length", "token_ms", "decode_peak_gb", "gpu")
    return [dict(zip(names, [*case, "a GPU"], strict=True)) for case in cases]


def test_ratios_are_of_the_last_rows_where_both_are_known():
    measured = rows(
        ("6m", "gca", "2048", "9", "1"),
        ("6m", "gca", "2048", "3", "1"),
        ("6m", "sliding_window", "2048", "2", "1"),
        ("6m", "gca", "1024", "2", "1"),
        ("6m", "sliding_window", "1024", "2", "1"),
        ("6m", "gca", "4096", "5", "1"),
        ("6m", "sliding_window", "4096", "", ""),
        ("128m", "sliding_window", "1024", "2", "1"),
    )
    assert relative(measured, "token_ms") == {"6m": [(1024, 1.0), (2048, 1.5)]}
    fast = [row | {"decode_tokens_per_s": row["token_ms"]} for row in measured]
    assert relative(fast, "decode_tokens_per_s") == {"6m": [(1024, 1.0), (2048, 2 / 3)]}


RESULTS = Path(__file__).parents[2] / "kernels" / "benchmarks" / "results" / "bench_context.csv"


def test_plot_alone_draws_beside_the_csv_and_prints_the_table_of_the_page(tmp_path, capsys):
    path = Path(shutil.copy(RESULTS, tmp_path))
    bench_context.main(["--plot", str(path)])
    table, _, drawn = capsys.readouterr().out.rpartition(f"{path.with_suffix('.png')}\n")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG") and drawn == ""
    assert table in (RESULTS.parents[2] / "README.md").read_text(encoding="utf-8")


def test_nothing_to_draw_is_named(tmp_path):
    append(tmp_path / "bench_context.csv", read_rows(RESULTS)[:1])
    with pytest.raises(ValueError, match="no model and length with both backends"):
        bench_context.main(["--plot", str(tmp_path / "bench_context.csv")])
