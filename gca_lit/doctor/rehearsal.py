"""Build all that fit would build, run nothing, and say what the configuration asks of a machine."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_loader
from lightning.pytorch.callbacks import ModelCheckpoint

from gca_lit.callbacks.budget import SHARE_OF_HOST, shortage
from gca_lit.callbacks.occasions import sharded
from gca_lit.cli import CLI, MISTAKES, Begun
from gca_lit.data.shards import read_manifest
from gca_lit.data.stream import PREFETCH
from gca_lit.doctor import requirements as check
from gca_lit.doctor.requirements import Finding, Folder, Machine, Needs, Software
from gca_lit.muon import Muon
from gca_lit.units import size
from gca_lit.usage import load_yaml

REMEDY = "mend this setting: fit refuses it too"
BYTES_OF_A_TOKEN = 3 * 8
"""In a batch: the token, its target and its document."""


class Rehearsal(CLI):
    """A command line that builds everything and runs nothing; why there is no trainer stands in `refused`."""

    refused: Exception | None = None

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        try:
            return super().instantiate_trainer(**kwargs)
        except MISTAKES as error:
            self.refused = error

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def rehearse(flags: list[str], length: int | None, software: Software, machine: Machine) -> Iterator[Finding]:
    """What stands between the machine and `fit` with these flags, or an evaluation at `length` tokens.

    A `length` of None is the longest factor of length_generalization.
    """
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            cli = Rehearsal(Begun(), ["fit", *flags])
        except MISTAKES as error:
            yield Finding("configuration", "FAIL", str(error), REMEDY)
            return
    for warning in caught:
        if issubclass(warning.category, UserWarning) and "LightningCLI's args" not in str(warning.message):
            yield Finding("configuration", "warn", str(warning.message), "nothing, if that is meant")
    yield from check_data(cli.datamodule)
    if cli.refused is not None:
        yield Finding("trainer", "FAIL", str(cli.refused), REMEDY)
        return
    try:
        needs = find_needs(cli, length, machine)
    except MISTAKES as error:
        yield Finding("configuration", "FAIL", str(error), REMEDY)
        return
    yield Finding("trainer", "ok", f"{needs.ranks} x {needs.device}, {needs.precision}")
    yield from check.check_kernels(needs, software, machine)
    yield from check.check_memory(needs, machine)
    yield check.check_workers(needs, machine)
    saving = cli.trainer.checkpoint_callback
    root = saving.dirpath if isinstance(saving, ModelCheckpoint) else cli.trainer.default_root_dir
    if "://" in str(root):
        yield Finding("disk", "warn", f"{root} is remote and was not looked at", "see that it can be written")
    else:
        yield check.check_disk(needs, find_folder(Path(str(root))))


def check_data(data: Any) -> Iterator[Finding]:
    """Open and check the shards as fit, validate and test do."""
    refused = {}
    for stage in ("fit", "validate", "test") if data.paths["test"] else ("fit", "validate"):
        try:
            data.setup(stage)
        except (ValueError, OSError) as error:
            refused[str(error)] = Finding("data", "FAIL", str(error), "look at the settings of data")
    yield from refused.values()
    for split, path in data.paths.items():
        if path is not None and not refused:
            held = read_manifest(Path(path))
            stored = size(sum(file["bytes"] for file in held["files"]))
            yield Finding(f"data.{split}", "ok", f"{held['tokens']:,} tokens in {path}, {stored}")


def find_needs(cli: Any, length: int | None, machine: Machine) -> Needs:
    """What a command line that was built, but not run, asks of this machine."""
    trainer, model, data = cli.trainer, cli.model, cli.config[cli.subcommand]["data"]
    model.trainer = trainer
    with trainer.precision_plugin.module_init_context(), torch.device("meta"):
        model.configure_model()
    check_optimizer(model, trainer)

    sweep = cli.config_init[cli.subcommand]["length_generalization"]
    for placement in sweep.plan.placements if sweep.enabled else ():
        sweep.plan.tasks_at(cli.datamodule, placement)
    tokens = length or round((max(sweep.plan.factors) if sweep.enabled else 1) * data["train_length"])
    episodes = max(1, sweep.plan.batch_tokens // tokens)
    host = sweep.plan.max_host_bytes
    if host is None and machine.available is not None:
        host = int(machine.available * SHARE_OF_HOST)
    device, ranks = trainer.strategy.root_device, trainer.num_devices
    store = sweep.store_for(model)
    held = {part: size(count) for part, count in model.kv_bytes(tokens, episodes).items()}

    saving = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    kept = sum(one.save_top_k + (2 if one.save_last else 0) + 1 for one in saving)  # one is being written
    workers = data["num_workers"]
    return Needs(
        device=device.type,
        ranks=ranks,
        shards=trainer.world_size if sharded(trainer) else 1,
        precision=trainer.precision,
        impl=getattr(model.attention, "impl", None),
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        optimizer=optimizer_bytes(model),
        checkpoints=None if any(one.save_top_k < 0 for one in saving) else kept,
        workers=workers,
        batches=2 * workers * PREFETCH * data["batch_size"] * data["train_length"] * BYTES_OF_A_TOKEN,
        evaluation=f"{tokens:,} tokens, {episodes} at once: chunk K/V {held['store']} in {type(store).__name__}, "
        f"landmarks and other K/V {held['state']} on {device.type}",
        shortage=shortage(model, tokens, episodes, store, device, host, ranks),
        by_choice=length is None and model.max_length is not None and tokens > model.max_length,
    )


def check_optimizer(model: Any, trainer: Any) -> None:
    """Raise ValueError for an optimizer that cannot take the weights as the strategy will divide them."""
    optimizer = model.configure_optimizers()["optimizer"]
    if isinstance(optimizer, Muon):
        try:
            optimizer.check_whole(not sharded(trainer))
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}") from error


def optimizer_bytes(model: Any) -> int | None:
    """What the optimizer keeps after a step on the meta device, or None when it cannot take one there."""
    optimizer = model.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["fused"] = False
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, AssertionError, TypeError):
        return None
    state = (value for kept in optimizer.state.values() for value in kept.values())
    return sum(value.nbytes for value in state if isinstance(value, torch.Tensor))


def find_folder(path: Path) -> Folder:
    """Where `path` is, or would be made."""
    exists = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()).resolve()
    table = Path("/proc/mounts")
    mounts = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    kinds = {at: kind for _, at, kind, *_ in map(str.split, mounts)}  # of two mounts at a place the later one counts
    kind = next((kinds[str(folder)] for folder in (exists, *exists.parents) if str(folder) in kinds), "unknown")
    writable = exists.is_dir() and os.access(exists, os.W_OK | os.X_OK)
    return Folder(path, kind, shutil.disk_usage(exists).free, writable)
