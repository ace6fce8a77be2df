"""The inverse index of chunk ids, seen through the gradients that it makes."""

import pytest
import torch

from gca_kernels import gca_attention, gca_index
from tests.kernels.cases import DEVICE, assert_as_exact_as_reference, assert_same, inputs, output_gradient, results

pytest.importorskip("triton")
SMALL = {"B": 2, "H": 1, "J": 1, "D": 8, "C": 4, "K": 2, "block": 2}


def ids(kind, B, Q, K, N):
    g = torch.Generator().manual_seed(3)
    drawn = torch.randint(-1, N, (B, Q, K), generator=g)
    match kind:
        case "sparse":
            drawn = drawn.masked_fill(torch.rand(drawn.shape, generator=g) < 0.9, -1)
        case "repeated":
            drawn = drawn[..., :1].expand_as(drawn).contiguous()
        case "one chunk is hot":
            drawn[:, 3:] = 2
        case "the first and the last are hot":
            drawn[..., 0], drawn[..., 1] = 0, N - 1
        case "empty":
            drawn.fill_(-1)
        case "one batch empty":
            drawn[0] = -1
    return drawn.to(DEVICE)


KINDS = [
    "random",
    "sparse",
    "repeated",
    "one chunk is hot",
    "the first and the last are hot",
    "empty",
    "one batch empty",
]


@pytest.mark.parametrize("Q", [1, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_ids(kind, Q):
    a = inputs(R=2 * Q, N=20, **SMALL)
    a["chunk_ids"] = ids(kind, 2, Q, 2, 20)
    assert_as_exact_as_reference(a, index=gca_index(a["chunk_ids"], 20))


@pytest.mark.parametrize(("before", "run"), [(0, 16), (0, 17), (3, 16), (13, 32), (16, 16), (5, 40)])
def test_runs_about_as_long_as_a_piece(before, run):
    """Runs are cut at multiples of a length that is at least 16: `run` slots in a row choose one chunk."""
    a = inputs(B=1, R=before + run, H=1, J=1, D=8, N=24, C=4, K=1, block=1)
    a["chunk_ids"][:] = 1
    a["chunk_ids"][:, :before] = 0
    assert_as_exact_as_reference(a)


@pytest.mark.parametrize("Q", [1, 20, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_makes_what_plain_torch_makes(kind, Q):
    """The ids of a GPU are sorted by a kernel, those of a CPU by torch."""
    assert_same_indices(ids(kind, 2, Q, 2, 20), 20)


def test_both_make_an_index_of_an_empty_table():
    assert_same_indices(ids("empty", 2, 7, 2, 1), 0)


def assert_same_indices(chunk_ids, chunks):
    from gca_kernels.gca.triton.index import gca_index as by_kernel

    for one, other in zip(by_kernel(chunk_ids, chunks), gca_index(chunk_ids.cpu(), chunks), strict=True):
        assert torch.equal(one.cpu(), other)


def test_an_index_made_inside_is_the_same():
    a = inputs(R=40, N=20, **SMALL)
    a["chunk_ids"] = ids("one chunk is hot", 2, 20, 2, 20)
    assert_same(results(a, index=gca_index(a["chunk_ids"], 20), impl="triton"), results(a, impl="triton"))


def test_more_chunks_than_slots():
    a = inputs(R=4, N=70, **SMALL)
    assert_as_exact_as_reference(a, index=gca_index(a["chunk_ids"], 70))


def test_one_index_serves_several_calls():
    a = inputs(R=10, **SMALL)
    index = gca_index(a["chunk_ids"], 5)
    for seed in (7, 8):
        other = a | {name: inputs(R=10, seed=seed, **SMALL)[name] for name in ("q", "chunk_k", "chunk_weights")}
        assert_same(results(other, index=index, impl="triton"), results(other, impl="triton"))


def test_two_layers_share_an_index_in_one_graph():
    a = inputs(R=10, **SMALL)
    q, table = a["q"].requires_grad_(), a["chunk_k"].requires_grad_()

    def layers(impl, **settings):
        once = gca_attention(**a, impl=impl, **settings)
        twice = gca_attention(**(a | {"q": once}), impl=impl, **settings)
        return torch.autograd.grad(twice, [q, table], output_gradient(a))

    shared = layers("triton", index=gca_index(a["chunk_ids"], 5))
    for x, expected in zip(shared, layers("reference"), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_int32_ids_make_the_same_gradients():
    a = inputs(R=10, **SMALL)
    narrow = a | {"chunk_ids": a["chunk_ids"].int()}
    expected = results(a, impl="triton")
    assert_same(results(narrow, impl="triton"), expected)
    assert_same(results(narrow, index=gca_index(narrow["chunk_ids"], 5), impl="triton"), expected)


def test_strided_ids_make_the_same_index():
    a = inputs(R=10, **SMALL)
    strided = a["chunk_ids"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert_same(results(a, index=gca_index(strided, 5), impl="triton"), results(a, impl="triton"))


def test_the_reference_ignores_an_index():
    a = inputs(R=10, **SMALL)
    index = gca_index(a["chunk_ids"], 5)
    assert_same(results(a, index=index, impl="reference"), results(a, impl="reference"))
