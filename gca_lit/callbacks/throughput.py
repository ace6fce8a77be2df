"""How fast training runs: tokens a second, their sum, the share of the devices' peak, and the norm of the gradient."""

from __future__ import annotations

import time
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100*": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
"""Dense bfloat16 products of a device in FLOP/s, by its name."""


class Throughput(Callback):
    """Logs at every `log_every_n_steps`-th optimizer step, for all ranks together:

    `throughput/tokens_per_second`: text tokens by wall time since the last log. Waiting for data counts; validation and
        callbacks that run after the step, such as probes, do not where they stand before this one.
    `throughput/tokens_seen`: text tokens of all optimizer steps, those before a checkpoint included.
    `throughput/mfu`: model FLOPs, three forwards a step, by that time as a share of the devices' peak.
    `grad_norm`: of all gradients, before they are clipped; not of a step without gradients.

    Args:
        peak_flops: dense FLOP/s of one device; null takes it from PEAKS. Without any, as on a CPU, no MFU is logged.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"Throughput: peak_flops must be positive, got {peak_flops}")
        self.peak_flops = peak_flops
        self.tokens_seen = 0
        self._peak: float | None = None
        self._step = 0
        self._watch = Stopwatch()
        self._tokens: Counter[int] = Counter()  # since the last log, by row length
        self._begun: Counter[int] = Counter()  # since the last optimizer step
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = self.peak_flops or dense_peak(name)
        if self._peak is None and name:
            rank_zero_info(f"no MFU is logged, for the peak of {name} is not known: set peak_flops of Throughput")
        self._hooks = [one.register_step_post_hook(lambda *_: self._watch.stop()) for one in trainer.optimizers]
        self._step = trainer.global_step
        self._tokens, self._begun = Counter(), Counter()
        self._watch = Stopwatch()
        self._watch.start()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not _due(trainer, trainer.global_step + 1):
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            pl_module.log("grad_norm", total_norm(grads, trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._begun[batch.tokens.shape[1]] += batch.tokens.numel() * trainer.world_size
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.tokens_seen += self._begun.total()
        self._tokens += self._begun
        self._begun = Counter()
        if _due(trainer, self._step):
            pl_module.log_dict({f"throughput/{name}": value for name, value in self._rates(trainer, pl_module).items()})
            self._tokens = Counter()
        self._watch.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens_seen = state["tokens_seen"]

    def _rates(self, trainer: Trainer, model: Any) -> dict[str, Tensor]:
        seconds = self._watch.take()
        rates = {"tokens_per_second": self._tokens.total() / seconds, "tokens_seen": self.tokens_seen}
        if self._peak is not None:
            flops = sum(3 * tokens * model.flops_per_token(length) for length, tokens in self._tokens.items())
            rates["mfu"] = flops / seconds / (self._peak * trainer.world_size)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in rates.items()}


class Stopwatch:
    """Wall time between starts and stops; each may come twice."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def take(self) -> float:
        """Stop, and give the seconds since the last call."""
        self.stop()
        taken, self._seconds = self._seconds, 0.0
        return taken


def dense_peak(name: str) -> float | None:
    """FLOP/s of the device called `name`, or None where PEAKS does not know it."""
    return next((peak for pattern, peak in PEAKS.items() if fnmatchcase(name, pattern)), None)


def total_norm(grads: list[Tensor], trainer: Trainer) -> Tensor:
    """The 2-norm of all gradients together, with sharded weights over all ranks, without waiting for the device."""
    norm = torch.nn.utils.get_total_norm(grads)
    if isinstance(norm, DTensor):
        return norm.full_tensor()
    if isinstance(trainer.strategy, FSDPStrategy):
        return trainer.strategy.reduce(norm**2, reduce_op="sum").sqrt()
    return norm


def _due(trainer: Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and step % every == 0
