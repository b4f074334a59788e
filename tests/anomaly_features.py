"""An encoder whose features a test makes up, and what the methods look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agssp_zoo.training.anomaly.encoders import Encoder
from agssp_zoo.training.anomaly.features import FeatureMethod
from agssp_zoo.training.data import Dataset, Record
from agssp_zoo.training.data.records import empty_labels


class Made(Encoder):
    """The "images" (B, layers * C, g, g) are the features themselves, layer after layer."""

    def __init__(self, layers: int = 2, grid: int = 4) -> None:
        super().__init__(grid, (0.5,) * 3, (0.5,) * 3)
        self.name, self.sha256, self.depth, self.grid = "made", "0" * 64, layers, (grid, grid)

    def reshape(self) -> None:
        self.grid = self.shape

    def features(self, batch: Tensor, layers: Sequence[int]) -> list[Tensor]:
        parts = batch.flatten(2).transpose(1, 2).chunk(self.depth, dim=-1)
        return [torch.nn.functional.normalize(parts[layer - 1].float(), dim=-1) for layer in layers]

    def pick(self, *shares: float) -> tuple[int, ...]:
        return tuple(range(1, self.depth + 1))


def pool(count: int) -> Dataset:
    """Names of so many images."""
    records = [Record(f"{n:03}", f"{n:03}.png", "train", 8, 8, *empty_labels()) for n in range(count)]
    return Dataset((), tuple(records), (), "pool", "images")


def prepared(method: FeatureMethod, images: Tensor, batch: int = 4) -> Any:
    """The method after it has looked at all images."""

    def loader(indices: Sequence[int]) -> Iterator[Tensor]:
        for at in range(0, len(indices), batch):
            yield images[list(indices[at : at + batch])]

    method.prepare(loader, pool(len(images)))
    return method


def maps_of(method: FeatureMethod, images: Tensor, batch: int = 4) -> Tensor:
    """Maps (N, gh, gw) of images."""
    return torch.cat([method.maps(part)[0] for part in images.split(batch)])


def unit(features: Tensor, layers: int) -> list[np.ndarray]:
    """The features (N, P, C) of each layer in double precision, L2-normalised, by loops over nothing."""
    parts = np.split(features.double().numpy(), layers, axis=1)
    parts = [part.reshape(*part.shape[:2], -1).transpose(0, 2, 1) for part in parts]
    return [part / np.linalg.norm(part, axis=-1, keepdims=True) for part in parts]
