"""Maps by what the images of a pool have in common in being unusual: :mod:`.own`, made consistent over all images.

A patch that stands out in its own image teaches a linear function of the features what unusual patches look like; the
function then judges every patch of the pool by the same measure. So an image of which a defect covers the larger part
comes out right where other images show the same defect on a smaller one. The function's own judgement, with the upper
part stressed, is what it learns next, a few times over (self-training).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .features import FeatureMethod, draw, encoder_of, exactly
from .method import Loader
from .own import Own

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .encoders import Encoder
    from .settings import MapSettings

IMAGES = 1024
PATCHES = 64
"""The function learns from this many patches of each of so many images."""
ROUNDS = 12
"""Fewer leave the errors of ``own`` in; after thirty the function drifts away from what it was taught."""
RIDGE = 0.3
"""Weight of the penalty, in units of the mean variance of a feature."""
SLOPE = 4.0
"""How sharply the upper part is stressed."""


class Consensus(FeatureMethod):
    """A ridge regression from the features of all layers to how unusual a patch is, 0-1."""

    name = "consensus"
    prepares_on = "images"

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(encoder, layers, seed)
        self.own = Own(encoder, self.layers, seed)
        self.weights, self.offset, self.mean = torch.zeros(0), torch.zeros(()), torch.zeros(())

    def default_layers(self) -> tuple[int, ...]:
        """The middle of the depth: low layers teach noise, and the last ones tell objects apart, not textures."""
        return self.encoder.pick(0.5, 0.75)

    def settings(self) -> dict[str, Any]:
        """Those of the features, and how the function is learnt."""
        return {**super().settings(), "rounds": ROUNDS, "ridge": RIDGE, "slope": SLOPE}

    def to(self, device: torch.device) -> None:
        """Moves encoder and all that was learnt."""
        super().to(device)
        self.own.to(device)
        self.weights, self.offset, self.mean = (t.to(device) for t in (self.weights, self.offset, self.mean))

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Learns the function from patches of up to :data:`IMAGES` images."""
        self.own.prepare(loader, images)
        generator = torch.Generator().manual_seed(self.seed)
        rows, targets = [], []
        for features in self.encode_all(loader, draw(len(images), IMAGES, self.seed)):
            count, places = features[0].shape[:2]
            chosen = torch.rand(count, places, generator=generator).argsort(1)[:, :PATCHES].to(self.device)
            rows.append(_take(self._describe(features), chosen).half())
            targets.append(self.own.distances(features).gather(1, chosen).flatten())
        self._learn(torch.cat(rows), torch.cat(targets))

    def _learn(self, rows: Tensor, target: Tensor) -> None:
        """Solves for the weights, round after round; of the rows (n, D) only products are held in float32."""
        size = rows.shape[1]
        mean = sum((block.float().sum(0) for block in torch.split(rows, 8192)), torch.zeros(size, device=rows.device))
        mean = mean / len(rows)
        gram = torch.zeros(size, size, device=rows.device)
        for block in torch.split(rows, 8192):
            centred = block.float() - mean
            gram += centred.T @ centred
        gram = gram.cpu()  # solving is little work, and not every device can do it
        penalty = RIDGE * gram.diagonal().mean().clamp(min=1e-6)
        factor = torch.linalg.cholesky(gram + penalty * torch.eye(size))
        for _ in range(ROUNDS):
            wanted = target - target.mean()
            pairs = zip(torch.split(rows, 8192), torch.split(wanted, 8192), strict=True)
            moment = sum(((block.float() - mean).T @ part for block, part in pairs), torch.zeros_like(mean))
            weights = torch.cholesky_solve(moment.cpu()[:, None], factor)[:, 0].to(rows.device)
            judged = torch.cat([(block.float() - mean) @ weights for block in torch.split(rows, 8192)])
            spread = judged.std().clamp(min=1e-6)
            target = _stress(judged / spread)
        self.weights, self.offset, self.mean = weights / spread, -(mean @ weights) / spread, mean

    def _describe(self, features: Sequence[Tensor]) -> Tensor:
        """(B, P, C) for each layer -> (B, P, D), without what is due to the position."""
        return torch.cat(self.own.position.take_off(features), dim=-1)

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`; 0-1."""
        return _stress(self._describe(features) @ self.weights + self.offset)

    def state(self) -> dict[str, Tensor]:
        """The function, and what ``own`` has learnt."""
        learnt = {"weights": self.weights, "offset": self.offset, "mean": self.mean}
        return {**learnt, **{f"own.{name}": value for name, value in self.own.state().items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self.weights, self.offset, self.mean = (state[k].to(self.device) for k in ("weights", "offset", "mean"))
        self.own.load_state({k.removeprefix("own."): v for k, v in state.items() if k.startswith("own.")})


def _stress(values: Tensor) -> Tensor:
    """Standardised values -> 0-1, half at one deviation above the mean: about a sixth of the patches lie above."""
    return torch.sigmoid(SLOPE * (values - 1))


def _take(described: Tensor, chosen: Tensor) -> Tensor:
    """(B, P, D) and places (B, k) -> (B * k, D)."""
    return described.gather(1, chosen[..., None].expand(-1, -1, described.shape[-1])).flatten(0, 1)


def build(options: MapSettings) -> Consensus:
    """The method as the options describe it."""
    return Consensus(encoder_of(options), options.layers, options.seed)
