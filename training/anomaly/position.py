"""What a feature owes to its place in the image alone, and not to what is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE = 128
"""Images of which the parts are estimated."""
FEWEST = 16
"""With fewer images the mean at a place would be made of what is on them, so nothing is taken off."""


class PositionPart:
    """The mean feature at each place, less the mean over all places: Transformers tell where a patch lies.

    Attributes:
        parts: (P, C) for each layer; empty where there were too few images.
    """

    def __init__(self, parts: Sequence[Tensor] = ()) -> None:
        self.parts = tuple(parts)

    @classmethod
    def of(cls, samples: Sequence[Sequence[Tensor]]) -> PositionPart:
        """Estimates it.

        Args:
            samples: for each layer, features (B, P, C) of some batches.
        """
        if sum(len(batch) for batch in samples[0]) < FEWEST:
            return cls()
        means = [torch.cat([batch.sum(0, keepdim=True) for batch in layer]).sum(0) for layer in samples]
        means = [mean / sum(len(batch) for batch in layer) for mean, layer in zip(means, samples, strict=True)]
        return cls([mean - mean.mean(0) for mean in means])

    def take_off(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, P, C) of each layer without their position's part."""
        if not self.parts:
            return list(features)
        return [layer - part for layer, part in zip(features, self.parts, strict=True)]

    def to(self, device: torch.device) -> PositionPart:
        """The same on another device."""
        return PositionPart([part.to(device) for part in self.parts])


def from_mean(features: Sequence[Tensor]) -> list[Tensor]:
    """Distance of every patch from the mean of its own image's patches.

    Args:
        features: (B, P, C) for each layer.

    Returns:
        (B, P) for each layer.
    """
    # |f - m|^2 = |f|^2 - 2 f.m + |m|^2 needs no array of differences, and is a tenth of the time.
    found = []
    for layer in features:
        mean = layer.mean(dim=1, keepdim=True)
        square = (layer.square().sum(-1) - 2 * (layer @ mean.transpose(1, 2))[..., 0] + mean.square().sum(-1)).clamp(0)
        found.append(square.sqrt())
    return found


def normalized(features: Sequence[Tensor]) -> list[Tensor]:
    """L2-normalised along the channels."""
    return [F.normalize(layer, dim=-1) for layer in features]
