"""Accuracy far beyond the training length: one row for each task, placement, length and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from gca_lit.callbacks.occasions import AtEvaluation
from gca_lit.callbacks.sweep import Plan, Sweep
from gca_lit.memory.base import ChunkStore


class LengthGeneralization(AtEvaluation):
    """Evaluate tasks at multiples of the training length, inside validate, test and, if asked for, fit.

    Rows are appended to `output` in the trainer's default_root_dir. A point that is already done for the same
    checkpoint, settings of attention, seed and n is not run again; a partial or skipped one is tried again.

    Under several ranks the episodes are divided among them; with sharded weights (FSDP) all ranks run all episodes
    together.

    Args:
        factors: evaluation lengths, as multiples of the training length.
        episodes: [factor, n] pairs: from that factor on, n episodes a row.
        depths: depths of the needle (0..1) or how many evenly spaced ones, one row each; null draws one per episode.
        tasks: names of the data's tasks; null takes all.
        placements: where the question stands: "chunk" (before the last whole chunk) and "end". Perplexity asks nothing:
            it runs once, with placement null.
        segment: text tokens of one forward.
        batch_tokens: episodes at once = batch_tokens // length, at least one.
        store: where chunk K/V go; null is the model's store.
        seed: of the episodes.
        max_seconds: for all points of one length; the point at work then is partial, the rest are skipped.
        max_host_bytes: of K/V, for all ranks of a host; null is 80 % of what is available.
        during_fit_every: run in every n-th validation of fit; null never.
        output: name of the results file.
        enabled: false does nothing.
    """

    def __init__(
        self,
        factors: Sequence[float] = (1, 2, 4, 8, 16, 32, 64),
        episodes: Sequence[tuple[float, int]] = ((0, 100), (256, 20)),
        depths: list[float] | int | None = None,
        tasks: list[str] | None = None,
        placements: Sequence[str] = ("chunk", "end"),
        segment: int = 16_384,
        batch_tokens: int = 65_536,
        store: ChunkStore | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        max_host_bytes: int | None = None,
        during_fit_every: int | None = None,
        output: str = "length_generalization.jsonl",
        enabled: bool = True,
    ) -> None:
        super().__init__(during_fit_every)
        if not factors or min(factors) <= 0:
            raise ValueError(f"LengthGeneralization: factors must be positive numbers, got {list(factors)}")
        if not episodes or min(n for _, n in episodes) < 1:
            raise ValueError(
                f"LengthGeneralization: episodes must be [factor, n] pairs with n at least 1, got {list(episodes)}"
            )
        if min(start for start, _ in episodes) > min(factors):
            raise ValueError(f"LengthGeneralization: episodes gives no number for factor {min(factors):g}")
        if wrong := set(placements) - {"chunk", "end"}:
            raise ValueError(f'LengthGeneralization: placements are "chunk" and "end", not {", ".join(sorted(wrong))}')
        for name, value in {"segment": segment, "batch_tokens": batch_tokens}.items():
            if value < 1:
                raise ValueError(f"LengthGeneralization: {name} must be at least 1, got {value}")
        if max_seconds is not None and max_seconds <= 0:
            raise ValueError(
                f"LengthGeneralization: max_seconds must be positive, or null for no limit, got {max_seconds}"
            )
        if max_host_bytes is not None and max_host_bytes < 0:
            raise ValueError(f"LengthGeneralization: max_host_bytes must not be negative, got {max_host_bytes}")
        self.plan = Plan(
            factors=sorted(factors),
            episodes=sorted((float(start), n) for start, n in episodes),
            depths=_depths(depths),
            tasks=tasks,
            placements=list(placements),
            segment=segment,
            batch_tokens=batch_tokens,
            seed=seed,
            max_seconds=max_seconds,
            max_host_bytes=max_host_bytes,
            output=output,
        )
        self.store = store
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse tasks and placements that the data do not have, before anything runs."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.enabled and self.works_in(stage) and data is not None:
            for placement in self.plan.placements:
                self.plan.tasks_at(data, placement)

    def run(self, trainer: Trainer, model: Any, split: str) -> None:
        if self.enabled:
            Sweep(self.plan, trainer, model, self.store_for(model), split, self.loaded_step).run()

    def store_for(self, model: Any) -> ChunkStore:
        """Where chunk K/V go in an evaluation of `model`."""
        store: ChunkStore = model.store if self.store is None else self.store
        return store


def _depths(depths: list[float] | int | None) -> list[float | None]:
    if depths is None:
        return [None]
    if isinstance(depths, int):
        if depths < 1:
            raise ValueError(f"LengthGeneralization: depths must be at least 1, got {depths}")
        return [step / max(1, depths - 1) for step in range(depths)]
    if not depths or min(depths) < 0 or max(depths) > 1:
        raise ValueError(f"LengthGeneralization: depths lie between 0 and 1, got {depths}")
    return list(depths)
