"""The reference of grouped cross attention against a definition written with loops."""

import math

import pytest
import torch

from gca_kernels import gca_attention

TABLES = ("q", "chunk_k", "chunk_v")


def by_loops(q, k, v, ids, weights, block, start, scale, offset):
    B, R, H, _ = q.shape
    group = H // k.shape[3]
    out = torch.zeros_like(q)
    for b in range(B):
        for r in range(R):
            chunk = (start + r) // block
            for slot, entry in enumerate(ids[b, chunk].tolist()):
                if entry < 0:
                    continue
                for h in range(H):
                    e = (k[b, entry, :, h // group] @ q[b, r, h] * scale).exp()
                    p = e / (e.sum() + offset)
                    out[b, r, h] += weights[b, chunk, slot] * (p @ v[b, entry, :, h // group])
    return out


def inputs(B=2, R=11, H=4, J=2, D=6, N=5, C=3, Q=4, K=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(B, R, H, D, generator=g, dtype=torch.float64)
    k = torch.randn(B, N, C, J, D, generator=g, dtype=torch.float64)
    v = torch.randn(B, N, C, J, D, generator=g, dtype=torch.float64)
    ids = torch.randint(-1, N, (B, Q, K), generator=g)
    weights = torch.rand(B, Q, K, generator=g, dtype=torch.float64)
    return q, k, v, ids, weights


@pytest.mark.parametrize("offset", [0.0, 1.0, 0.5])
@pytest.mark.parametrize(("block", "start", "rows"), [(4, 0, 11), (4, 3, 11), (4, 1, 1), (11, 0, 11), (3, 2, 10)])
def test_equals_the_loops(block, start, rows, offset):
    q, k, v, ids, weights = inputs(R=rows)
    out = gca_attention(q, k, v, ids, weights, block=block, start=start, scale=0.7, softmax_offset=offset)
    expected = by_loops(q, k, v, ids, weights, block, start, 0.7, offset)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_offset_survives_very_low_and_very_high_scores():
    q, k, v, ids, weights = inputs()
    for size in (1e-3, 400.0):
        out = gca_attention(q * size, k, v, ids, weights, block=4, softmax_offset=1.0)
        assert out.isfinite().all()
    low = gca_attention(q * 0, k, torch.ones_like(v), ids.clamp(min=0), weights, block=4, softmax_offset=1.0)
    share = k.shape[2] / (k.shape[2] + 1)
    expected = weights.sum(-1).repeat_interleave(4, 1)[:, :11, None, None] * share
    torch.testing.assert_close(low, expected.expand_as(low))


def test_repeated_ids_add_up():
    q, k, v, ids, weights = inputs(K=2)
    ids = torch.full_like(ids, 1)
    twice = gca_attention(q, k, v, ids, weights, block=4)
    once = gca_attention(q, k, v, ids[..., :1], weights.sum(-1, keepdim=True), block=4)
    torch.testing.assert_close(twice, once)


def test_empty_slots_and_an_empty_table_read_nothing():
    q, k, v, ids, weights = inputs()
    nothing = torch.full_like(ids, -1)
    assert (gca_attention(q, k, v, nothing, weights, block=4) == 0).all()
    assert (gca_attention(q, k[:, :0], v[:, :0], nothing, weights, block=4) == 0).all()
    weights = weights.masked_fill(ids < 0, float("nan"))
    assert gca_attention(q, k, v, ids, weights, block=4).isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradients(offset):
    q, k, v, ids, weights = inputs(B=1, R=5, H=2, J=1, D=4, N=3, Q=3, K=2)
    leaves = [x.requires_grad_() for x in (q, k, v, weights)]

    def op(q, k, v, weights):
        return gca_attention(q, k, v, ids, weights, block=2, start=1, softmax_offset=offset)

    assert torch.autograd.gradcheck(op, leaves)


def test_an_id_outside_the_table_reads_nothing():
    q, k, v, ids, weights = inputs()
    outside = torch.where(torch.arange(3) == 1, torch.tensor([5, -2, 2**40, 6])[:, None], ids)
    out = gca_attention(q, k, v, outside, weights, block=4)
    assert torch.equal(out, gca_attention(q, k, v, ids.masked_fill(torch.arange(3) == 1, -1), weights, block=4))


def test_a_block_far_larger_than_the_rows_takes_no_memory():
    q, k, v, ids, weights = inputs()
    out = gca_attention(q, k, v, ids, weights, block=2**50, start=2**49)
    torch.testing.assert_close(out, gca_attention(q, k, v, ids, weights, block=11))


def test_low_precision_accumulates_in_fp32():
    q, k, v, ids, weights = inputs(C=64, D=32)
    expected = gca_attention(q, k, v, ids, weights, block=4)
    out = gca_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), ids, weights.float(), block=4)
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": lambda a: a["q"][0]}, "q must be"),
        ({"chunk_v": lambda a: a["chunk_v"][:, :1]}, "chunk_k and chunk_v must both be"),
        ({"chunk_ids": lambda a: a["chunk_ids"][..., :1]}, "chunk_ids and chunk_weights must both be"),
        ({"q": lambda a: a["q"][:1]}, "differ in batch"),
        ({"q": lambda a: a["q"][..., :2]}, "head width"),
        ({"q": lambda a: a["q"][:, :, :3]}, "not a multiple"),
        ({"q": lambda a: a["q"].float()}, "dtype"),
        ({"start": lambda a: 4}, "start must lie"),
        ({"block": lambda a: 2}, "chunk_ids serve"),
        ({"softmax_offset": lambda a: -1.0}, "softmax_offset"),
        ({"softmax_offset": lambda a: math.inf}, "softmax_offset"),
        ({"scale": lambda a: 0.0}, "scale must be"),
        ({"scale": lambda a: math.nan}, "scale must be"),
        ({"scale": lambda a: 1e-50}, "scale must be"),
        ({"impl": lambda a: "cuda"}, "impl must be"),
        ({"q": lambda a: a["q"].to_sparse()}, "q must be dense"),
        ({"q": lambda a: a["q"][:, :, :0]}, "q must have heads"),
        ({"q": lambda a: a["q"][..., :0], "chunk_k": lambda a: a["chunk_k"][..., :0]}, "chunk_k and chunk_v must both"),
        ({"chunk_weights": lambda a: a["chunk_weights"].to(torch.float8_e5m2)}, "chunk_weights must be"),
        ({name: lambda a, name=name: a[name].to(torch.float8_e5m2) for name in TABLES}, "q, chunk_k and chunk_v must"),
        ({name: lambda a, name=name: a[name].to(torch.complex64) for name in TABLES}, "q, chunk_k and chunk_v must"),
    ],
)
def test_errors_name_the_argument(change, message):
    q, k, v, ids, weights = inputs()
    arguments = {"q": q, "chunk_k": k, "chunk_v": v, "chunk_ids": ids, "chunk_weights": weights, "block": 4}
    arguments |= {name: make(arguments) for name, make in change.items()}
    with pytest.raises(ValueError, match=message):
        gca_attention(**arguments)


@pytest.mark.parametrize(
    "change",
    [{name: [1.0]} for name in ("q", "chunk_k", "chunk_v", "chunk_ids", "chunk_weights")]
    + [{"block": 4.0}, {"start": None}, {"scale": torch.ones(())}, {"softmax_offset": "1"}, {"index": (1, 2, 3)}],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_type_is_named(change):
    q, k, v, ids, weights = inputs()
    arguments = {"q": q, "chunk_k": k, "chunk_v": v, "chunk_ids": ids, "chunk_weights": weights, "block": 4}
    with pytest.raises(TypeError, match=f"{next(iter(change))} must be"):
        gca_attention(**(arguments | change))
