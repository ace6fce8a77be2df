"""The Triton operations as torch sees them: schema, fake tensors, autograd, torch.compile and checkpointing."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gca_kernels import gca_attention, gca_index
from tests.kernels.cases import LEAVES, assert_same, inputs, output_gradient, results

pytest.importorskip("triton")
SMALL = {"B": 1, "R": 5, "H": 2, "J": 1, "D": 8, "N": 3, "C": 4, "K": 2, "block": 2, "start": 1}


@pytest.fixture
def poison():
    """Memory that nobody wrote holds NaN, so that an output left in part unwritten differs from itself."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Recorder(TorchDispatchMode):
    """Collects the calls of our own operations, the arguments of the differentiable one as leaves of a new graph."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "gca_kernels":
            differentiable = op.name() == "gca_kernels::forward"
            self.calls[op.name()] = (
                op,
                *(
                    x.detach().clone().requires_grad_(differentiable and x.is_floating_point())
                    if torch.is_tensor(x)
                    else x
                    for x in args
                ),
            )
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{}, {"N": 0}, {"Q": 5}, {"block": 65, "R": 65, "start": 0, "C": 65, "D": 128}], ids=str
)
def test_operations_are_registered_well(settings, poison):
    a = inputs(**(SMALL | settings))
    with Recorder() as recorder:
        results(a, impl="triton", softmax_offset=1.0)
    assert {"gca_kernels::forward", "gca_kernels::backward"} <= recorder.calls.keys()
    for op, *arguments in recorder.calls.values():
        torch.library.opcheck(op, arguments)


def leaves_of(a):
    return [a[name].detach().requires_grad_() for name in LEAVES]


def attend(q, k, v, weights, ids, index=None, block=2):
    return gca_attention(q.sin(), k, v, ids, weights, block=block, start=1, impl="triton", index=index).cos()


@pytest.mark.parametrize("block", [2, 16])
@pytest.mark.parametrize("shared", [False, True], ids=["index made inside", "index given"])
def test_compiles_whole(shared, block):
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for rows, chunks in ((5, 3), (7, 4), (3, 6)):  # the second is traced for any size, the third runs it
        a = inputs(**(SMALL | {"R": rows, "N": chunks, "block": block}))
        index = gca_index(a["chunk_ids"], chunks) if shared else None
        by = {}
        for name, function in (("eager", attend), ("compiled", compiled)):
            leaves = leaves_of(a)
            out = function(*leaves, a["chunk_ids"], index, block)
            by[name] = dict(enumerate([out, *torch.autograd.grad(out, leaves, output_gradient(a))]))
        assert_same(by["compiled"], by["eager"])


def test_compiles_without_gradients():
    a = inputs(**SMALL)
    arguments = [a[name] for name in LEAVES] + [a["chunk_ids"]]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(*arguments), attend(*arguments))


def test_the_index_compiles_whole():
    compiled = torch.compile(gca_index, fullgraph=True, backend="aot_eager")
    for chunks, queries in ((3, 4), (5, 7), (2, 30)):
        ids = inputs(N=chunks, Q=queries)["chunk_ids"]
        for one, other in zip(compiled(ids, chunks), gca_index(ids, chunks), strict=True):
            assert torch.equal(one, other)


def test_activation_checkpointing_changes_nothing():
    a = inputs(**SMALL)
    gradients = []
    for call in (attend, lambda *x: checkpoint(attend, *x, use_reentrant=False)):
        leaves = leaves_of(a)
        gradients.append(
            dict(enumerate(torch.autograd.grad(call(*leaves, a["chunk_ids"]), leaves, output_gradient(a))))
        )
    assert_same(*gradients)


def test_vmap_is_that_of_the_reference():
    a = inputs(**SMALL)
    several = [
        torch.stack([a[name], a[name].flip(0, 1)]) for name in ("q", "chunk_k", "chunk_v", "chunk_ids", "chunk_weights")
    ]
    found, wanted = (
        torch.vmap(lambda *x, impl=impl: gca_attention(*x, block=2, start=1, impl=impl))(*several)
        for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
