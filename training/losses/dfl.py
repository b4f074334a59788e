"""Distribution focal loss: a side's distance as a distribution over integer bins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross entropy against the two bins around the true distance, weighted linearly.

    ``-((y_(i+1) - y) log S_i + (y - y_i) log S_(i+1))`` (Li et al., "Generalized Focal Loss", NeurIPS
    2020, equation 6).

    Args:
        logits: (..., bins) unnormalised log-probabilities of the distances 0, 1, ..., bins - 1.
        distance: (...) true distance in bins, in [0, bins - 1).

    Returns:
        (...) loss, at least 0.
    """
    left = distance.floor()
    share = (distance - left)[..., None]
    index = left.long()[..., None]
    log = functional.log_softmax(logits, -1)
    pair = log.gather(-1, torch.cat([index, index + 1], -1))
    return -(pair * torch.cat([1 - share, share], -1)).sum(-1)
