"""Focal loss: classes of which most examples are easy background."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

ALPHA = 0.25
GAMMA = 2.0


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy that counts less where the answer is nearly right.

    ``-a_t (1 - p_t)^g log p_t``, with p_t the probability given to the truth, a_t = 0.25 for what is there and 0.75 for
    what is not, g = 2 (Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, equation 5).

    Args:
        logits: (...) of independent classes.
        targets: (...) 0 or 1.

    Returns:
        (...), at least 0.
    """
    score = logits.sigmoid()
    wrong = score + targets - 2 * score * targets  # 1 - p_t
    share = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return share * wrong**GAMMA * functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
