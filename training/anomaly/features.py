"""What the methods without text share: an encoder's patch features, and how a map gives an image's score."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agssp_zoo.errors import DataError, InvalidArgumentError

from .encoders import Encoder, load_encoder
from .method import AnomalyMethod, Loader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..data.dataset import Dataset
    from .settings import MapSettings

TOP_SHARE = 0.01
"""The image's score is the mean over this share of its patches, the highest ones: steadier than the maximum alone."""


_Method = TypeVar("_Method", bound="FeatureMethod")


def exactly(
    prepare: Callable[[_Method, Loader, Dataset], None],
) -> Callable[[_Method, Loader, Dataset], None]:
    """A ``prepare`` whose statistics are computed in full precision, and only the encoder in the driver's."""

    @functools.wraps(prepare)
    def run(method: _Method, loader: Loader, images: Dataset) -> None:
        method.note_precision()
        with torch.no_grad(), exact(method.device):
            prepare(method, loader, images)

    return run


def exact(device: torch.device) -> torch.autocast:
    """What is computed of features is computed in float32, whatever the encoder's precision."""
    return torch.autocast(device.type, enabled=False)


class FeatureMethod(AnomalyMethod):
    """A method that goes by the features of an encoder.

    Args:
        encoder: the network.
        layers: whose features are compared, from 1; empty for the method's own choice.
        seed: of what is drawn.

    Raises:
        InvalidArgumentError: the encoder has no such layer.
    """

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0) -> None:
        self.encoder, self.seed = encoder, seed
        self.layers = tuple(sorted(set(layers))) or self.default_layers()
        if self.layers[0] < 1 or self.layers[-1] > encoder.depth:
            raise InvalidArgumentError(
                f"--layers {' '.join(map(str, self.layers))}: {encoder.name} has layers 1 to {encoder.depth}."
            )
        self.device = torch.device("cpu")

    @abc.abstractmethod
    def default_layers(self) -> tuple[int, ...]:
        """The layers that serve this method best."""

    @abc.abstractmethod
    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """Anomaly of every patch.

        Args:
            features: (B, P, C) for each of the method's layers, L2-normalised.

        Returns:
            (B, P).
        """

    def to(self, device: torch.device) -> None:
        """Moves the encoder; subclasses, what was learnt."""
        self.encoder.to(device)
        self.device = device

    def fit(self, aspect: float) -> None:
        """Gives the encoder's input the proportions of the images."""
        self.encoder.fit(aspect)

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """The image resized to the encoder's input."""
        return self.encoder.preprocess(image)

    def note_precision(self) -> None:
        """Keeps in mind which arithmetic the driver wants of the encoder, also where the rest is exact."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):
            self.encoder.mixed = torch.get_autocast_dtype(kind)

    def encode(self, batch: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Features of a batch, on the method's device.

        Args:
            batch: float32 (B, 3, H, W).
            layers: left out, the method's.
        """
        self.note_precision()
        half, kind = self.encoder.mixed, self.device.type
        with torch.no_grad(), torch.autocast(kind, half, enabled=half is not None):
            return self.encoder.features(batch.to(self.device), self.layers if layers is None else layers)

    def encode_all(
        self, loader: Loader, indices: Sequence[int], layers: Sequence[int] | None = None, *, needed: bool = False
    ) -> Iterator[list[Tensor]]:
        """Features of some images, batch after batch, without the images that cannot be read.

        Args:
            loader: as :meth:`prepare` is given it.
            indices: of the images.
            layers: left out, the method's.
            needed: that none of them can be read is an error; else the features of an empty image stand for them.

        Raises:
            DataError: none could be read.
        """
        empty, found = None, False
        for batch in loader(indices):
            read = batch.flatten(1).any(dim=1)  # what cannot be read comes as zeros
            if bool(read.any()):
                found = True
                yield self.encode(batch if bool(read.all()) else batch[read], layers)
            else:
                empty = batch[:1]
        if not found and empty is not None:
            if needed:
                raise DataError(f"--method {self.name}: not one of the {len(indices)} images it needs can be read.")
            yield self.encode(empty, layers)

    def maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, gh, gw) and scores (B,), the mean of the highest :data:`TOP_SHARE` of the patches."""
        features = self.encode(batch)
        with torch.no_grad(), exact(self.device):
            found = self.distances(features)
        return found.reshape(-1, *self.encoder.grid), top_mean(found)

    def settings(self) -> dict[str, Any]:
        """Encoder, its weights, input and layers, and the seed."""
        return {
            "method": self.name,
            "encoder": self.encoder.name,
            "weights_sha256": self.encoder.sha256,
            "size": self.encoder.size,
            **({} if self.encoder.square else {"aspect": "keep"}),
            "layers": list(self.layers),
            "seed": self.seed,
        }


def top_mean(maps: Tensor) -> Tensor:
    """Image scores of maps (B, P): the mean of the highest :data:`TOP_SHARE`."""
    count = max(1, round(maps.shape[1] * TOP_SHARE))
    return maps.topk(count, dim=1).values.mean(dim=1)


def draw(total: int, count: int, seed: int) -> list[int]:
    """Indices of ``count`` images out of ``total``, ascending, drawn by the seed; all where there are no more."""
    if count >= total:
        return list(range(total))
    return sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())


def encoder_of(options: MapSettings) -> Encoder:
    """The encoder that the options name."""
    square = options.aspect == "square"
    return load_encoder(options.encoder, options.encoder_weights, size=options.size, square=square)
