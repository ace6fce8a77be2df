"""The best chunks for one query are those of a full sort, whatever the parts and whatever lies behind the landmarks."""

from importlib import import_module

import pytest
import torch

from gca_kernels.retrieval import best_chunks
from tests.kernels.cases import DEVICE, DTYPES

pytest.importorskip("triton")
# empty slots are divided, too, before they are made zero
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
NAN = float("nan")


def data(B, parts, width, dtype=torch.float32, seed=0, values=None, drawn_on="cpu"):
    """A query [B, M'] in fp32 and parts of keys: normal ones, or whole numbers below `values`, whose sums are exact."""
    g = torch.Generator(drawn_on).manual_seed(seed)
    shapes = [(B, width), *((B, n, width) for n in parts)]
    if values is None:
        drawn = [torch.randn(shape, generator=g, device=drawn_on).to(DEVICE) for shape in shapes]
    else:
        drawn = [torch.randint(values, shape, generator=g, device=drawn_on).float().to(DEVICE) for shape in shapes]
    return drawn[0], [part.to(dtype) for part in drawn[1:]]


def exact_scores(query, keys, count, slope=None):
    """fp64 [B, count]."""
    held = torch.cat(keys, 1)[:, :count]
    scores = (held.double() @ query.double().view(len(query), -1, 1)).squeeze(-1)
    if slope is None:
        return scores
    return scores - slope.double() * (count - torch.arange(held.shape[1], device=held.device)).double().log2()


def expected(query, keys, count, top_k, slope=None):
    """ids [B, 1, K] and weights in fp64, by a stable sort of all scores."""
    best = exact_scores(query, keys, count, slope).sort(descending=True, stable=True)
    ids = torch.full((len(query), 1, top_k), -1, device=query.device)
    weights = torch.zeros(ids.shape, dtype=torch.float64, device=query.device)
    filled = min(top_k, best.indices.shape[1])
    ids[:, 0, :filled] = best.indices[:, :filled]
    weights[:, 0, :filled] = best.values[:, :filled].softmax(-1)
    return ids, weights


def number(count):
    return torch.tensor([count], device=DEVICE)


def assert_equals_a_sort(query, keys, count, top_k, slope=None):
    ids, weights = best_chunks(query, keys, number(count), top_k, slope)
    exact_ids, exact_weights = expected(query, keys, count, top_k, slope)
    assert ids.dtype == torch.int64 and weights.dtype == torch.float32
    assert torch.equal(ids, exact_ids)
    torch.testing.assert_close(weights.double(), exact_weights, rtol=0, atol=1e-4)
    assert (weights[ids < 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 41, 200])
@pytest.mark.parametrize(
    ("B", "parts", "width"),
    [
        (1, (40, 1, 159), 64),
        (3, (7, 33, 64, 96), 24),
        (1, (200,), 384),
        (3, (0, 100, 0, 100, 0), 100),
        (2, (128, 72), 1),
    ],
)
def test_equals_a_full_sort(B, parts, width, count, dtype):
    assert_equals_a_sort(*data(B, parts, width, dtype), count, top_k=5)


@pytest.mark.parametrize("top_k", [1, 7, 100, 256])
def test_any_number_of_slots(top_k):
    assert_equals_a_sort(*data(2, (30, 41), 32), 71, top_k)
    assert_equals_a_sort(*data(1, (300, 41), 32), 330, top_k)


@pytest.mark.parametrize("width", [1, 7, 96, 320, 768, 1000])
def test_any_width(width):
    assert_equals_a_sort(*data(2, (50,), width), 45, top_k=8)


@pytest.fixture
def small_launches(monkeypatch):
    """Few parts a launch, few tiles for all programs, few order keys a program."""
    kernels = import_module("gca_kernels.retrieval.triton.best_chunks")
    for name, value in {"PARTS": 3, "PROGRAMS": 2, "FEWEST_ORDERS": 16, "MOST_ORDERS": 128}.items():
        monkeypatch.setattr(kernels, name, value)


@pytest.mark.parametrize("values", [1, 3, None])
@pytest.mark.parametrize("top_k", [1, 13])
@pytest.mark.parametrize("parts", [(200, 1, 470), (671,), (3, 4, 5, 6, 7, 0, 300, 2, 344)])
def test_many_launches_and_ties_across_them(small_launches, parts, top_k, values):
    query, keys = data(2, parts, 3 if values else 16, values=values)
    assert_equals_a_sort(query, keys, 660, top_k)


