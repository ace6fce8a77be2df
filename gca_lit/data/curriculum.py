"""Length stages: which row length holds at which position, and when to go on to the next one."""

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

Switch = tuple[int, int]  # (position in blocks, row length that holds from there on)


def length_at(switches: list[Switch], position: int) -> int:
    """The row length at `position`; `switches` is sorted and its first entry is at 0."""
    return switches[bisect_right(switches, position, key=lambda switch: switch[0]) - 1][1]


def check_stages(stages: list[tuple[int, int]], train_length: int) -> None:
    """Raise ValueError unless the steps begin at 0 and grow, and every length divides `train_length`."""
    steps = [step for step, _ in stages]
    if not steps or steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"stages must begin at optimizer step 0 and go upwards, these steps do not: {steps}")
    for _, length in stages:
        check_length(length, train_length, "data.stages")


def check_length(length: int, train_length: int, setting: str) -> None:
    """Raise ValueError, naming the `setting` that it comes from, unless `length` divides `train_length`."""
    if length < 1 or train_length % length:
        raise ValueError(
            f"{setting}: length {length} must be positive and divide train_length {train_length}: change one of them, "
            "or set data.stages and data.growth to null"
        )


@dataclass
class LengthRule:
    """Go on to longer rows once every task is solved at the present length.

    Args:
        start: Row length at the beginning; it divides the training length.
        check_every: Optimizer steps between two checks.
        threshold: Accuracy that every task must reach, or one for each task by name.
        window: Checks in a row whose mean must reach it.
    """

    start: int
    check_every: int = 100
    threshold: float | dict[str, float] = 0.9
    window: int = 3
    _recent: list[dict[str, float]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.check_every < 1 or self.window < 1:
            raise ValueError(f"growth needs check_every >= 1 and window >= 1, not {self.check_every} and {self.window}")
        thresholds = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"growth.threshold is an accuracy, 0 to 1, not {self.threshold}")

    def due(self, step: int) -> bool:
        """Whether to check after optimizer step `step`."""
        return step > 0 and step % self.check_every == 0

    def observe(self, accuracies: dict[str, float]) -> bool:
        """Take the accuracies of one check, by task and the same on every rank: whether to go on to the next length.

        The window begins anew after a yes. Raises ValueError for a task without a threshold.
        """
        self._check_thresholds(list(accuracies))
        self._recent = [*self._recent, accuracies][-self.window :]
        solved = len(self._recent) == self.window and all(
            sum(seen.get(name, 0.0) for seen in self._recent) / self.window
            >= (self.threshold[name] if isinstance(self.threshold, dict) else self.threshold)
            for name in accuracies
        )
        if solved:
            self._recent = []
        return solved

    def check_tasks(self, names: list[str]) -> None:
        """Raise ValueError without tasks, for a task without a threshold, and for a threshold without its task."""
        self._check_thresholds(names)
        if isinstance(self.threshold, dict) and (unknown := sorted(set(self.threshold) - set(names))):
            raise ValueError(
                f"growth.threshold names {', '.join(unknown)}, but the tasks are {', '.join(names)}: add those to "
                "data.tasks, or leave the names out"
            )

    def _check_thresholds(self, names: list[str]) -> None:
        if not names:
            raise ValueError("growth decides by task accuracies, but there is no task: add data.tasks")
        missing = sorted(set(names) - set(self.threshold)) if isinstance(self.threshold, dict) else []
        if missing:
            raise ValueError(f"growth.threshold has no entry for task {', '.join(missing)}")

    def next_length(self, length: int, train_length: int) -> int | None:
        """The smallest multiple of `length` that divides `train_length`: twice it where possible. None at the end."""
        longer = range(2 * length, train_length + 1, length)
        return next((candidate for candidate in longer if train_length % candidate == 0), None)

    def state_dict(self) -> dict[str, list[dict[str, float]]]:
        return {"recent": self._recent}

    def load_state_dict(self, state: dict[str, list[dict[str, float]]]) -> None:
        self._recent = list(state["recent"])
