"""Training forwards: gradients, short rows, documents, gradient checkpointing, noise, losses, size."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.text import Perplexity

from gca_lit.attention import GroupedCrossAttention
from gca_lit.model import Decoder, DecoderConfig, chunked_cross_entropy, cross_entropy
from tests.model.backends import BACKENDS, decoder, gca, tokens


def loss_of(model, ids, **kwargs):
    hidden = model(ids, **kwargs).hidden
    return chunked_cross_entropy(model.token_loss, hidden, ids.roll(-1, 1)).mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [3, 5, 9, 10, 14, 15, 40])
def test_rows_of_any_number_of_chunks_give_every_parameter_a_gradient(backend, T):
    model = decoder(BACKENDS[backend]).train()
    loss_of(model, tokens(T), noise=torch.arange(2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_language_model_loss_reaches_the_retriever():
    model = decoder(gca(groups=2, score="cosine", retrieval_width=8, residual="add", recency=True)).train()
    loss_of(model, tokens(60)).backward()
    for name, parameter in model.upper.groups.named_parameters():
        if "retriever" in name or "slope" in name:
            assert parameter.grad.abs().sum() > 0, name
    assert model.upper.encoder.landmark_key.linear.weight.grad.abs().sum() > 0
    assert model.landmark.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["gca of two groups", "sliding_window"])
def test_gradient_checkpointing_changes_nothing(backend):
    grads = []
    for checkpointing in (False, True):
        model = decoder(BACKENDS[backend], gradient_checkpointing=checkpointing).train()
        loss_of(model, tokens(40), noise=torch.arange(2)).backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_recency_adds_a_vector_to_each_group_that_changes_nothing_at_first_and_does_not_decay(training):
    plain, model = (decoder(gca(groups=2, recency=recency)).train(training) for recency in (False, True))
    weights = dict(model.named_parameters())
    slopes = [weights.pop(f"upper.groups.{number}.slope") for number in range(2)]
    assert weights.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.named_parameters())
    vectors = model.parameter_groups()[-1]
    assert vectors["name"] == "vectors" and all(any(p is slope for p in vectors["params"]) for slope in slopes)
    without, later = (network(tokens(80), noise=torch.arange(2)) for network in (plain, model))
    assert all(not torch.equal(a.ids, b.ids) for a, b in zip(without.selections, later.selections, strict=True))
    for slope in slopes:
        slope.data = model.attention.slope().to(slope)
    assert torch.equal(without.hidden, model(tokens(80), noise=torch.arange(2)).hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recency_under_autocast_and_in_bf16(dtype):
    model, ids = decoder(BACKENDS["gca recency"], dtype).train(), tokens(60)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        step = model(ids, noise=torch.arange(2))
        loss_of(model, ids, noise=torch.arange(2)).backward()
    assert all(made.weights.dtype == torch.float32 for made in step.selections)
    assert all(group.slope.grad.abs() > 0 for group in model.upper.groups)


def test_noise_needs_training_mode():
    model = decoder(gca(top_k=2))
    ids = tokens(80)
    assert torch.equal(model(ids, noise=torch.arange(2)).hidden, model(ids).hidden)
    model.train()
    assert not torch.equal(model(ids, noise=torch.arange(2)).hidden, model(ids).hidden)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_document_is_read_as_if_it_stood_alone(backend):
    """Documents that begin at a chunk border give the same hidden states packed and alone."""
    model = decoder(BACKENDS[backend])
    if backend == "full":
        model = decoder(type(BACKENDS[backend])())
    first, second = tokens(45), tokens(38)
    documents = torch.cat((torch.zeros_like(first), torch.ones_like(second)), 1)
    packed = model(torch.cat((first, second), 1), documents=documents).hidden
    torch.testing.assert_close(packed[:, :45], model(first).hidden, rtol=0, atol=1e-9)
    torch.testing.assert_close(packed[:, 45:], model(second).hidden, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_document_that_begins_inside_a_chunk_sees_nothing_before_it():
    model = decoder(gca(groups=2))
    ids = tokens(83)
    documents = (torch.arange(83) >= 43).long().expand(2, -1)
    changed = ids.clone()
    changed[:, :43] = (changed[:, :43] + 7) % 50
    before, after = (model(x, documents=documents).hidden for x in (ids, changed))
    assert torch.equal(before[:, 43:], after[:, 43:])


def test_cross_entropy_in_pieces_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 8, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (3, 7), generator=g)
    targets[0, 2:], targets[2] = -100, -100
    logits = hidden @ weight.T
    exact = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)
    wanted = torch.autograd.grad((exact / torch.tensor([2, 7, 1])).mean(), (hidden, weight))
    for at_once in (1, 4, 100):
        loss = chunked_cross_entropy(lambda h, t: cross_entropy(h @ weight.T, t), hidden, targets, at_once)
        torch.testing.assert_close(loss.nll, exact)
        assert loss.count.tolist() == [2, 7, 0]
        right = (logits.argmax(-1) == targets).sum(1)
        assert torch.equal(loss.correct, right)
        for got, want in zip(torch.autograd.grad(loss.mean(), (hidden, weight)), wanted, strict=True):
            torch.testing.assert_close(got, want)


def test_perplexity_is_total_nll_over_total_tokens():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 9, 8, generator=g), torch.randn(11, 8, generator=g)
    targets = torch.randint(0, 11, (2, 9), generator=g)
    targets[0, 3:] = -100
    loss = chunked_cross_entropy(lambda h, t: cross_entropy(h @ weight.T, t), hidden, targets)
    oracle = Perplexity(ignore_index=-100)
    oracle.update(hidden @ weight.T, targets)
    torch.testing.assert_close((loss.nll.sum() / loss.count.sum()).exp(), oracle.compute())


def test_the_paper_size():
    config = DecoderConfig(position="alibi")
    with torch.device("meta"):
        model = Decoder(config, GroupedCrossAttention(), 50_304)
    total = sum(p.numel() for p in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    assert total - vectors - 50_304 * 768 == 107_347_968
    parts = {
        "decoder": 12 * (4 * 768**2 + 3 * 768 * 2048),
        "encoder": 2 * (4 * 768**2 + 3 * 768 * 2048),
        "projections": 6 * 2 * 768**2,
        "chunk K/V": 2 * 768**2,
    }
    assert sum(parts.values()) == 107_347_968