@pytest.mark.slow
def test_more_landmarks_and_parts_than_a_launch_takes():
    query, keys = data(1, [4000, *range(20)], 3, values=4)
    assert_equals_a_sort(query, keys, 4150, top_k=20)


def test_no_landmarks_and_no_batch():
    for parts in [(0,), (0, 0)]:
        assert_equals_a_sort(*data(2, parts, 8), 0, top_k=3)
    ids, weights = best_chunks(torch.ones(0, 8, device=DEVICE), [torch.ones(0, 9, 8, device=DEVICE)], number(4), 3)
    assert ids.shape == weights.shape == (0, 1, 3)


@pytest.mark.parametrize("value", [1.0, 0.0, -1.0])
def test_exact_ties_go_to_the_lower_number_across_parts(value):
    query = torch.ones(1, 4, device=DEVICE)
    keys = torch.full((1, 150, 4), value, device=DEVICE)
    keys[:, ::3] = -0.0 if value == 0 else value
    ids, weights = best_chunks(query, keys.split((1, 70, 79), 1), number(140), 99)
    assert ids.flatten().tolist() == list(range(99))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 99))


@pytest.mark.parametrize("slope", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("count", [0, 1, 90, 150])
def test_recency(slope, count):
    query, keys = data(2, (64, 86), 32)
    assert_equals_a_sort(query, keys, count, 6, torch.tensor([slope], device=DEVICE))


@pytest.mark.parametrize("garbage", [NAN, float("inf")])
@pytest.mark.parametrize("count", [0, 33, 65])
def test_what_lies_behind_the_landmarks_never_shows(garbage, count):
    query, keys = data(2, (64, 136), 40)
    slope = torch.tensor([0.3], device=DEVICE)
    exact = best_chunks(query, keys, number(count), 7, slope)
    whole = torch.cat(keys, 1)
    whole[:, count:] = garbage
    again = best_chunks(query, whole.split((64, 136), 1), number(count), 7, slope)
    assert torch.equal(exact[0], again[0]) and torch.equal(exact[1], again[1])


def test_views_and_a_query_of_three_dimensions():
    query, (keys,) = data(3, (90,), 48)
    wide = torch.full((3, 100, 2, 48), NAN, device=DEVICE)
    wide[:, 5:95, 1] = keys
    turned = keys.transpose(0, 1).contiguous().transpose(0, 1)
    exact = best_chunks(query, [keys], number(80), 4)
    strided = torch.stack((query, query), -1)[:, None, :, 1]
    for view in ([wide[:, 5:95, 1]], [turned], [keys[:, :90:1]], list(wide[:, 5:95, 1].split((10, 80), 1))):
        again = best_chunks(strided, view, number(80), 4)
        assert torch.equal(exact[0], again[0]) and torch.equal(exact[1], again[1])


def test_half_precision_queries():
    query, keys = data(2, (90,), 48, torch.float16)
    assert_equals_a_sort(query.half(), keys, 80, top_k=4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "query must be a tensor"),
        ({"query": torch.ones(8)}, ValueError, "query must be"),
        ({"query": torch.ones(2, 2, 8)}, ValueError, "query must be"),
        ({"query": torch.ones(2, 8, dtype=torch.float64)}, ValueError, "query must be fp32"),
        ({"query": torch.ones(2, 8, device="meta")}, ValueError, "query must be on"),
        ({"keys": []}, ValueError, "keys is empty"),
        ({"keys": torch.ones(2, 5, 8)}, TypeError, "keys must be a sequence"),
        ({"keys": [None]}, TypeError, r"keys\[0\] must be a tensor"),
        ({"keys": [torch.ones(2, 5, 7)]}, ValueError, r"keys\[0\] must be \[2, n, 8\]"),
        ({"keys": [torch.ones(2, 5, 8), torch.ones(1, 5, 8)]}, ValueError, r"keys\[1\] must be \[2, n, 8\]"),
        ({"keys": [torch.ones(2, 5, 8), torch.ones(2, 5, 8).half()]}, ValueError, "alike"),
        ({"keys": [torch.ones(2, 5, 8).double()]}, ValueError, r"keys\[0\] must be fp32"),
        ({"keys": [torch.ones(2, 5, 8, device="meta")]}, ValueError, r"keys\[0\] is on meta"),
        ({"count": 3}, TypeError, "count must be a tensor"),
        ({"count": torch.tensor([3], dtype=torch.int32)}, ValueError, "count must be int64"),
        ({"count": torch.tensor(3)}, ValueError, "count must be int64"),
        ({"count": torch.tensor([3], device="meta")}, ValueError, "count is on meta"),
        ({"top_k": 0}, ValueError, "top_k must be 1 to 256"),
        ({"top_k": 257}, ValueError, "top_k must be 1 to 256"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int"),
        ({"slope": 0.5}, TypeError, "slope must be a tensor"),
        ({"slope": torch.ones(2)}, ValueError, "slope must be"),
        ({"slope": torch.ones(1, dtype=torch.int64)}, ValueError, "slope must be"),
        ({"slope": torch.ones(1, device="meta")}, ValueError, "slope is on meta"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on the CPU need the interpreter")
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "query": torch.ones(2, 8),
        "keys": [torch.ones(2, 5, 8)],
        "count": torch.tensor([3]),
        "top_k": 4,
        "slope": torch.ones(1),
    }
    best_chunks(**arguments)
    with pytest.raises(error, match=message):
        best_chunks(**(arguments | change))


def test_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="query must be on a CUDA device"):
        best_chunks(torch.ones(1, 8), [torch.ones(1, 5, 8)], torch.tensor([3]), 2)


def assert_as_good(made, query, keys, count, slope=None):
    """As a full sort, but for chunks whose scores differ by less than errors of fp32."""
    ids, weights = made
    exact_ids, exact_weights = expected(query, keys, count, ids.shape[-1], slope)
    assert torch.equal(ids < 0, exact_ids < 0) and (ids < count).all()
    scores = torch.nn.functional.pad(exact_scores(query, keys, count, slope), (1, 0))  # that of -1 comes first
    best, exact = (scores.gather(1, x[:, 0] + 1) for x in (ids, exact_ids))
    torch.testing.assert_close(best, exact, rtol=0, atol=2e-5)
    torch.testing.assert_close(weights.double(), exact_weights, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "top_k"), [(256, 8), (384, 8), (768, 64), (100, 13)])
