"""What an implementation cannot do is refused by name, and `auto` chooses what can run."""

import os
import subprocess
import sys

import pytest
import torch

from gca_kernels import gca_attention, gca_index
from tests.kernels.cases import DEVICE, assert_same, inputs, results

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="about the interpreter")
both = pytest.mark.parametrize("impl", ["reference", "triton"])


@on_cpu
def test_the_interpreter_refuses_bf16():
    with pytest.raises(ValueError, match=r"(?i)(bf16|bfloat16).*interpreter|interpreter.*(bf16|bfloat16)"):
        gca_attention(**inputs(dtype=torch.bfloat16), impl="triton")


def test_triton_refuses_fp64():
    with pytest.raises(ValueError, match=r"float64|fp64"):
        gca_attention(**inputs(dtype=torch.float64), impl="triton")


def test_triton_refuses_a_second_derivative():
    a = inputs()
    a["q"].requires_grad_(), a["chunk_k"].requires_grad_()
    out = gca_attention(**a, impl="triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), a["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"impl.*second derivative"):
        torch.autograd.grad(gradient.sum(), a["chunk_k"])


@pytest.mark.parametrize("name", ["chunk_k", "chunk_v"])
def test_triton_refuses_rows_too_far_apart(name):
    a = inputs(B=1, R=1, H=1, J=1, N=1, C=3, D=8, dtype=torch.float16)
    a[name] = torch.empty_strided(a[name].shape, (8, 8, 2**30, 8, 1), dtype=torch.float16, device=DEVICE)
    with pytest.raises(ValueError, match=rf"{name} has rows"):
        gca_attention(**a, impl="triton")


def test_triton_refuses_query_chunks_of_too_many_elements():
    a = inputs(B=1, R=2, H=1, J=1, D=8, block=2)
    rows = 2**28 + 1
    a |= {"q": a["q"][:, :1].expand(1, rows, 1, 8), "block": rows}
    with pytest.raises(ValueError, match="block takes"):
        gca_attention(**a, impl="triton")


def test_triton_refuses_more_programs_than_a_grid_holds():
    with pytest.raises(ValueError, match="batch of 65536"):
        gca_attention(**inputs(B=65_536, R=1, H=1, J=1, D=8, N=1, C=1, K=1), impl="triton")


def test_an_index_needs_whole_numbers():
    ids = inputs()["chunk_ids"]
    for wrong, chunks, message in ((ids.float(), 5, "chunk_ids"), (ids[0], 5, "chunk_ids"), (ids, -1, "chunks")):
        with pytest.raises(ValueError, match=message):
            gca_index(wrong, chunks)


@pytest.mark.parametrize("shape", [{"C": 257}, {"D": 257}], ids=str)
def test_triton_names_its_limits(shape):
    with pytest.raises(ValueError, match=r"chunk_k.*256"):
        gca_attention(**inputs(B=1, R=1, H=1, J=1, **shape), impl="triton")


SCRIPT = """
import torch
from gca_kernels import gca_attention
x = torch.zeros(1, 1, 1, 8)
table, ids = torch.zeros(1, 1, 1, 1, 8), torch.zeros(1, 1, 1, dtype=torch.long)
assert gca_attention(x, table, table, ids, torch.ones(1, 1, 1), block=1).shape == x.shape
try:
    gca_attention(x, table, table, ids, torch.ones(1, 1, 1), block=1, impl="triton")
except RuntimeError as error:
    print("refused:", error)
"""


def test_an_explicit_triton_never_falls_back():
    """A fresh process, because whether kernels are interpreted is settled when Triton is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("refused:") and "impl" in printed and "TRITON_INTERPRET" in printed


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype, impl):
    a = inputs()
    with torch.autocast(DEVICE, dtype):
        under = gca_attention(**a, impl=impl)
    assert torch.equal(under, gca_attention(**a, impl=impl))


def test_auto_takes_what_the_device_has():
    a = inputs()
    assert_same(results(a, impl="auto"), results(a, impl="reference" if DEVICE == "cpu" else "triton"))
    wide = inputs(dtype=torch.float64)
    assert_same(results(wide, impl="auto"), results(wide, impl="reference"))


@both
@pytest.mark.parametrize("name", ["chunk_k", "chunk_v", "chunk_ids", "chunk_weights"])
def test_tensors_on_two_devices(name, impl):
    a = inputs()
    with pytest.raises(ValueError, match=name):
        gca_attention(**(a | {name: a[name].to("meta")}), impl=impl)


@both
def test_ids_are_whole_numbers(impl):
    a = inputs()
    with pytest.raises(ValueError, match="chunk_ids"):
        gca_attention(**(a | {"chunk_ids": a["chunk_ids"].float()}), impl=impl)


@both
@pytest.mark.parametrize("wrong", [5, -2])
def test_check_ids_finds_ids_outside_the_table(wrong, impl):
    a = inputs(N=5)
    gca_attention(**a, impl=impl, check_ids=True)
    a["chunk_ids"][1, 1, 0] = wrong
    with pytest.raises(ValueError, match="chunk_ids"):
        gca_attention(**a, impl=impl, check_ids=True)


def test_an_index_of_other_ids_is_refused():
    a = inputs(R=11, K=2)
    ids = a["chunk_ids"]
    others = ids[:, :-1], ids[..., :1], ids[:1], ids.transpose(1, 2)
    for index in (*(gca_index(other, 5) for other in others), gca_index(ids, 6)):
        with pytest.raises(ValueError, match="index"):
            results(a, index=index, impl="triton")
