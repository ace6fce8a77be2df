"""The Triton implementation and memory: strided views, far elements, and nothing left unwritten or in doubt."""

import pytest
import torch

from tests.kernels.cases import LEAVES, assert_same, inputs, output_gradient, results

pytest.importorskip("triton")


def restride(x, order):
    """The same values, laid out in memory as x.permute(order)."""
    back = [order.index(i) for i in range(x.ndim)]
    return x.permute(order).contiguous().permute(back)


VIEWS = {
    "heads first": {"q": lambda x: restride(x, (0, 2, 1, 3)), "chunk_k": lambda x: restride(x, (0, 3, 1, 2, 4))},
    "one of three": {"q": lambda x: torch.stack([x, x, x], 2).unbind(2)[1]}
    | {name: lambda x: torch.stack([x, x], -3).unbind(-3)[0] for name in ("chunk_k", "chunk_v")},
    "part of a wider row": {
        "q": lambda x: torch.cat([x.flatten(2)] * 2, -1)[..., : x[0, 0].numel()].unflatten(-1, x.shape[2:]),
        "chunk_v": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    },
    "part of a larger table": {
        name: lambda x: torch.cat([x, x], 1)[:, : x.shape[1]] for name in ("chunk_k", "chunk_v")
    },
    "width not last": {name: lambda x: restride(x, (0, 1, x.ndim - 1, *range(2, x.ndim - 1))) for name in LEAVES[:3]},
    "weights and ids": {
        "chunk_ids": lambda x: restride(x, (2, 0, 1)),
        "chunk_weights": lambda x: restride(x, (2, 1, 0)),
    },
}


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS.keys())
def test_strided_views(views):
    a = inputs(N=4)
    strided = a | {name: view(a[name]) for name, view in views.items()}
    assert not all(strided[name].is_contiguous() for name in views)
    contiguous = a | {name: strided[name].contiguous() for name in views}
    assert_same(results(strided, impl="triton"), results(contiguous, impl="triton"))


def test_a_table_shared_by_the_batch():
    a = inputs()
    shared = {name: a[name][:1].expand_as(a[name]) for name in ("chunk_k", "chunk_v")}
    copied = {name: x.contiguous() for name, x in shared.items()}
    assert_same(results(a | shared, impl="triton"), results(a | copied, impl="triton"))


@pytest.mark.parametrize(
    "grad",
    [
        lambda g: torch.ones_like(g[:1, :1, :1, :1]).expand_as(g),
        lambda g: restride(g, (0, 2, 3, 1)),
        lambda g: torch.stack([g, g], -1)[..., 0],
    ],
    ids=["of a sum", "of a transpose", "every other element"],
)
def test_strided_gradients_of_the_output(grad):
    a = inputs()
    grad = grad(output_gradient(a))
    assert not grad.is_contiguous()
    assert_same(results(a, grad, impl="triton"), results(a, grad.contiguous(), impl="triton"))


@pytest.fixture
def poison():
    """Memory that nobody wrote holds NaN and the largest integers, and nondeterministic operations raise."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


POISONED = [
    {"start": 3, "N": 9},
    {"R": 1, "C": 13, "H": 6, "D": 40},
    {"R": 5, "Q": 4, "N": 0},
    {"Q": 4, "block": 3, "start": 2},
    *(
        {"R": rows, "block": rows, "C": C, "D": 128, "H": 1, "B": 1, "K": 1}
        for rows, C in ((65, 100), (70, 40), (33, 9))
    ),
]


@pytest.mark.parametrize("shape", POISONED, ids=str)
def test_runs_are_bit_equal_and_nothing_is_left_unwritten(shape, poison):
    a = inputs(**({"H": 2, "J": 1} | shape))
    poisoned = results(a, impl="triton", softmax_offset=1.0)
    torch.use_deterministic_algorithms(False)
    assert_same(results(a, impl="triton", softmax_offset=1.0), poisoned)


def test_runs_are_bit_equal_where_a_popular_chunk_is_summed_in_parts(poison):
    a = inputs(B=1, R=50, block=1, H=1, J=1, D=8, N=20, K=1)
    a["chunk_ids"][:, :40] = 0
    poisoned = results(a, impl="triton")
    torch.use_deterministic_algorithms(False)
    assert_same(results(a, impl="triton"), poisoned)


FAR = [
    ("q", 0, {"B": 3}),
    ("q", 1, {"R": 3}),
    ("q", 2, {"H": 3}),
    ("q", 2, {"H": 3, "J": 3}),
    *((name, 0, {"B": 3}) for name in ("chunk_k", "chunk_v")),
    *((name, 1, {"N": 3}) for name in ("chunk_k", "chunk_v")),
    *((name, 3, {"H": 3, "J": 3}) for name in ("chunk_k", "chunk_v")),
]


@pytest.mark.parametrize(("name", "dim", "three"), FAR, ids=str)
def test_elements_beyond_2_to_31(name, dim, three):
    """Index 2 of `dim` lies past 2^31 elements, though the stride does not; the gap takes up addresses, but hardly any
    memory on a CPU."""
    a = inputs(**({"B": 1, "R": 1, "H": 1, "J": 1, "N": 1} | three), block=1, C=2, D=8, dtype=torch.float16)
    a["chunk_ids"][..., :2] = torch.tensor([0, a["chunk_k"].shape[1] - 1])
    strides = list(a[name].stride())
    strides[dim] = 2**30 + 8
    far = torch.empty_strided(a[name].shape, strides, dtype=torch.float16, device=a[name].device).copy_(a[name])
    assert_same(results(a | {name: far}, impl="triton"), results(a, impl="triton"))