@pytest.mark.parametrize("parts", [(256, 256, 512), (65_536,) * 4 + (40_000,), (4096,) * 20])
@pytest.mark.parametrize("recency", [False, True])
def test_a_gpu_finds_the_best_of_many(parts, width, top_k, recency):
    query, keys = data(2, parts, width, torch.bfloat16, drawn_on="cuda")
    query = query / width**0.5
    slope = torch.tensor([0.7], device="cuda") if recency else None
    for count in (0, 3, 300, sum(parts) - 100, sum(parts)):
        assert_as_good(best_chunks(query, keys, number(count), top_k, slope), query, keys, count, slope)


@pytest.mark.gpu
@pytest.mark.parametrize("parts", [(256, 256, 512), (65_536,) * 4 + (40_000,)])
def test_a_cuda_graph_holds_it(parts):
    """Captured once, it follows the query, the landmarks and their count."""
    query, keys = data(1, parts, 256, torch.bfloat16, drawn_on="cuda")
    slope, count = torch.tensor([0.1], device="cuda"), number(1)
    best_chunks(query, keys, count, 8, slope)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = best_chunks(query, keys, count, 8, slope)
    for seed, visible in enumerate((2, 300, sum(parts) - 5)):
        other, more = data(1, parts, 256, torch.bfloat16, seed=seed + 1, drawn_on="cuda")
        query.copy_(other / 16)
        for part, new in zip(keys, more, strict=True):
            part.copy_(new)
        count.fill_(visible)
        graph.replay()
        assert_as_good(made, query, keys, visible, slope)


@pytest.mark.gpu
def test_a_gpu_breaks_ties_by_number():
    query, keys = data(1, (65_536, 65_536, 9_000), 256, torch.bfloat16, values=2, drawn_on="cuda")
    assert_equals_a_sort(query, keys, 140_000, 64)
    ids, _ = best_chunks(query, [torch.ones_like(part) for part in keys], number(140_000), 64)
    assert ids.flatten().tolist() == list(range(64))
