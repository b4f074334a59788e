"""Maps by a normal distribution of the features: each patch against the mean at its place over the pool.

After PaDiM (Defard et al., PaDiM: a patch distribution modeling framework for anomaly detection and localization,
ICPR workshops 2020, ``arXiv:2011.08785``), with two changes: no normal images are needed, since where defects are rare
they hardly move the mean; and all places share one covariance, so that a thousand images are enough for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .features import FeatureMethod, draw, encoder_of, exactly
from .method import Loader

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .encoders import Encoder
    from .settings import MapSettings

IMAGES = 1024
"""The distribution is estimated from up to so many images."""
SHRINK = 0.3
"""Added to every variance, in units of the mean variance: directions that hardly vary must not decide."""
FEWEST = 8
"""With fewer images than this there is one mean for all places."""


class Gaussian(FeatureMethod):
    """Mahalanobis distance to the mean at the patch's place; the mean over layers."""

    name = "gaussian"
    prepares_on = "images"

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(encoder, layers, seed)
        self.means: list[Tensor] = []
        self.roots: list[Tensor] = []

    def default_layers(self) -> tuple[int, ...]:
        """The middle of the depth: the last layers tell objects apart, not textures."""
        return self.encoder.pick(0.5, 0.75)

    def to(self, device: torch.device) -> None:
        """Moves encoder and distribution."""
        super().to(device)
        self.means, self.roots = [m.to(device) for m in self.means], [r.to(device) for r in self.roots]

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Estimates the distribution in one pass over up to :data:`IMAGES` images."""
        count, sums, products = 0, list[Tensor](), list[Tensor]()
        for features in self.encode_all(loader, draw(len(images), IMAGES, self.seed)):
            if not sums:
                # Where a sum is taken of many, its double precision is the CPU's: not every device has one.
                sums = [torch.zeros(f.shape[1:], dtype=torch.float64) for f in features]
                products = [torch.zeros(f.shape[-1], f.shape[-1], device=f.device) for f in features]
            count += len(features[0])
            for total, product, layer in zip(sums, products, features, strict=True):
                total += layer.sum(0).cpu()
                flat = layer.flatten(0, 1)
                product += flat.T @ flat
        self.means, self.roots = [], []
        for total, product in zip(sums, products, strict=True):
            mean = total / count
            if count < FEWEST:
                mean = mean.mean(0, keepdim=True).expand_as(mean)
            # The mean over images and places of (f - m)(f - m)^T, of sums that one pass gives.
            cross = mean.T @ total
            covariance = (product.cpu() - cross - cross.T + count * mean.T @ mean) / (count * len(mean))
            values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
            values = values.clamp(min=0)
            root = vectors / (values + SHRINK * values.mean().clamp(min=1e-8)).sqrt()
            self.means.append(mean.float().contiguous().to(self.device))
            self.roots.append(root.float().contiguous().to(self.device))

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`."""
        pairs = zip(features, self.means, self.roots, strict=True)
        found = [((layer - mean) @ root).square().mean(-1).sqrt() for layer, mean, root in pairs]
        return torch.stack(found).mean(dim=0)

    def state(self) -> dict[str, Tensor]:
        """Means (P, C) and roots of the inverse covariance (C, C) of each layer."""
        found: dict[str, Tensor] = {}
        for layer, mean, root in zip(self.layers, self.means, self.roots, strict=True):
            found |= {f"mean.{layer}": mean, f"root.{layer}": root}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self.means = [state[f"mean.{layer}"].to(self.device) for layer in self.layers]
        self.roots = [state[f"root.{layer}"].to(self.device) for layer in self.layers]


def build(options: MapSettings) -> Gaussian:
    """The method as the options describe it."""
    return Gaussian(encoder_of(options), options.layers, options.seed)
