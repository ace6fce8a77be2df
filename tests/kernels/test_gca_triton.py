"""The Triton implementation of grouped cross attention against the reference, in the interpreter and on a GPU."""

from contextlib import contextmanager

import pytest
import torch

from gca_kernels import gca_attention
from tests.kernels.cases import (
    DEVICE,
    DTYPES,
    LEAVES,
    assert_as_exact_as_reference,
    inputs,
    output_gradient,
    results,
)

pytest.importorskip("triton")
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAN = float("nan")

SHAPES = [
    {"H": 4, "J": 4},
    {"H": 4, "J": 2},
    {"H": 6, "J": 2},
    {"H": 8, "J": 1, "B": 1},
    *({"D": D, "H": 2, "B": 1} for D in (8, 40, 64, 96, 128)),
    *({"C": C, "H": 2, "B": 1} for C in (1, 13, 63, 64, 100)),
    {"C": 256, "D": 64, "H": 1, "J": 1, "B": 1, "R": 5, "K": 2},
    {"K": 1},
    {"K": 8, "N": 12, "J": 1},
    {"K": 64, "N": 20, "H": 1, "J": 1, "B": 1, "R": 4},
    {"block": 1, "R": 5},
    {"block": 5},
    {"block": 16, "R": 40},
    {"block": 64, "R": 100, "B": 1},
    {"block": 65, "R": 150, "B": 1},
    {"block": 64, "R": 150, "B": 1, "H": 6, "J": 2, "C": 63, "start": 50},
]
OFFSETS = [(4, 3, 11), (4, 1, 8), (5, 2, 2), (16, 15, 18), (65, 64, 2), (8, 0, 1), (8, 3, 1), (8, 7, 1), (1, 0, 1)]


@all_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    assert_as_exact_as_reference(inputs(dtype=dtype, **shape))


ROWS = [
    {"C": 31, "D": 64, "K": 8, "N": 8},
    pytest.param({"C": 63, "D": 64, "K": 32, "N": 32, "B": 1}, marks=pytest.mark.slow),
    {"C": 256, "D": 128, "K": 3, "B": 1},
    {"C": 256, "D": 256, "K": 2, "B": 1, "H": 1, "J": 1},
    {"C": 2, "D": 8, "K": 1},
    {"C": 13, "D": 40, "K": 5, "H": 6, "J": 2, "block": 9, "start": 8},
    {"C": 8, "D": 16, "K": 4, "H": 20, "J": 1, "Q": 2},
    {"C": 31, "D": 20, "K": 7, "H": 6, "J": 2},
    {"C": 31, "D": 128, "K": 33, "N": 9, "H": 4, "J": 1},  # more slots than the sum takes at a time
    {"C": 1, "D": 1, "K": 1, "H": 1, "J": 1},
    {"C": 5, "N": 0},
    {"C": 5, "B": 0},
    {"C": 2, "D": 8, "K": 2, "H": 128, "J": 1, "B": 1},
    {"C": 2, "D": 8, "K": 2, "H": 129, "J": 1, "B": 1},
]


@all_dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_one_row(shape, offset, dtype):
    assert_as_exact_as_reference(inputs(dtype=dtype, R=1, **shape), softmax_offset=offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("C", "D"), [(70, 96), (128, 128), (200, 40), (256, 64), (256, 128)])
def test_chunks_longer_than_a_tile_of_fp32(C, D, offset):
    """One id repeats, one slot is empty, and the first query chunk lacks rows."""
    a = inputs(B=1, R=6, H=2, J=1, C=C, D=D, N=3, start=3)
    a["chunk_ids"][0] = torch.tensor([[1, 1, -1], [2, 0, 1], [-1, -1, 0]])
    assert_as_exact_as_reference(a, softmax_offset=offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("first", "last"), [(-200.0, 200.0), (200.0, -200.0), (-400.0, -200.0)])
def test_scores_that_change_along_a_long_chunk(first, last, offset):
    a = inputs(B=1, R=3, H=1, J=1, C=200, D=8, K=2)
    a["q"][..., 0] = 400
    a["chunk_k"][..., 0] = torch.linspace(first / 400, last / 400, 200)[:, None]
    assert_as_exact_as_reference(a, max(abs(first), abs(last)), scale=1.0, softmax_offset=offset)


@pytest.mark.parametrize(("block", "start", "rows"), OFFSETS)
def test_incomplete_first_and_last_query_chunks_and_single_rows(block, start, rows):
    assert_as_exact_as_reference(inputs(R=rows, block=block, start=start), scale=0.3)


@all_dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("height", [-400.0, -60.0, -8.0, 8.0, 400.0])
def test_scores_of_any_height(height, offset, dtype):
    a = inputs(B=1, R=3, H=2, J=1, D=16, K=2, dtype=dtype)
    a["chunk_k"][..., 0] = 1
    a["q"][..., 0] = height
    assert_as_exact_as_reference(a, abs(height), scale=1.0, softmax_offset=offset)


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1e-4, 30.0])
def test_scores_of_any_spread(size, offset):
    a = inputs(B=1, R=4)
    a["q"] *= size
    assert_as_exact_as_reference(a, 3 * size, softmax_offset=offset)


