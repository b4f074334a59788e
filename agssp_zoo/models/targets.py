"""The labelled boxes of a batch, as losses take them and as detectors that sample by them while training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The labelled boxes of a batch, filled up to the same number for every image.

    Attributes:
        labels: (B, M) int64 classes; anything where ``mask`` is false.
        boxes: (B, M, 4) float32, xyxy in input pixels.
        mask: (B, M) bool, which rows are boxes.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same targets on another device."""
        return Targets(*(t.to(device, non_blocking=True) for t in (self.labels, self.boxes, self.mask)))
