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


TokenLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""hidden [n, M], targets int64 [n] -> `cross_entropy` of their logits."""


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, V], targets int64 [n] -> negative log likelihood in nats [n], in fp32 or wider; 1 where the largest
    logit is the target's, else 0, int64 [n]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(-1) == targets).long()


def chunked_cross_entropy(
    token_loss: TokenLoss, hidden: Tensor, targets: Tensor, tokens_at_once: int = 4096
) -> RowLoss:
    """Cross-entropy of each row, the logits of `tokens_at_once` tokens at a time.

    Args:
        token_loss: what a token costs.
        hidden: [B, T, M].
        targets: int64 [B, T]; -100 is not scored.
        tokens_at_once: tokens whose logits are held at a time.
    """
    row, token = (targets != IGNORE).nonzero(as_tuple=True)
    wanted, scored = targets[row, token], hidden[row, token]
    nll, right = [scored.new_zeros(0, dtype=torch.float32)], [wanted.new_zeros(0)]
    for h, t in zip(scored.split(tokens_at_once), wanted.split(tokens_at_once), strict=True):
        if len(t) == len(wanted):
            piece_nll, piece_right = token_loss(h, t)
        else:
            piece_nll, piece_right = checkpoint(token_loss, h, t, use_reentrant=False)
        nll.append(piece_nll)
        right.append(piece_right)
    every_nll, every_right = torch.cat(nll), torch.cat(right)
    zeros = every_nll.new_zeros(len(targets))
    count = (targets != IGNORE).sum(1)
    correct = torch.zeros_like(count).index_add(0, row, every_right)
    return RowLoss(zeros.index_add(0, row, every_nll), count, correct)
