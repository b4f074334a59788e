"""Chooses how to make maps of a data set, without labels, and says why.

Where defects are rare, a few patches are far more unlike all other images than the rest: the values of ``mutual`` have
a heavy tail. Where every image shows defects, other images show them too; then patches stand out more against their
own image than against the others. So the kurtosis of ``mutual`` is compared with that of ``own`` on a sample:

- higher: ``mutual`` and ``gaussian``, the mean of both, each rescaled to 0-1 by the sample;
- else: ``consensus``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .consensus import Consensus
from .features import FeatureMethod, draw, encoder_of, exactly
from .gaussian import Gaussian
from .method import Loader
from .mutual import Mutual
from .own import Own

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .encoders import Encoder
    from .settings import MapSettings

SAMPLE = 192
"""Images that the choice is made by."""
FEWEST = 8
"""With fewer images than this there is nothing to compare with, and ``own`` is taken."""
RANGE = (0.01, 0.999)
"""Quantiles of a method's values on the sample that become 0 and 1 before the mean is taken."""

_RARE, _COMMON, _ALONE = 0, 1, 2


class Auto(FeatureMethod):
    """One of the other methods, or two of them, chosen by the pool."""

    name = "auto"
    prepares_on = "images"

    def __init__(self, encoder: Encoder, layers: Sequence[int] = (), seed: int = 0) -> None:
        self._wanted = tuple(layers)
        super().__init__(encoder, layers, seed)
        self._all = self.layers
        self.parts: list[FeatureMethod] = []
        self.ranges = torch.zeros(0, 2)
        self.kurtosis = torch.zeros(2)
        self._choice = _ALONE

    def default_layers(self) -> tuple[int, ...]:
        """All that any of the methods uses."""
        return tuple(sorted({*self.encoder.pick(0.25, 0.5, 0.75, 1.0), *self.encoder.pick(0.5, 0.75)}))

    def settings(self) -> dict[str, Any]:
        """Those of the features, with all layers that may be used."""
        return {**super().settings(), "layers": list(self._all)}

    def to(self, device: torch.device) -> None:
        """Moves encoder and what was chosen."""
        super().to(device)
        for part in self.parts:
            part.to(device)
        self.ranges = self.ranges.to(device)

    @exactly
    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Chooses, and lets the chosen ones prepare themselves."""
        own, mutual = Own(self.encoder, self._wanted, self.seed), Mutual(self.encoder, self._wanted, self.seed)
        own.to(self.device)
        mutual.to(self.device)
        self.ranges, self.kurtosis = torch.zeros(0, 2), torch.zeros(2)
        choice, sample = _ALONE, draw(len(images), SAMPLE, self.seed)
        if len(images) >= FEWEST:
            own.prepare(loader, images)
            mutual.prepare(loader, images)
            by_own, by_mutual = self._values([own, mutual], loader, sample)
            self.kurtosis = torch.stack([_kurtosis(by_own), _kurtosis(by_mutual)]).cpu()
            choice = _RARE if self.kurtosis[1] > self.kurtosis[0] else _COMMON
        self._choose(choice)
        if choice == _RARE:
            gaussian = self.parts[1]
            gaussian.prepare(loader, images)
            self.parts[0].load_state(mutual.state())
            (by_gaussian,) = self._values([gaussian], loader, sample)
            found = [_range(by_mutual), _range(by_gaussian)]
            self.ranges = torch.stack(found).to(self.device)
        else:
            self.parts[0].prepare(loader, images)

    def _choose(self, choice: int) -> None:
        kinds: dict[int, tuple[type[FeatureMethod], ...]] = {
            _RARE: (Mutual, Gaussian),
            _COMMON: (Consensus,),
            _ALONE: (Own,),
        }
        self._choice = choice
        self.parts = [kind(self.encoder, self._wanted, self.seed) for kind in kinds[choice]]
        for part in self.parts:
            part.to(self.device)
        self.layers = tuple(sorted({layer for part in self.parts for layer in part.layers}))

    def _values(self, methods: Sequence[FeatureMethod], loader: Loader, sample: Sequence[int]) -> list[Tensor]:
        """The values of some methods on a sample of images, one pass for all."""
        layers = tuple(sorted({layer for method in methods for layer in method.layers}))
        found: list[list[Tensor]] = [[] for _ in methods]
        for features in self.encode_all(loader, sample, layers):
            by_layer = dict(zip(layers, features, strict=True))
            for method, values in zip(methods, found, strict=True):
                values.append(method.distances([by_layer[layer] for layer in method.layers]).flatten())
        return [torch.cat(values) for values in found]

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """As in :class:`FeatureMethod`."""
        by_layer = dict(zip(self.layers, features, strict=True))
        found = [part.distances([by_layer[layer] for layer in part.layers]) for part in self.parts]
        if self._choice != _RARE:
            return found[0]
        pairs = zip(found, self.ranges, strict=True)
        return torch.stack([(values - low) / (high - low) for values, (low, high) in pairs]).mean(dim=0)

    def notes(self) -> tuple[str, ...]:
        """What was chosen, and why."""
        own, mutual = self.kurtosis.tolist()
        compared = f"kurtosis {mutual:.1f} of mutual against {own:.1f} of own"
        if self._choice == _RARE:
            return (f"auto: mutual and gaussian, since defects are rare in this pool ({compared})",)
        if self._choice == _COMMON:
            return (f"auto: consensus, since most images show something unusual ({compared})",)
        return ("auto: own, since there are too few images to compare with each other",)

    def state(self) -> dict[str, Tensor]:
        """The choice, and what the chosen ones have learnt."""
        found = {"choice": torch.tensor(self._choice), "ranges": self.ranges, "kurtosis": self.kurtosis}
        for part in self.parts:
            found |= {f"{part.name}.{name}": value for name, value in part.state().items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them."""
        self._choose(int(state["choice"]))
        self.ranges, self.kurtosis = state["ranges"].to(self.device), state["kurtosis"]
        for part in self.parts:
            start = f"{part.name}."
            part.load_state({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})


def _kurtosis(values: Tensor) -> Tensor:
    """The fourth moment of the standardised values; 3 for a normal distribution."""
    values = values.cpu().double()
    centred = values - values.mean()
    return (centred.pow(4).mean() / centred.square().mean().square().clamp(min=1e-12)).float()


def _range(values: Tensor) -> Tensor:
    low, high = torch.quantile(values[:: -(-len(values) // 1_000_000)], torch.tensor(RANGE, device=values.device))
    return torch.stack([low, torch.maximum(high, low + 1e-6)])


def build(options: MapSettings) -> Auto:
    """The method as the options describe it."""
    return Auto(encoder_of(options), options.layers, options.seed)
