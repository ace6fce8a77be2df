"""Cross-entropy of scored tokens in pieces, so that the logits of a long row are never held at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100


@dataclass(frozen=True)
class RowLoss:
    """Per row of a batch, [B] each: summed negative log likelihood in nats, scored tokens, tokens predicted right."""

    nll: Tensor
    count: Tensor
    correct: Tensor

    def mean(self) -> Tensor:
        """Mean over rows of a row's loss per scored token; a row without scored tokens counts as zero."""
        return (self.nll / self.count.clamp(min=1)).mean()


def chunked_cross_entropy(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, tokens_at_once: int = 4096
) -> RowLoss:
    """Cross-entropy of `logits(hidden)` against `targets`.

    Args:
        logits: [n, M] -> [n, V].
        hidden: [B, T, M].
        targets: int64 [B, T]; -100 is not scored.
        tokens_at_once: tokens whose logits are held at a time.
    """
    row, token = (targets != IGNORE).nonzero(as_tuple=True)
    wanted, scored = targets[row, token], hidden[row, token]
    nll, right = [scored.new_zeros(0, dtype=torch.float32)], [wanted.new_zeros(0)]
    for h, t in zip(scored.split(tokens_at_once), wanted.split(tokens_at_once), strict=True):
        if len(t) == len(wanted):
            piece_nll, piece_right = _piece(logits, h, t)
        else:
            piece_nll, piece_right = checkpoint(_piece, logits, h, t, use_reentrant=False)
        nll.append(piece_nll)
        right.append(piece_right)
    every_nll, every_right = torch.cat(nll), torch.cat(right)
    zeros = every_nll.new_zeros(len(targets))
    count = (targets != IGNORE).sum(1)
    correct = torch.zeros_like(count).index_add(0, row, every_right)
    return RowLoss(zeros.index_add(0, row, every_nll), count, correct)


def _piece(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits(hidden)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(scores, targets, reduction="none"), (scores.argmax(-1) == targets).long()
