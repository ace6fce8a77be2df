"""What is counted while the episodes of one point (task, placement, length, depth) are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gca_lit.scoring import Network, Score, recall, score
from gca_lit.tasks.metrics import wilson

if TYPE_CHECKING:
    from gca_lit.memory.base import ChunkStore
    from gca_lit.tasks.base import Episode

SUMMED = ("n", "correct", "first_hits", "last_hits", "judged", "recall_at_1", "recall_at_k", "tokens", "nll", "scored")
LARGEST = ("seconds", "peak_device", "device", "host", "disk", "out_of_memory")
BUCKET_STARTS = torch.tensor([0] + [1 << power for power in range(40)])


class Tally:
    """Sums over episodes, the largest of each measurement, and NLL by position for perplexity."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(SUMMED, 0.0)
        self.largest = dict.fromkeys(LARGEST, 0.0)
        self.buckets = torch.zeros(2, len(BUCKET_STARTS), dtype=torch.float64)  # tokens, nll

    def score(
        self, model: Network, episodes: Sequence[Episode], device: torch.device, segment: int, store: ChunkStore
    ) -> None:
        """Score episodes of one length in one batch, teacher forced, and count them."""
        tokens = torch.stack([episode.tokens for episode in episodes])
        targets = torch.stack([episode.targets for episode in episodes])
        asked = [episode.asked for episode in episodes if episode.needles]
        read_from = min(asked) if asked and model.chunk_size else None
        self.add(score(model, tokens, targets, segment, store, read_from), episodes, model.chunk_size)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            self.largest["peak_device"] = max(self.largest["peak_device"], peak)

    def add(self, scored: Score, episodes: Sequence[Episode], chunk_size: int | None) -> None:
        """Count one scored batch; an episode is correct when all its scored tokens are."""
        sums = self.sums
        for row, episode in enumerate(episodes):
            hits = scored.correct[scored.rows == row]
            sums["n"] += 1
            sums["correct"] += bool(hits.all())
            sums["first_hits"] += bool(hits[:1].all())
            sums["last_hits"] += bool(hits[-1:].all())
            at_1, at_k = recall(scored, episode, chunk_size, row)
            if at_k is not None:
                sums["judged"] += 1
                sums["recall_at_1"] += bool(at_1)
                sums["recall_at_k"] += at_k
        sums["tokens"] += scored.tokens
        sums["nll"] += float(scored.nll.double().sum())
        sums["scored"] += len(scored.nll)
        bucket = torch.bucketize(scored.positions, BUCKET_STARTS, right=True) - 1
        self.buckets[0].index_add_(0, bucket, torch.ones_like(scored.nll, dtype=torch.float64))
        self.buckets[1].index_add_(0, bucket, scored.nll.double())
        self.largest["seconds"] += scored.seconds
        for tier in ("device", "host", "disk"):
            self.largest[tier] = max(self.largest[tier], scored.bytes[tier])

    def reduce(self, reduce: Callable[[Tensor, str], Tensor]) -> None:
        """Join the tallies of all ranks; `reduce(tensor, "sum" | "max")` acts over the ranks."""
        sums = reduce(torch.tensor([*self.sums.values()], dtype=torch.float64), "sum")
        largest = reduce(torch.tensor([*self.largest.values()], dtype=torch.float64), "max")
        self.sums = dict(zip(SUMMED, sums.tolist(), strict=True))
        self.largest = dict(zip(LARGEST, largest.tolist(), strict=True))
        self.buckets = reduce(self.buckets, "sum").cpu()

    def measured(self) -> dict[str, Any]:
        """Speed and memory: tokens/s of all ranks together, bytes of the rank that holds most."""
        seconds, cuda = self.largest["seconds"], self.largest["peak_device"] > 0
        return {
            "tokens_per_second": round(self.sums["tokens"] / seconds, 1) if seconds else None,
            "peak_device_bytes": int(self.largest["peak_device"]) if cuda else None,
            "host_bytes": int(self.largest["host"]),
            "disk_bytes": int(self.largest["disk"]),
            "state_bytes": int(self.largest["device"]),
        }

    def answers(self) -> dict[str, Any]:
        """Exact match with its Wilson interval, hits of the first and last answer token, recall of the needles."""
        n, correct, judged = int(self.sums["n"]), int(self.sums["correct"]), self.sums["judged"]
        low, high = wilson(correct, n) if n else (None, None)
        return {
            "n": n,
            "correct": correct,
            "accuracy": correct / n if n else None,
            "ci_low": low,
            "ci_high": high,
            "first_hits": int(self.sums["first_hits"]),
            "last_hits": int(self.sums["last_hits"]),
            "recall_at_1": self.sums["recall_at_1"] / judged if judged else None,
            "recall_at_k": self.sums["recall_at_k"] / judged if judged else None,
        }

    def perplexity(self, length: int) -> dict[str, Any]:
        """Total NLL / total tokens, and by position when whole episodes of `length` tokens were scored."""
        n, scored = int(self.sums["n"]), int(self.sums["scored"])
        row: dict[str, Any] = dict.fromkeys(self.answers()) | {"n": n, "scored_tokens": scored}
        nll = self.sums["nll"] / scored if scored else None
        row["nll"] = _finite(nll)
        row["perplexity"] = math.exp(nll) if nll is not None and nll < 100 else None
        row["position_buckets"] = self._position_buckets() if n and scored >= n * (length - 1) else None
        return row

    def _position_buckets(self) -> list[dict[str, float | None]]:
        starts = BUCKET_STARTS.tolist()
        return [
            {"start": start, "stop": 2 * start or 1, "scored_tokens": int(tokens), "nll": _finite(nll / tokens)}
            for start, tokens, nll in zip(starts, *self.buckets.tolist(), strict=True)
            if tokens
        ]


def _finite(number: float | None) -> float | None:
    """JSON knows no NaN."""
    return number if number is not None and math.isfinite(number) else None
