"""Accuracy over episodes, with its sample size and interval."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from torchmetrics import Metric


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (low, high) of the share correct / n; z = 1.96 is 95 %. n = 0 gives (0, 1).

    Raises ValueError unless 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"wilson: correct must lie between 0 and n, got {correct} of {n}.")
    if n == 0:
        return 0.0, 1.0
    share, scale = correct / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


class EpisodeMetrics(Metric):
    """Counts over episodes; summed over ranks."""

    full_state_update = False
    n: Tensor
    correct: Tensor
    first_hits: Tensor
    last_hits: Tensor
    judged: Tensor
    recalled_at_1: Tensor
    recalled_at_k: Tensor

    def __init__(self) -> None:
        super().__init__()
        for count in ("n", "correct", "first_hits", "last_hits", "judged", "recalled_at_1", "recalled_at_k"):
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hits: Tensor, recall_at_1: bool | None = None, recall_at_k: bool | None = None) -> None:
        """Add one episode.

        hits: bool [A], which of its answer tokens were predicted right; all of them make the episode correct.
        recall_at_1, recall_at_k: whether its needles were retrieved; None where there is nothing to judge.
        """
        self.n += 1
        self.correct += int(hits.all())
        self.first_hits += int(hits[0])
        self.last_hits += int(hits[-1])
        if recall_at_1 is not None and recall_at_k is not None:
            self.judged += 1
            self.recalled_at_1 += int(recall_at_1)
            self.recalled_at_k += int(recall_at_k)

    def compute(self) -> dict[str, float | None]:
        """Counts n, correct, first_hits, last_hits; accuracy with its 95 % interval ci_low, ci_high; and recall_at_1,
        recall_at_k, shares of the episodes in which there was something to judge. Shares of no episode are None.
        """
        n, correct, judged = int(self.n), int(self.correct), int(self.judged)
        low, high = wilson(correct, n)
        return {
            "n": n,
            "correct": correct,
            "accuracy": correct / n if n else None,
            "ci_low": low if n else None,
            "ci_high": high if n else None,
            "first_hits": int(self.first_hits),
            "last_hits": int(self.last_hits),
            "recall_at_1": int(self.recalled_at_1) / judged if judged else None,
            "recall_at_k": int(self.recalled_at_k) / judged if judged else None,
        }
