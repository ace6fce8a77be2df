"""One sweep over tasks and lengths: which points are left, may they run, what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gca_lit.callbacks.budget import device_bytes, free_host_bytes, shortage
from gca_lit.callbacks.figures import show
from gca_lit.callbacks.occasions import sharded
from gca_lit.callbacks.rows import shared_columns, summary
from gca_lit.callbacks.tally import Tally
from gca_lit.results import plots
from gca_lit.results.file import ResultsFile, Row, latest
from gca_lit.units import size

if TYPE_CHECKING:
    from gca_lit.memory.base import ChunkStore
    from gca_lit.tasks.base import Task


@dataclass(frozen=True)
class Plan:
    """What to evaluate and within which limits; the fields are the arguments of LengthGeneralization."""

    factors: Sequence[float]
    episodes: Sequence[tuple[float, int]]
    depths: Sequence[float | None]
    tasks: Sequence[str] | None
    placements: Sequence[str]
    segment: int
    batch_tokens: int
    seed: int
    max_seconds: float | None
    max_host_bytes: int | None
    output: str

    def tasks_at(self, data: Any, placement: str) -> list[Task]:
        """The tasks to evaluate with questions at `placement`. Raises ValueError for one that the data do not have."""
        found = {task.name: task for task in data.tasks(placement, self.seed)}
        if unknown := set(self.tasks or ()) - set(found):
            raise ValueError(f"LengthGeneralization: the data have no task {', '.join(sorted(unknown))}")
        return [found[name] for name in self.tasks or found]


@dataclass(frozen=True)
class Point:
    """One row to be: n episodes of `task` at `length` tokens, the needle at `depth` or anywhere (None)."""

    task: Task
    placement: str | None
    factor: float
    length: int
    depth: float | None
    n: int

    def columns(self) -> Row:
        return {
            "task": self.task.name,
            "task_settings": self.task.settings(),
            "placement": self.placement,
            "factor": self.factor,
            "eval_length": self.length,
            "depth": self.depth,
        }


class Sweep:
    """Evaluates the points of a plan that are not finished, shortest first, and saves each as soon as it is known.

    Rank 0 reads and writes the results and decides what runs; all ranks go through the same points in the same order.
    """

    def __init__(
        self, plan: Plan, trainer: Trainer, model: Any, store: ChunkStore, split: str, loaded_step: int | None
    ) -> None:
        self.plan, self.trainer, self.model, self.store = plan, trainer, model, store
        self.data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.data is None:
            raise ValueError("LengthGeneralization takes its tasks and text from a data module: pass datamodule=")
        self.haystack = self.data.haystack(split, plan.seed)
        self.train_length: int = model.train_length or self.data.train_length
        self.device = trainer.strategy.root_device
        self.rank, self.ranks = (0, 1) if sharded(trainer) else (trainer.global_rank, trainer.world_size)
        self.deadline = math.inf
        self.host: int | None = None
        self.path = Path(trainer.default_root_dir) / plan.output
        self.results = ResultsFile(self.path) if trainer.is_global_zero else None
        self.common: Row = {}
        if trainer.is_global_zero:
            self.common = shared_columns(trainer, model, self.data, loaded_step) | {
                "train_length": self.train_length,
                "seed": plan.seed,
                "segment": plan.segment,
                "split": split,
                "text": self.haystack.identity,
            }

    def run(self) -> None:
        for factor in self.plan.factors:
            self._start_length()
            for point in self._points(factor):
                verdict = self._verdict(point)
                if verdict == "finished":
                    rank_zero_info(f"{point.task.name}, {point.length:,} tokens: done before, see {self.path}")
                    continue
                tally, reason = (Tally(), verdict) if verdict else self._evaluate(point)
                self._save(point, tally, reason)
        self.store.close()
        if self.results is not None:
            self._draw()

    def _start_length(self) -> None:
        """Give memory back, so that bytes are those of this length alone, and start its budgets."""
        self.store.close()
        self.trainer.strategy.barrier()  # all ranks of a host have given back theirs
        limit = self.plan.max_host_bytes
        self.host = free_host_bytes() if limit is None else limit
        if self.plan.max_seconds is not None:
            self.deadline = time.monotonic() + self.plan.max_seconds

    def _points(self, factor: float) -> Iterator[Point]:
        length = round(factor * self.train_length)
        n = next(n for start, n in reversed(self.plan.episodes) if start <= factor)
        for placement in self.plan.placements:
            for task in self.plan.tasks_at(self.data, placement):
                if task.name != "perplexity":
                    for depth in self.plan.depths:
                        yield Point(task, placement, factor, length, depth, n)
                elif placement == self.plan.placements[0]:
                    yield Point(task, None, factor, length, None, n)

    def _verdict(self, point: Point) -> str | None:
        """None to run, "finished", or the reason to skip; the same on all ranks."""
        verdict = None
        shortest, longest = point.task.min_length(), getattr(point.task, "longest", point.length)
        if self.results is not None:
            if self.results.finished(point.columns() | self.common, point.n):
                verdict = "finished"
            elif not shortest <= point.length <= longest:
                limit = f"at least {shortest:,}" if point.length < shortest else f"at most {longest:,}"
                verdict = f"{point.task.name} takes {limit} tokens, not {point.length:,}"
                if point.length < shortest:
                    verdict += f": evaluate it from factor {math.ceil(100 * shortest / self.train_length) / 100:g} on"
            elif time.monotonic() > self.deadline:
                verdict = f"the {self.plan.max_seconds:g} s of this length are spent"
            else:
                batch = min(self._batch_size(point), math.ceil(point.n / self.ranks))
                verdict = shortage(
                    self.model, point.length, batch, self.store, self.device, self.host, self.trainer.num_devices
                )
        return self.trainer.strategy.broadcast(verdict)

    def _evaluate(self, point: Point) -> tuple[Tally, str | None]:
        """Score this rank's episodes, a batch a round, and join the ranks: the tally and why it is not complete."""
        mine, batch = range(self.rank, point.n, self.ranks), self._batch_size(point)
        tally = Tally()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for start in range(0, math.ceil(point.n / self.ranks), batch):
            if not self.trainer.strategy.broadcast(start == 0 or time.monotonic() < self.deadline):
                break
            indices = mine[start : start + batch]
            if not indices or tally.largest["out_of_memory"]:
                continue
            episodes = [point.task.episode(point.length, index, self.haystack, point.depth) for index in indices]
            try:
                with self.trainer.precision_plugin.val_step_context():
                    tally.score(self.model, episodes, self.device, self.plan.segment, self.store)
            except torch.OutOfMemoryError:
                tally.largest["out_of_memory"] = 1.0
            if tally.largest["out_of_memory"]:
                self.store.close()
                torch.cuda.empty_cache()
        if self.ranks > 1:
            reduce = self.trainer.strategy.reduce
            tally.reduce(lambda tensor, op: reduce(tensor.to(self.device), reduce_op=op))
        if tally.largest["out_of_memory"]:
            return Tally(), f"needs more device memory than there is, {size(device_bytes(self.device))}"
        done = int(tally.sums["n"])
        if done < point.n:
            return tally, f"the {self.plan.max_seconds:g} s of this length ran out after {done} of {point.n} episodes"
        return tally, None

    def _batch_size(self, point: Point) -> int:
        return max(1, self.plan.batch_tokens // point.length)

    def _save(self, point: Point, tally: Tally, reason: str | None) -> None:
        if self.results is None:
            return
        status = "done" if reason is None else "partial" if tally.sums["n"] else "skipped"
        text_alone = point.task.name == "perplexity"
        counts = tally.perplexity(point.length) if text_alone else tally.answers()
        row = point.columns() | {"status": status, "reason": reason} | counts | tally.measured() | self.common
        row["haystack_passes"] = None if text_alone else self.haystack.passes(point.length)
        self.results.append(row)
        rank_zero_info(summary(row))
        name = "/".join(str(part) for part in (point.task.name, point.placement, point.length) if part is not None)
        name += f"/depth_{point.depth:.2f}" if point.depth is not None else ""
        metrics = {key: row.get(key) for key in ("accuracy", "perplexity", "tokens_per_second", "recall_at_k")}
        for logger in self.trainer.loggers:
            logger.log_metrics(
                {f"length_generalization/{name}/{key}": value for key, value in metrics.items() if value is not None},
                step=self.common["global_step"],
            )

    def _draw(self) -> None:
        """A heat map of each task, from the rows of this checkpoint."""
        assert self.results is not None
        mine = ("backend", "checkpoint_sha256", "seed", "split")
        rows = [row for row in latest(self.results.rows) if all(row.get(key) == self.common[key] for key in mine)]
        for task in dict.fromkeys(row["task"] for row in rows):
            path = self.path.with_name(f"{self.path.stem}_{task}.png")
            plots.heat_map(rows, task, path)
            show(self.trainer, f"length_generalization/{task}", path, self.common["global_step"])
