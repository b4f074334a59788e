"""Maps against the other images, none of which need be normal: what is rare in the pool is unusual.

Source: Li et al., MuSc: zero-shot industrial anomaly classification and segmentation with mutual scoring of the
unlabeled images, ICLR 2024 (``arXiv:2401.16753``): a patch's score is the mean of its distances to the images that it
is most similar to. To keep the cost linear, the others are a sample of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo.errors import DataError

from .features import FeatureMethod, draw, encoder_of, exactly
from .method import Loader
from .neighbours import nearest_by_image

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .encoders import Encoder
    from .settings import MapSettings

OTHERS = 64
"""Images that each image is compared with: a sample of the pool, the same for all."""
SHARE = 0.1
"""Of the others, the share that a patch is most similar to."""
SAME = 0.999
"""An image whose patches are all this similar is the image itself, or a copy: it says nothing of what is usual."""


class Mutual(FeatureMethod):
    """1 - cosine similarity to the most similar patch of each other image, the mean over the nearest images."""

    name = "mutual"
    prepares_on = "images"

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(encoder, layers, seed)
        self.bank: list[Tensor] = []

    def default_layers(self) -> tuple[int, ...]:
        """The middle of the depth: the last layers tell objects apart, not textures."""
        return self.encoder.pick(0.5, 0.75)

    def settings(self) -> dict[str, Any]:
        """Those of the features, and how many images are compared with."""
        return {**super().settings(), "others": OTHERS, "share": SHARE}

    def to(self, device: torch.device) -> None:
        """Moves encoder and the others."""
        super().to(device)
        self.bank = [kept.to(device) for kept in self.bank]

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Keeps the features of a sample of the pool.

        Raises:
            DataError: there is only one image.
        """
        if len(images) < 2:
            raise DataError(
                "--method mutual compares images with each other and there is only one; take --method auto, which "
                "takes own where there are few, or --method own, or give more images."
            )
        kept = list(self.encode_all(loader, draw(len(images), OTHERS, self.seed)))
        self.bank = [torch.cat([batch[layer] for batch in kept]) for layer in range(len(self.layers))]

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`; 0-2."""
        rows = [torch.zeros(0)] * len(features[0])
        for row in range(len(rows)):  # one image at a time: which of the others are copies differs
            found = [nearest_by_image(layer[row], bank) for layer, bank in zip(features, self.bank, strict=True)]
            # A layer's mean similarity is that of copies only where all its patches are found again.
            other = torch.stack([similar.mean(0) for similar in found]).amin(0) < SAME
            if not bool(other.any()):
                other = ~other
            count = max(1, int(SHARE * int(other.sum())))
            best = [similar.masked_fill(~other, -1).topk(count, dim=1).values.mean(1) for similar in found]
            rows[row] = 1 - torch.stack(best).mean(0)
        return torch.stack(rows).clamp(min=0)

    def state(self) -> dict[str, Tensor]:
        """The others' features (R, P, C) of each layer."""
        return {f"others.{layer}": kept for layer, kept in zip(self.layers, self.bank, strict=True)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self.bank = [state[f"others.{layer}"].to(self.device) for layer in self.layers]


def build(options: MapSettings) -> Mutual:
    """The method as the options describe it."""
    return Mutual(encoder_of(options), options.layers, options.seed)
