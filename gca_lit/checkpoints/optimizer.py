"""The optimizer of a checkpoint, and that of the run which goes on from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Settings = list[dict[str, Any]]


def number_by_parameters(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
) -> None:
    """Number the parameters in an optimizer's state as `parameters` orders them, which are all of the module.

    torch numbers them group by group, and any numbers do for one process; Lightning's FSDP2 takes them for the order of
    the module. A state with other numbers than torch's own, or that another process saves, is left as it is.
    """
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [number for group in state.get("param_groups", ()) for number in group["params"]] != list(range(len(flat))):
        return
    place = {id(parameter): number for number, parameter in enumerate(parameters)}
    numbers = [place[id(parameter)] for parameter in flat]
    state["state"] = {numbers[old]: kept for old, kept in state["state"].items()}
    state["param_groups"] = [
        group | {"params": [numbers[old] for old in group["params"]]} for group in state["param_groups"]
    ]


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Of each group, all but its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def keep_settings(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, settings: Settings) -> None:
    """Go on with the settings of this run in the place of those that a checkpoint restored; momenta stay."""
    scheduler.base_lrs = [one["initial_lr"] for one in settings]
    for group, own, factor in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(own)
        group["lr"] = own["initial_lr"] * factor(scheduler.last_epoch)


def refuse_other_optimizer(saved: str | None, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError when a checkpoint was trained with another class, whose state means nothing to this one."""
    own = type(optimizer).__name__
    if saved is not None and saved != own:
        raise ValueError(
            f"the checkpoint was trained with {saved}, but model.optimizer is {own}: keep {saved}, or start anew from "
            "the weights with model.init_from"
        )
