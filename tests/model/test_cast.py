"""Weights cast once give what autocast gives, and come back."""

import pytest
import torch

from gca_lit.memory import HostStore
from gca_lit.model import cast_once
from tests.model.backends import BACKENDS, decoder, tokens


def hidden_and_logits(model):
    step = model(tokens(34), model.new_state(2, HostStore()), "all")
    parts = [step.hidden, model.logits(step.hidden)]
    for token in tokens(34)[:, :8].split(1, 1):
        step = model(token, step.state, "last")
        parts += [step.hidden, step.logits]
    return parts


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_bits_are_those_of_autocast(backend, tied):
    model = decoder(BACKENDS[backend], torch.float32, tie_embeddings=tied)
    names = [(name, weight) for name, weight in model.named_parameters(remove_duplicate=False)]
    with torch.autocast("cpu", torch.bfloat16):
        expected = hidden_and_logits(model)
        with cast_once(model, "cpu"):
            assert {part.weight.dtype for part in model.modules() if isinstance(part, torch.nn.Linear)} == {
                torch.bfloat16
            }
            assert model.embed.weight.dtype == torch.float32
            assert all(map(torch.equal, hidden_and_logits(model), expected))
    for (name, weight), (other, again) in zip(names, model.named_parameters(remove_duplicate=False), strict=True):
        assert name == other and weight is again and again.requires_grad


@torch.no_grad()
def test_without_autocast_and_after_an_error_all_is_as_before():
    model = decoder(BACKENDS["gca"], torch.float32)
    before = list(model.parameters())
    with cast_once(model, "cpu"):
        assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), cast_once(model, "cpu"):
        raise KeyError
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
