"""Muon: momentum made orthogonal for matrices, AdamW for everything else, in one optimizer with one learning rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Muon"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (K. Jordan and others, Muon, 2024)."""
UPDATE = 0.2
"""Root mean square of a matrix's update at a rate of 1: about AdamW's, so one rate serves both (arXiv 2502.16982)."""


class Muon(torch.optim.Optimizer):
    """Two-dimensional parameters of all groups but those named "embeddings" take Muon's step, others AdamW's.

    A matrix's step is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`; matrices of one shape go together.

    Args:
        params: groups of parameters.
        lr: learning rate of all.
        momentum: of matrices, Nesterov's.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled, relative to lr.
        iterations: of Newton-Schulz.

    Raises ValueError for settings that mean nothing, and for parameters that FSDP has divided.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        iterations: int = 5,
    ) -> None:
        if lr < 0 or weight_decay < 0 or eps <= 0 or iterations < 1:
            raise ValueError(
                "Muon: lr and weight_decay must not be negative, eps must be positive and iterations at least 1, got "
                f"{lr}, {weight_decay}, {eps} and {iterations}"
            )
        if not all(0 <= share < 1 for share in (momentum, *betas)):
            raise ValueError(
                f"Muon: momentum and betas must be at least 0 and below 1, got {momentum} and {list(betas)}"
            )
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"iterations": iterations})
        self.check_whole(not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]))

    @staticmethod
    def check_whole(whole: bool) -> None:
        """Raise ValueError for matrices that are divided, or will be."""
        if not whole:
            raise ValueError("Muon needs whole matrices, which FSDP divides: use torch.optim.AdamW, or DDP")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            alike = defaultdict(list)
            for p in params:
                alike[p.shape if p.ndim == 2 and group.get("name") != "embeddings" else None].append(p)
            for shape, same in alike.items():
                self._adamw(same, group) if shape is None else self._muon(same, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape."""
        grads, moments = _grads(params), self._states(params, "momentum")
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        updates = orthogonal(torch.stack(torch._foreach_lerp(grads, moments, group["momentum"])), group["iterations"])
        size = UPDATE * max(params[0].shape) ** 0.5
        torch._foreach_add_(params, list(updates.to(params[0].dtype)), alpha=-group["lr"] * size)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads, (beta1, beta2) = _grads(params), group["betas"]
        first, second = self._states(params, "exp_avg"), self._states(params, "exp_avg_sq")
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        steps = [self.state[p].setdefault("step", torch.zeros(())) for p in params]
        torch._foreach_add_(steps, 1)
        below = torch._foreach_div(second, [1 - beta2 ** float(step) for step in steps])
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_addcdiv_(params, first, below, [-group["lr"] / (1 - beta1 ** float(step)) for step in steps])

    def _states(self, params: list[Tensor], name: str) -> list[Tensor]:
        """Of each parameter; zeros at first."""
        return [self.state[p].setdefault(name, torch.zeros_like(p)) for p in params]


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """matrices [n, rows, columns] -> bf16 ones of the same singular vectors, all singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16().mT if tall else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
