"""Weights against class imbalance."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def class_balance(counts: NDArray[np.int64], power: float) -> Tensor | None:
    """A factor for every class: its frequency to the power ``-power``, scaled so that the average box has factor 1.

    Args:
        counts: (C,) labelled boxes of each class; classes without any count as having one.
        power: 0 treats all boxes alike, 1 all classes.

    Returns:
        (C,) float32, or ``None`` for power 0.
    """
    if power == 0:
        return None
    known = np.maximum(counts, 1).astype(np.float64)
    factors = known**-power
    return torch.from_numpy(factors * known.sum() / (factors * known).sum()).float()
