"""The learning rate over the optimizer steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a decay until the trainer's max_steps.

    Args:
        warmup_steps: optimizer steps until the full rate.
        decay: shape of the way down.
        final: rate at the end, as a share of the full rate.
    """

    warmup_steps: int = 0
    decay: Literal["cosine", "linear", "none"] = "cosine"
    final: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.final <= 1:
            raise ValueError(
                f"schedule needs warmup_steps >= 0 and 0 <= final <= 1, got {self.warmup_steps} and {self.final}"
            )

    def factor(self, step: int, max_steps: int) -> float:
        """The share of the full rate at `step`; max_steps <= 0 means that there is no end, and no decay."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.decay == "none" or max_steps <= self.warmup_steps:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (max_steps - self.warmup_steps))
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.final + (1 - self.final) * left
