"""Muon takes the steps of torch's own Muon for matrices, and of its AdamW for everything else."""

import copy

import pytest
import torch

from gca_lit import muon
from gca_lit.muon import Muon

SHAPES = {"matrices": [(12, 8), (8, 12), (12, 8), (6, 6)], "embeddings": [(40, 8)], "vectors": [(8,), (1,)]}
SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


def groups(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [
        {"name": name, "params": [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in sizes]}
        for name, sizes in shapes.items()
    ]


def train(params, optimizers, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def params_of(made):
    return [p for group in made for p in group["params"]]


def test_the_steps_are_those_of_torch():
    ours, theirs = groups(), groups()
    train(params_of(ours), [Muon(ours, betas=(0.9, 0.95), **SETTINGS)], 5)
    matrices, *others = theirs
    reference = [
        torch.optim.Muon(matrices["params"], momentum=0.95, adjust_lr_fn="match_rms_adamw", **SETTINGS),
        torch.optim.AdamW(params_of(others), betas=(0.9, 0.95), **SETTINGS),
    ]
    train(params_of(theirs), reference, 5)
    for mine, other in zip(params_of(ours[1:]), params_of(others), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    for mine, other, before in zip(ours[0]["params"], matrices["params"], groups()[0]["params"], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)  # both orthogonalize in bf16
        assert (mine - before).abs().max() > 0.02


def test_a_state_that_was_saved_goes_on_exactly():
    whole = groups()
    train(params_of(whole), [Muon(whole, **SETTINGS)], 3)
    optimizer = Muon(whole, **SETTINGS)
    train(params_of(whole), [optimizer], 3)
    broken = copy.deepcopy(whole)
    resumed = Muon(broken, **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(params_of(whole), [optimizer], 3, seed=2)
    train(params_of(broken), [resumed], 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(params_of(whole), params_of(broken), strict=True))


def test_a_group_may_have_no_decay_and_a_parameter_no_gradient():
    made = groups({"vectors": [(8,)], "matrices": [(4, 4)]})
    (vector,), (matrix,) = made[0]["params"], made[1]["params"]
    made[0]["weight_decay"] = 0.0
    before, still = matrix.detach().clone(), vector.detach().clone()
    optimizer = Muon(made, **SETTINGS)
    vector.grad = torch.zeros_like(vector)
    optimizer.step()
    assert torch.equal(matrix, before) and torch.equal(vector, still)


def test_singular_values_become_nearly_one():
    matrices = torch.randn(3, 30, 50, generator=torch.Generator().manual_seed(0))
    for x in (matrices, matrices.mT):
        values = torch.linalg.svdvals(muon.orthogonal(x, 5).float())
        assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"weight_decay": -0.1}, {"eps": 0.0}, {"iterations": 0}, {"momentum": 1.0}, {"betas": (1.5, 0.9)}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=f"Muon: .*{next(iter(settings))}"):
        Muon(groups(), **settings)


def test_divided_matrices_are_refused(monkeypatch):
    monkeypatch.setattr(muon, "DTensor", torch.nn.Parameter)
    with pytest.raises(
        ValueError, match=r"Muon needs whole matrices, which FSDP divides: use torch.optim.AdamW, or DDP"
    ):
        Muon(groups(), **SETTINGS)
