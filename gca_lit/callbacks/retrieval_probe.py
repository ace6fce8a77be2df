"""What the model finds in long rows while it learns: accuracy of each task, and how retrieval weighs its needles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from gca_lit.callbacks.occasions import EverySteps
from gca_lit.callbacks.samples import evaluating
from gca_lit.callbacks.tally import Tally
from gca_lit.memory.base import ChunkStore
from gca_lit.memory.host_store import HostStore
from gca_lit.scoring import Score, selection_weights

if TYPE_CHECKING:
    from gca_lit.tasks.base import Episode, Task


class RetrievalProbe(EverySteps):
    """Scores a batch of episodes of each needle task in training, hidden in the training text, with aligned questions.

    Logged of each task, and printed in one line for all: `probe/TASK/accuracy` (exact match), and for a backend with
    chunks `recall_at_1`, `recall_at_k`, `groupG_needleN_weight` (the most weight that one selection between question
    and answer puts on needle N, in hop order) and `entropy_groupG` (in nats, of the selection that serves the answer).
    Needles too near to be selectable count for accuracy alone, and a task is left out while rows are too short for it.

    Every time the episodes of a length are the same. Rank 0 runs it, with sharded weights all ranks together; it draws
    no random numbers, so that training goes on as without it.

    Args:
        every_n_steps: optimizer steps from one time to the next.
        episodes: of each task, scored as one batch.
        tasks: names of the data's tasks; null takes all that hide needles.
        seed: of the episodes.
        length: of an episode in tokens; null is the length of a training row at that time.
        segment: text tokens of one forward.
    """

    def __init__(
        self,
        every_n_steps: int,
        episodes: int = 16,
        tasks: list[str] | None = None,
        seed: int = 0,
        length: int | None = None,
        segment: int = 16_384,
    ) -> None:
        super().__init__(every_n_steps)
        for name, value in {"episodes": episodes, "segment": segment}.items():
            if value < 1:
                raise ValueError(f"RetrievalProbe: {name} must be at least 1, got {value}")
        self.episodes, self.tasks = episodes, tasks
        self.seed, self.length, self.segment = seed, length, segment
        self.store: ChunkStore = HostStore()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse tasks that the data do not have, and a length that no task or the attention cannot take."""
        if stage != "fit":
            return
        shortest = min(task.min_length() for task in self._tasks(trainer))
        longest = getattr(pl_module, "max_length", None)
        if self.length is not None and not shortest <= self.length <= (longest or self.length):
            limit = f"at least {shortest:,}" + (f" and at most {longest:,}" if longest else "")
            raise ValueError(f"RetrievalProbe: length must be {limit} tokens, got {self.length:,}")

    def run(self, trainer: Trainer, model: Any, step: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        length, device = self.length or data.stage_length, trainer.strategy.root_device
        haystack = data.haystack("train", self.seed)
        values: dict[str, float] = {}
        said = []
        with evaluating(model), trainer.precision_plugin.val_step_context():
            for task in self._tasks(trainer):
                if length < task.min_length():
                    said.append(f"{task.name} needs {task.min_length():,}")
                    continue
                tally = ProbeTally()
                episodes = [task.episode(length, index, haystack) for index in range(self.episodes)]
                tally.score(model, episodes, device, self.segment, self.store)
                found = tally.scalars()
                values |= {f"probe/{task.name}/{name}": value for name, value in found.items()}
                said.append(f"{task.name} {_summary(found)}")
        self.store.close()
        rank_zero_info(f"step {step}, {length:,} tokens: {'; '.join(said)}")
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step)

    def _tasks(self, trainer: Trainer) -> list[Task]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found = {task.name: task for task in data.tasks("chunk", self.seed) if task.name != "perplexity"}
        if unknown := set(self.tasks or ()) - set(found):
            raise ValueError(f"RetrievalProbe: the data have no task with needles named {', '.join(sorted(unknown))}")
        if not found:
            raise ValueError(
                "RetrievalProbe: the data have no task with needles: give data.tasks one, SingleNeedle say"
            )
        return [found[name] for name in self.tasks or found]


class ProbeTally(Tally):
    """A tally that also keeps how each group weighs the needles of an episode, and the entropy of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def add(self, scored: Score, episodes: Sequence[Episode], chunk_size: int | None) -> None:
        super().add(scored, episodes, chunk_size)
        for row, episode in enumerate(episodes):
            weights, entropies = selection_weights(scored, episode, chunk_size, row)
            if weights is not None and entropies is not None:
                self.weights.append(weights)
                self.entropies.append(entropies)

    def scalars(self) -> dict[str, float]:
        """Means over the episodes; those of retrieval only where there was something to judge."""
        answers = self.answers()
        names = ("accuracy", "recall_at_1", "recall_at_k")
        found = {name: answers[name] for name in names if answers[name] is not None}
        if self.weights:
            for group, needles in enumerate(torch.stack(self.weights).mean(0).tolist(), 1):
                found |= {f"group{group}_needle{n}_weight": weight for n, weight in enumerate(needles, 1)}
            for group, entropy in enumerate(torch.stack(self.entropies).mean(0).tolist(), 1):
                found[f"entropy_group{group}"] = entropy
        return found


def _summary(found: dict[str, float]) -> str:
    recall = f", recall at 1 {found['recall_at_1']:.2f}" if "recall_at_1" in found else ""
    return f"accuracy {found['accuracy']:.2f}{recall}"
