"""Selection: exact, deterministic, streamed; noise only chooses."""

import pytest
import torch

from gca_lit.model import retrieval
from gca_lit.model.retrieval import Noise, bf16_parts, select, select_one


def data(B=2, Q=6, N=9, width=8, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, Q, width, generator=g, dtype=dtype), torch.randn(B, N, width, generator=g, dtype=dtype)


@pytest.fixture
def blocks_of(monkeypatch):
    """Landmarks are scored so many at a time, and made fp32 two at a time."""

    def shorten(at_once):
        monkeypatch.setattr(retrieval, "LANDMARKS_AT_ONCE", 2)
        monkeypatch.setattr(retrieval, "FEWEST_AT_ONCE", at_once)
        monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 1)

    return shorten


@pytest.mark.parametrize("at_once", [1, 2, 1000])
@pytest.mark.parametrize("parts", [(9,), (4, 5), (0, 9), (1, 0, 8)])
def test_equals_a_full_sort(blocks_of, at_once, parts):
    blocks_of(at_once)
    queries, keys = data()
    made = select(queries, keys.split(parts, 1), first=3, top_k=4)
    scores = queries.float() @ keys.float().transpose(1, 2)
    for b in range(2):
        for q in range(6):
            visible = scores[b, q, : 3 + q]
            order = visible.sort(descending=True, stable=True).indices[:4]
            assert made.ids[b, q, : len(order)].tolist() == order.tolist()
            assert (made.ids[b, q, len(order) :] == -1).all()
            exact = (keys[b, order] @ queries[b, q]).softmax(-1)
            torch.testing.assert_close(made.weights[b, q, : len(order)], exact)


def test_scores_held_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr(retrieval, "FEWEST_AT_ONCE", 2)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 100)
    sizes = []
    order = retrieval._candidates
    monkeypatch.setattr(
        retrieval, "_candidates", lambda scores, *rest: sizes.append(scores.shape) or order(scores, *rest)
    )
    queries, keys = data(B=2, Q=6, N=50)
    ids = select(queries, [keys], first=50, top_k=4).ids
    assert sizes and all(size.numel() <= 100 for size in sizes) and sum(size[-1] for size in sizes) == 50
    monkeypatch.undo()
    assert torch.equal(ids, select(queries, [keys], first=50, top_k=4).ids)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_exact_ties_go_to_the_lower_number(blocks_of, at_once):
    blocks_of(at_once)
    queries = torch.ones(1, 1, 4)
    for value in (1.0, 0.0, -1.0):
        keys = torch.full((1, 8, 4), value)
        keys[:, 2] = -0.0 if value == 0 else value
        assert select(queries, [keys], first=8, top_k=3).ids.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize("at_once", [13, 1000])
@pytest.mark.parametrize("values", [2, 5, 1000])
def test_looks_at_the_best_of_runs_first_and_stays_exact(monkeypatch, blocks_of, at_once, values):
    """Few different scores, so that ties lie across the runs' borders."""
    blocks_of(at_once)
    monkeypatch.setattr(retrieval, "RUN", 4)
    scores = torch.randint(values, (2, 5, 83), generator=torch.Generator().manual_seed(values)).float()
    eye = torch.eye(83).expand(2, -1, -1)
    made = select(scores, [eye], first=78, top_k=3)
    for b in range(2):
        for q in range(5):
            order = scores[b, q, : 78 + q].sort(descending=True, stable=True).indices[:3]
            assert made.ids[b, q].tolist() == order.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("visible", [0, 1, 3, 60, 197])
@torch.no_grad()
def test_one_landmark_selects_the_same_from_blocks_with_room(visible, dtype):
    queries, keys = data(Q=1, N=256, dtype=dtype)
    keys[:, 40:60] = keys[:, :20]  # ties
    keys[:, visible + 1 :] = torch.nan  # what the room holds
    made = select_one(queries, keys.split((128, 128), 1), torch.tensor([visible]), top_k=4)
    expected = select(queries, [keys[:, : visible + 1]], visible, top_k=4)
    assert torch.equal(made.ids, expected.ids)
    torch.testing.assert_close(made.weights, expected.weights)
    few = select_one(queries, [keys[:, :2]], torch.tensor([visible]).clamp(max=2), top_k=4)
    assert few.ids.shape == (2, 1, 4) and (few.ids[..., 2:] == -1).all()


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
def test_three_parts_of_a_query_are_all_of_it(size):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * size
    x[:3] = torch.tensor([0.0, size, -size])
    parts = bf16_parts(x)
    assert all(part.dtype == torch.bfloat16 for part in parts)
    assert torch.equal(sum(part.double() for part in parts), x.double())


def test_three_parts_of_the_smallest_numbers_are_nearly_all_of_them():
    x = torch.tensor([0.0, 2**-149, 2**-133, 1.7 * 2**-126, -1.1 * 2**-115])
    assert (sum(part.double() for part in bf16_parts(x)) - x.double()).abs().max() <= 2**-134


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 256, 768])
def test_scores_of_split_queries_are_as_exact_as_fp32(width):
    queries, keys = (x.cuda() for x in data(B=2, Q=33, N=1000, width=width, dtype=torch.float32))
    keys = keys.bfloat16()
    exact = queries.double() @ keys.double().transpose(1, 2)
    with retrieval._full_fp32(keys.device):
        plain = queries @ keys.float().transpose(1, 2)
        split = retrieval._scores(retrieval._asked(queries, keys), keys.split((300, 700), 1), 33)
        halves = retrieval._scores(retrieval._asked(queries.bfloat16(), keys), [keys], 33)
    assert (split - exact).abs().max() <= 2 * (plain - exact).abs().max()
    assert (split - exact).pow(2).mean() <= 4 * (plain - exact).pow(2).mean()
    rounded = queries.bfloat16().double() @ keys.double().transpose(1, 2)
    assert (halves - rounded).abs().max() <= width * 2**-26 * rounded.abs().max()  # sums of tensor cores are cut off


