"""Maps against normal images: each patch's distance to the most similar patch that is known to be normal.

Source: Roth et al., Towards total recall in industrial anomaly detection (PatchCore), CVPR 2022
(``arXiv:2106.08265``), with cosine distances of an encoder's middle layers, each layer searched by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo.errors import DataError

from .features import FeatureMethod, encoder_of, exactly
from .method import Loader
from .neighbours import coreset, nearest

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .encoders import Encoder
    from .settings import MapSettings

LARGEST = 16384
"""Patches that a layer's memory holds; of more, a coreset."""
LOOKED_AT = 16 * LARGEST
"""Patches of a layer that the coreset is chosen of; where images have more in all, each gives as many at random."""


class Memory(FeatureMethod):
    """1 - cosine similarity to the nearest patch of the normal images; the mean over layers.

    The cost of an image grows with the memory, so up to :data:`LARGEST`, not with the number of images in the pool.
    """

    name = "memory"
    prepares_on = "normal"

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0, shots: int = 0) -> None:
        super().__init__(encoder, layers, seed)
        self.shots = shots
        self.bank: list[Tensor] = []

    def default_layers(self) -> tuple[int, ...]:
        """The middle of the depth: the last layers tell objects apart, not textures."""
        return self.encoder.pick(0.5, 0.75)

    def settings(self) -> dict[str, Any]:
        """Those of the features, and the number of normal images."""
        return {**super().settings(), "shots": self.shots or "all"}

    def to(self, device: torch.device) -> None:
        """Moves encoder and memory."""
        super().to(device)
        self.bank = [kept.to(device, self._kind()) for kept in self.bank]

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Remembers the patches of the normal images; of many, those that cover the others.

        Raises:
            DataError: there are none.
        """
        if not len(images):
            raise DataError("--method memory needs normal images and was given none; name them by --normal.")
        kept: list[list[Tensor]] = [[] for _ in self.layers]
        generator = torch.Generator().manual_seed(self.seed)
        for features in self.encode_all(loader, range(len(images)), needed=True):
            count, places = features[0].shape[:2]
            share = max(1, LOOKED_AT // len(images))
            if share < places:
                chosen = torch.rand(count, places, generator=generator).argsort(1)[:, :share].to(self.device)
                features = [layer.gather(1, chosen[..., None].expand(-1, -1, layer.shape[-1])) for layer in features]
            for layer, bank in zip(features, kept, strict=True):
                bank.append(layer.flatten(0, 1).to(self._kind()))
        self.bank = []
        for parts in kept:
            bank_ = torch.cat(parts)
            parts.clear()
            self.bank.append(bank_[coreset(bank_, LARGEST, self.seed)])

    def _kind(self) -> torch.dtype:
        """What is remembered is held in half the memory where that is fast."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`; 0-2."""
        pairs = zip(features, self.bank, strict=True)
        found = [1 - nearest(layer.flatten(0, 1), kept).reshape(layer.shape[:2]) for layer, kept in pairs]
        return torch.stack(found).mean(dim=0).clamp(min=0)

    def state(self) -> dict[str, Tensor]:
        """The remembered patches (M, C) of each layer."""
        return {f"memory.{layer}": kept for layer, kept in zip(self.layers, self.bank, strict=True)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self.bank = [state[f"memory.{layer}"].to(self.device, self._kind()) for layer in self.layers]


def build(options: MapSettings) -> Memory:
    """The method as the options describe it."""
    return Memory(encoder_of(options), options.layers, options.seed, options.shots)
