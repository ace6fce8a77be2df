"""Grouped cross attention at sizes for a GPU: those of a real layer, and tensors of more than 2^31 elements."""

import pytest
import torch

from gca_kernels import gca_attention
from tests.kernels.cases import LEAVES, assert_as_exact_as_reference, error, floor, inputs, output_gradient, results

pytestmark = pytest.mark.gpu


@pytest.fixture
def large_memory():
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("J", [12, 4, 1])
def test_a_layer(J, dtype, offset):
    a = inputs(B=2, R=1024, H=12, J=J, D=64, N=16, C=63, K=8, block=64, dtype=dtype)
    assert_as_exact_as_reference(a, softmax_offset=offset)


@pytest.mark.parametrize(("C", "D"), [(64, 128), (100, 96), (256, 256), (13, 40)])
def test_other_sizes(C, D):
    a = inputs(B=2, R=300, H=8, J=2, D=D, N=9, C=C, K=4, block=65, start=31, dtype=torch.bfloat16)
    assert_as_exact_as_reference(a, softmax_offset=1.0)


@pytest.mark.parametrize(("C", "D"), [(63, 64), (128, 128), (200, 96), (256, 64), (256, 128), (256, 256)])
def test_fp32_chunks_of_one_and_of_several_pieces(C, D):
    a = inputs(B=2, R=300, H=8, J=2, D=D, N=9, C=C, K=4, block=65, start=31)
    assert_as_exact_as_reference(a, softmax_offset=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_of_decoding(dtype):
    a = inputs(B=4, R=1, H=12, J=4, D=64, N=500, C=64, K=8, block=65, start=40, dtype=dtype)
    assert_as_exact_as_reference(a)


def test_a_chunk_that_all_select():
    a = inputs(B=1, R=20_000, H=4, J=4, D=64, N=8, C=64, K=2, block=4, dtype=torch.bfloat16)
    a["chunk_ids"][..., 0] = 0
    assert_as_exact_as_reference(a)


def assert_gradients(ours, small, **settings):
    """`ours` holds the results of the same few chunks and rows as `small`, cut out of something large."""
    exact = results(small, dtype=torch.float64, impl="reference", **settings)
    plain = results(small, impl="reference", **settings)
    for name in ours:
        assert error(ours[name], exact[name]) <= 2 * error(plain[name], exact[name]) + floor(small["q"].dtype), name


@pytest.mark.parametrize(("B", "N", "first"), [(1, 33_000, 32_996), (3, 16_400, 0)], ids=["by chunks", "by batch"])
def test_a_table_of_more_than_2_to_31_elements(B, N, first, large_memory):
    """Only the last sequence of the batch selects, 4 chunks from `first` on: all of them lie past 2^31 elements."""
    C, J, D = 64, 8, 128
    assert ((B - 1) * N + first) * C * J * D > 2**31
    small = inputs(B=1, R=130, H=8, J=J, D=D, N=4, C=C, block=64, dtype=torch.bfloat16)
    chunks = slice(first, first + 4)
    q, ids, weights = (
        torch.cat([torch.full_like(x, nothing)] * (B - 1) + [x])
        for x, nothing in ((small["q"], 1), (small["chunk_ids"], -1), (small["chunk_weights"], 1))
    )
    large = small | {"q": q, "chunk_ids": torch.where(ids >= 0, ids + first, ids), "chunk_weights": weights}
    for name in ("chunk_k", "chunk_v"):
        large[name] = torch.zeros(B, N, C, J, D, dtype=torch.bfloat16, device="cuda")
        large[name][-1, chunks] = small[name][0]
    grad = torch.cat([torch.ones_like(small["q"])] * (B - 1) + [output_gradient(small)])
    ours = results(large, grad, impl="triton")
    for name in ("chunk_k", "chunk_v"):
        selected = ours[name][-1:, chunks].clone()
        ours[name][-1:, chunks] = 0
        assert not ours[name].any()
        ours[name] = selected
    assert_gradients(ours | {name: ours[name][-1:] for name in ("out", "q", "chunk_weights")}, small)


def test_queries_of_more_than_2_to_31_elements(large_memory):
    """Only the last query chunk selects."""
    H, D, block, rows = 64, 128, 64, 262_400
    assert (rows - block) * H * D > 2**31
    small = inputs(B=1, R=block, H=H, J=8, D=D, C=16, block=block, dtype=torch.bfloat16)
    large = small | {"q": torch.ones(1, rows, H, D, dtype=torch.bfloat16, device="cuda")}
    large["q"][:, -block:] = small["q"]
    for name, nothing in (("chunk_ids", -1), ("chunk_weights", 1)):
        large[name] = torch.full_like(small[name], nothing).repeat(1, rows // block, 1)
        large[name][:, -1:] = small[name]
    leaves = {name: large[name].detach().requires_grad_() for name in LEAVES}
    out = gca_attention(**(large | leaves), impl="triton")
    grad = torch.ones_like(out)
    grad[:, -block:] = output_gradient(small)
    gradients = dict(zip(LEAVES, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))
    for x in (out, gradients["q"]):
        assert not x[:, :-block].any()
    ours = gradients | {"out": out[:, -block:], "q": gradients["q"][:, -block:]}
    assert_gradients(ours | {"chunk_weights": gradients["chunk_weights"][:, -1:]}, small)