def test_the_offset_takes_its_share():
    a = inputs(C=7)
    a |= {"q": torch.zeros_like(a["q"]), "chunk_v": torch.ones_like(a["chunk_v"])}
    a["chunk_ids"].clamp_(min=0)
    out = gca_attention(**a, softmax_offset=0.5, impl="triton")
    expected = a["chunk_weights"].sum(-1).repeat_interleave(4, 1)[:, :7, None, None] * 7 / 7.5
    torch.testing.assert_close(out, expected.expand_as(out))


def fill(name, value, where=slice(None)):
    def change(a):
        a[name][where] = value

    return change


CHANGES = {
    "repeated ids": fill("chunk_ids", 1),
    "one query chunk repeats an id": fill("chunk_ids", 2, (0, 1)),
    "one query chunk is empty": fill("chunk_ids", -1, (slice(None), 1)),
    "all slots are empty": fill("chunk_ids", -1),
    "NaN weights in empty slots": lambda a: a["chunk_weights"].masked_fill_(a["chunk_ids"] < 0, NAN),
    "zero weights": fill("chunk_weights", 0.0),
    "some zero weights": fill("chunk_weights", 0.0, (slice(None), slice(None), 1)),
    "negative weights": lambda a: a["chunk_weights"].sub_(0.5),
    "ids outside the table": lambda a: a["chunk_ids"][:, 0].copy_(torch.tensor([5, -2, 2**40])),
    "int32 ids": lambda a: a.update(chunk_ids=a["chunk_ids"].int()),
    "weights in q's dtype": lambda a: a.update(chunk_weights=a["chunk_weights"].to(a["q"].dtype)),
}


@all_dtypes
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_ids_and_weights(change, dtype):
    a = inputs(start=2, H=2, J=1, dtype=dtype)
    change(a)
    assert_as_exact_as_reference(a, softmax_offset=1.0)


@all_dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("change", ["all slots are empty", "NaN weights in empty slots", "ids outside the table"])
def test_ids_and_weights_of_one_row(change, offset, dtype):
    a = inputs(R=1, C=13, D=20, dtype=dtype)
    a["chunk_ids"][0, 0, 1] = -1
    CHANGES[change](a)
    assert_as_exact_as_reference(a, softmax_offset=offset)


def test_an_empty_table():
    a = inputs(N=0)
    ours = assert_as_exact_as_reference(a)
    assert not any(x.any() for x in ours.values())


@pytest.mark.parametrize("empty", ["B", "R", "K"])
def test_sizes_of_zero(empty):
    ours = assert_as_exact_as_reference(inputs(**{empty: 0}))
    assert not any(x.any() for x in ours.values())


def test_chunks_that_nobody_selects_are_not_read_and_get_no_gradient():
    a = inputs(N=9)
    a["chunk_ids"] %= 4
    a["chunk_k"][:, 4:] = a["chunk_v"][:, 4:] = NAN
    ours = assert_as_exact_as_reference(a)
    assert not ours["chunk_k"][:, 4:].any() and not ours["chunk_v"][:, 4:].any()


def test_query_chunks_beyond_the_rows_do_nothing():
    a = inputs(Q=6)
    a["chunk_ids"] %= 4
    a["chunk_ids"][:, 2:] = 4
    a["chunk_weights"][:, 2:] = NAN
    ours = assert_as_exact_as_reference(a)
    assert not ours["chunk_weights"][:, 2:].any() and not ours["chunk_k"][:, 4].any()


@contextmanager
def fresh_memory_is_nan():
    """torch fills what `empty` returns with NaN while algorithms must be deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "shape",
    [
        {
            "block": 5,
            "start": 3,
            "Q": 4,
            "C": 13,
        },  # 10 pairs of 16, rows missing at both ends, a query chunk without any
        {"block": 65, "R": 150, "B": 1, "Q": 4},  # 130 pairs of 256
        {"B": 1, "R": 6, "H": 2, "J": 1, "C": 200, "start": 3},  # a chunk in pieces
    ],
    ids=str,
)
def test_nothing_is_read_before_it_is_written(shape):
    a = inputs(**shape)
    plain = results(a, impl="reference")
    with fresh_memory_is_nan():
        ours = results(a, impl="triton")
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES[2:]], ids=str)
def test_a_very_popular_chunk(dtype):
    a = inputs(B=1, R=421, H=2, J=1, D=8, K=1, N=40, block=2, start=1, dtype=dtype)
    a["chunk_ids"][:] = 0
    assert_as_exact_as_reference(a)


@pytest.mark.parametrize("name", LEAVES)
def test_one_gradient_alone(name):
    a = inputs()
    expected = results(a, impl="triton")[name]
    leaf = a[name].requires_grad_()
    (gradient,) = torch.autograd.grad(gca_attention(**a, impl="triton"), leaf, output_gradient(a))
    assert torch.equal(gradient, expected)


def test_the_output_is_the_same_without_gradients():
    a = inputs()
    expected = results(a, impl="triton")["out"]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(gca_attention(**a, impl="triton"), expected)
