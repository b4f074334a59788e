"""What a backbone says about its feature maps; without torch, for both engines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map of a backbone.

    Attributes:
        channels: its channels.
        reduction: its stride, in input pixels.
        name: the stage that makes it, as in the module's state dict.
    """

    channels: int
    reduction: int
    name: str
