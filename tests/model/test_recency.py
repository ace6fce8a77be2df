"""Selection under a slope: a chunk's score falls with the logarithm of its distance."""

import pytest
import torch

from gca_lit.model import retrieval
from gca_lit.model.retrieval import Noise, select


def data(B=2, Q=6, N=90, width=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(N)
    return torch.randn(B, Q, width, generator=g, dtype=dtype), torch.randn(B, N, width, generator=g, dtype=dtype)


def dense(queries, keys, first, slope):
    """All scores [B, Q, N], -inf where a chunk cannot be selected."""
    distance = torch.arange(first, first + queries.shape[1])[:, None] - torch.arange(keys.shape[1])
    scores = queries @ keys.transpose(1, 2) - slope * distance.clamp(min=1).to(slope.dtype).log2()
    return scores.masked_fill(distance < 1, -torch.inf)


def best(scores, top_k):
    """The chosen, lower numbers first where scores are the same, and -1 in slots that stay empty."""
    found = scores.sort(dim=-1, descending=True, stable=True)
    return found.indices.masked_fill(found.values == -torch.inf, -1)[..., :top_k]


@pytest.mark.parametrize("slope", [0.7, -0.4, 50.0])
@pytest.mark.parametrize("parts", [(90,), (40, 50), (0, 1, 89)])
@pytest.mark.parametrize("at_once", [7, 64, 1000])
def test_equals_a_full_sort(monkeypatch, at_once, parts, slope):
    monkeypatch.setattr(retrieval, "FEWEST_AT_ONCE", at_once)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 1)
    (queries, keys), slope = data(), torch.tensor([slope], dtype=torch.float64)
    for first in (0, 2, 85):
        scores = dense(queries, keys, first, slope)
        made = select(queries, keys.split(parts, 1), first, 4, recency=slope)
        assert torch.equal(made.ids, best(scores, 4))
        chosen = scores.gather(2, made.ids.clamp(min=0)).masked_fill(made.ids < 0, -torch.inf)
        torch.testing.assert_close(made.weights, chosen.softmax(-1).nan_to_num(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 1e-5, 2.0])
def test_five_thousand_landmarks_in_several_blocks(monkeypatch, slope):
    """Whole scores of a few values: without a slope most are ties; under a small one many, where distances round."""
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 1)
    g, slope = torch.Generator().manual_seed(0), torch.tensor([slope])
    keys = torch.randint(-9, 10, (2, 5000, 1), generator=g).float()
    queries = torch.randint(-9, 10, (2, 40, 1), generator=g).float()
    for first in (4960, 3000):
        made = select(queries, keys.split((700, 4300), 1), first, 32, recency=slope)
        assert torch.equal(made.ids, best(dense(queries, keys, first, slope), 32))


def test_the_nearest_pays_nothing_and_a_doubling_costs_the_slope():
    """Chunks 15, 14, 12, 8 and 0 have distances 1, 2, 4, 8 and 16 from the landmark of chunk 16: with scores 0, 3, 6, 9
    and 12 all of them are equal, and go by their numbers."""
    keys = torch.full((1, 16, 1), -1.0)
    keys[0, [15, 14, 12, 8, 0], 0] = torch.tensor([0.0, 3.0, 6.0, 9.0, 12.0])
    made = select(torch.ones(1, 1, 1), [keys], 16, 5, recency=torch.tensor([3.0]))
    assert made.ids.tolist() == [[[0, 8, 12, 14, 15]]]
    torch.testing.assert_close(made.weights, torch.full((1, 1, 5), 0.2))


def test_a_slope_of_zero_changes_nothing():
    queries, keys = data(dtype=torch.float32)
    for noise in (None, Noise(torch.tensor([5, 6]), group=0)):
        plain, made = (select(queries, [keys], 85, 8, noise, recency=slope) for slope in (None, torch.zeros(1)))
        assert torch.equal(plain.ids, made.ids) and torch.equal(plain.weights, made.weights)


def test_noise_chooses_and_documents_hide_under_a_slope():
    (queries, keys), slope = data(), torch.tensor([0.7], dtype=torch.float64)
    noise = Noise(torch.tensor([5, 6]), group=0)
    documents = torch.tensor([[1] * 3 + [2] * 3, [1] * 6]), torch.arange(90).ge(40).long().expand(2, -1).clone()
    documents[1][0, 87:] = 2
    other = documents[0][:, :, None] != documents[1][:, None]
    scores = dense(queries, keys, 84, slope).masked_fill(other, -torch.inf)
    made = select(queries, [keys], 84, 4, noise, documents, slope)
    assert torch.equal(made.ids, best(scores + noise(torch.arange(84, 90), torch.arange(90)), 4))
    chosen = scores.gather(2, made.ids.clamp(min=0)).masked_fill(made.ids < 0, -torch.inf)
    torch.testing.assert_close(made.weights, chosen.softmax(-1).nan_to_num(0), rtol=0, atol=1e-12)


def test_the_slope_learns_through_the_weights():
    (queries, keys), slope = data(N=20), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    value = torch.arange(4.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: (select(queries, [keys], 0, 4, recency=s).weights * value).sum(), slope)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("Q", [1, 70])
def test_the_same_chunks_on_a_cuda_device(Q, dtype):
    queries, keys = data(B=1, Q=Q, N=5000, width=64, dtype=torch.float32)
    keys, slope = keys.bfloat16(), torch.tensor([0.75])
    exact = dense(queries.double(), keys.double(), 4900, slope.double())
    made = select(
        queries.cuda(), [part.cuda() for part in keys.split((256, 4744), 1)], 4900, 8, recency=slope.to("cuda", dtype)
    )
    assert torch.equal(made.ids.cpu(), exact.topk(8).indices)
    chosen = exact.gather(2, made.ids.cpu()).softmax(-1)
    torch.testing.assert_close(made.weights.cpu().double(), chosen, rtol=0, atol=1e-5)
