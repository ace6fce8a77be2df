"""Retrievers that learn nothing: no gradient reaches them, and random selections are random."""

import pytest
import torch

from gca_lit.attention.ablations import DetachedRetrieval, RandomRetrieval
from gca_lit.model import Decoder, DecoderConfig

CONFIG = DecoderConfig(width=32, heads=2, kv_heads=2, layers=3, mlp_width=32, position="rotary", init="fan_in")


@pytest.mark.parametrize("backend", [DetachedRetrieval, RandomRetrieval])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_the_retriever_has_no_gradient(backend, score):
    torch.manual_seed(0)
    settings = {"score": score, "retrieval_width": 8, "recency": True, "noise": "none"}
    attention = backend(chunk_size=7, window=16, top_k=3, lower_layers=1, **settings)
    network = Decoder(CONFIG, attention, 50)
    network(torch.randint(50, (2, 100))).hidden.square().sum().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("encoder.kv" in name for name in with_gradient)
    assert not any("retriever" in name or "landmark_key" in name or "slope" in name for name in with_gradient)


def test_random_selections_are_spread_evenly():
    torch.manual_seed(0)
    attention = RandomRetrieval(chunk_size=7, window=16, top_k=4, lower_layers=1, noise="none")
    network = Decoder(CONFIG, attention, 50)
    with torch.no_grad():
        selection = network(torch.randint(50, (8, 700))).selections[0]
    late = selection.ids[:, 20:]
    assert (selection.weights[:, 20:] - 0.25).abs().mean() < 0.03
    places = late.double() / (torch.arange(late.shape[1])[:, None] + 18)  # of the last chunk that is visible
    assert abs(places.mean() - 0.5) < 0.05 and abs(places.std() - 12**-0.5) < 0.05
