"""Maps of an image by itself: each patch against the mean of all patches of the same image.

Works where every image is defective and no normal ones are known; a defect that fills more than half of an image
comes out inverted (:mod:`.consensus` repairs that). The cost is that of the network's forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .features import FeatureMethod, draw, encoder_of, exactly
from .method import Loader
from .position import SAMPLE, PositionPart, from_mean

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .settings import MapSettings


LEAST = 1e-3
"""A layer's mean distance is taken for no smaller: on even images there is nothing but rounding."""


class Own(FeatureMethod):
    """Distance to the image's mean feature, the mean over layers, each divided by its mean over a sample of images.

    Of the pool only two things are learnt, from up to 128 images: what a feature owes to its place, and how large
    distances are in each layer.
    """

    name = "own"
    prepares_on = "images"

    position = PositionPart()
    scales: Tensor | None = None

    def default_layers(self) -> tuple[int, ...]:
        """The quarters of the depth: low-level layers see fine defects, high-level ones large."""
        return self.encoder.pick(0.25, 0.5, 0.75, 1.0)

    def to(self, device: torch.device) -> None:
        """Moves encoder, position part and scales."""
        super().to(device)
        self.position = self.position.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Learns position part and scales."""
        batches = list(self.encode_all(loader, draw(len(images), SAMPLE, self.seed)))
        self.learn([[batch[layer] for batch in batches] for layer in range(len(self.layers))])

    def learn(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """The same, from features (B, P, C) of batches for each layer."""
        self.position = PositionPart.of(samples)
        found = [torch.stack(from_mean(self.position.take_off(batch))) for batch in zip(*samples, strict=True)]
        means = torch.cat([layers.flatten(1) for layers in found], dim=1).mean(dim=1)
        self.scales = means.clamp(min=LEAST)

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`."""
        found = torch.stack(from_mean(self.position.take_off(features)))
        if self.scales is not None:
            found = found / self.scales[:, None, None]
        return found.mean(dim=0)

    def state(self) -> dict[str, Tensor]:
        """Scales (layers,) and the position part of each layer (P, C)."""
        if self.scales is None:
            return {}
        parts = {f"position.{layer}": part for layer, part in zip(self.layers, self.position.parts, strict=False)}
        return {"scales": self.scales, **parts}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self.scales = state["scales"].to(self.device)
        parts = [state[name] for layer in self.layers if (name := f"position.{layer}") in state]
        self.position = PositionPart(parts).to(self.device)


def build(options: MapSettings) -> Own:
    """The method as the options describe it."""
    return Own(encoder_of(options), options.layers, options.seed)