@pytest.mark.gpu
@pytest.mark.parametrize("Q", [1, 70])
def test_the_same_chunks_on_a_cuda_device(Q):
    queries, keys = data(B=1, Q=Q, N=5000, width=64, dtype=torch.float32)
    keys = keys.bfloat16()
    exact = queries.double() @ keys.double().transpose(1, 2)
    hidden = torch.arange(5000) >= torch.arange(4900, 4900 + Q)[:, None]
    expected = exact.masked_fill(hidden, -torch.inf).topk(8).indices
    made = select(queries.cuda(), [part.cuda() for part in keys.split((256, 744, 4000), 1)], 4900, 8)
    assert torch.equal(made.ids.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("recency", [None, torch.tensor([0.3])])
@pytest.mark.parametrize("keys_in", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("visible", [0, 3, 1000, 4097])
@torch.no_grad()
def test_one_landmark_selects_the_same_on_a_cuda_device(visible, keys_in, recency):
    queries, keys = (x.cuda() for x in data(Q=1, N=4352, width=64, dtype=torch.float32))
    recency = None if recency is None else recency.cuda()
    queries, keys = queries / 8, keys.to(keys_in)
    keys[:, visible + 1 :] = torch.nan
    made = select_one(queries, keys.split((256, 4096), 1), torch.tensor([visible]).cuda(), 8, recency)
    expected = select(queries, [keys[:, : visible + 1]], visible, 8, recency=recency)
    assert torch.equal(made.ids, expected.ids)
    torch.testing.assert_close(made.weights, expected.weights)


def test_nothing_visible_has_weight_and_gradient_zero():
    queries, keys = (x.requires_grad_() for x in data(Q=1))
    made = select(queries, [keys], first=0, top_k=4)
    assert (made.ids == -1).all() and (made.weights == 0).all()
    made.weights.sum().backward()
    assert queries.grad.isfinite().all() and keys.grad.isfinite().all()


@pytest.mark.parametrize("recency", [None, torch.tensor([0.7])])
@pytest.mark.parametrize("scale", [1.0, -1e-3, 1e4])
def test_weights_are_the_same_with_and_without_a_gradient(scale, recency):
    queries, keys = data(Q=7, N=9, dtype=torch.float32)
    queries = (scale * queries).requires_grad_()
    made = select(queries, [keys], first=0, top_k=4, recency=recency)
    with torch.no_grad():
        again = select(queries, [keys], first=0, top_k=4, recency=recency)
    assert torch.equal(made.ids, again.ids)
    torch.testing.assert_close(again.weights, made.weights.detach(), rtol=0, atol=1e-6 * max(1, abs(scale)))


def test_gradient_reaches_query_and_chosen_keys_only():
    queries, keys = (x.requires_grad_() for x in data(Q=1))
    made = select(queries, [keys], first=9, top_k=3)
    made.weights[..., 0].sum().backward()
    touched = set(keys.grad.abs().sum(-1)[0].nonzero().flatten().tolist())
    assert touched == set(made.ids[0, 0].tolist()) and queries.grad.abs().sum() > 0


def test_noise_is_a_pure_function_and_does_not_enter_the_weights():
    queries, keys = data(N=200, Q=1)
    noise = Noise(torch.tensor([5, 6]), group=0)
    first, again = (select(queries, [keys], 200, 8, noise) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, select(queries, [keys], 200, 8).ids)
    assert not torch.equal(first.ids, select(queries, [keys], 200, 8, Noise(noise.rows, group=1)).ids)
    exact = torch.stack([(keys[b, first.ids[b, 0]] @ queries[b, 0]).softmax(-1) for b in range(2)])
    torch.testing.assert_close(first.weights[:, 0], exact)


def test_noise_does_not_depend_on_blocks(blocks_of):
    queries, keys = data(N=50)
    noise = Noise(torch.tensor([5, 6]), group=3)
    whole = select(queries, [keys], 50, 8, noise).ids
    blocks_of(7)
    assert torch.equal(select(queries, [keys], 50, 8, noise).ids, whole)


def test_noise_is_gumbel():
    drawn = Noise(torch.arange(40), group=0)(torch.arange(50), torch.arange(50)).double()
    assert drawn.mean() == pytest.approx(0.5772, abs=0.02)
    assert drawn.var() == pytest.approx(1.6449, abs=0.05)
    assert drawn.unique().numel() > 0.99 * drawn.numel()


def test_documents_hide_the_chunks_of_others():
    queries, keys = data(Q=2, N=6)
    documents = (torch.tensor([[1, 1], [2, 3]]), torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 3, 3]]))
    ids = select(queries, [keys], 5, 6, documents=documents).ids
    assert [sorted(i for i in row if i >= 0) for row in ids[0].tolist()] == [[2, 3, 4], [2, 3, 4]]
    assert [sorted(i for i in row if i >= 0) for row in ids[1].tolist()] == [[2, 3], [4, 5]]
