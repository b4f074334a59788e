"""KeAD: anomaly maps by text, and by a few normal images where there are some.

Source: Liu et al., Advancing metallic surface defect detection via anomaly-guided pretraining on a large industrial
dataset, Pattern Recognition 2026, section 3 (``arXiv:2509.18919``). Per tap of the image tower, a patch's score is

    softmax((cos(patch, normal), cos(patch, abnormal)) / 0.07)[abnormal]

and the map is the mean over the taps. With normal images, 0.5 * (1 - cos) to the nearest of all their patches, again
the mean over the taps, is added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo.errors import DataError, InvalidArgumentError

from .clip import DEFAULT_MODEL, Clip, load_clip
from .method import AnomalyMethod, Loader
from .methods import method_names
from .prompts import PromptSet, load_prompts
from .text import sentences, text_features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data.dataset import Dataset
    from .settings import MapSettings

DEFAULT_OBJECT = "generic_metal"
TEMPERATURE = 0.07
_BLOCK = 1 << 24
"""At most this many similarities are held at once."""


class Kead(AnomalyMethod):
    """KeAD with a CLIP model.

    Args:
        clip: the model; its text tower is let go.
        prompts: what the object looks like.
        few_shot: remember normal images; else the maps go by the text alone.
        shots: how many of them, exactly; 0: all that :meth:`prepare` is given.
        cache: folder for text features; left out: the user's cache.

    Raises:
        InvalidArgumentError: ``shots`` without normal images, or a description that is too long for the model.
    """

    name = "kead"

    def __init__(
        self, clip: Clip, prompts: PromptSet, *, few_shot: bool = False, shots: int = 0, cache: Path | None = None
    ) -> None:
        if shots < 0 or (shots and not few_shot):
            raise InvalidArgumentError(
                f"--shots {shots}, but there are no normal images; name them by --normal (a folder, or a split), or "
                "leave --shots out for maps by text alone."
            )
        self.few_shot, self.shots = few_shot, shots
        self.prompts = prompts
        # Few-shot maps are sums that pass 1.
        self.bounded = not few_shot
        self.prepares_on = "normal" if few_shot else "nothing"
        self.text: Tensor = text_features(clip, prompts, cache).to(next(clip.paths.parameters()).device)
        self.clip = dataclasses.replace(clip, module=None)
        self.memory: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> None:
        """Moves the image tower, the text features and the memory to a device."""
        self.clip.paths.to(device)
        self.text = self.text.to(device)
        self.memory = tuple(tokens.to(device) for tokens in self.memory)

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """The image squashed onto the network's canvas, as :meth:`.clip.Clip.preprocess` does it."""
        return self.clip.preprocess(image)

    def settings(self) -> dict[str, Any]:
        """Model, its weights, input, taps, sentences and shots."""
        return {
            "method": self.name,
            "encoder": self.clip.name,
            "weights_sha256": self.clip.sha256,
            "quick_gelu": self.clip.quick_gelu,
            "size": list(self.clip.size),
            "taps": list(self.clip.paths.taps),
            "object": self.prompts.object,
            "sentences_sha256": sentences(self.prompts).sha256,
            "temperature": TEMPERATURE,
            "shots": (self.shots or "all") if self.few_shot else 0,
        }

    def prepare(self, loader: Loader, images: Dataset) -> None:
        """Remembers the patches of the normal images at each tap: of the first ``shots``, or of all.

        Raises:
            DataError: there are fewer images than that, or one cannot be read.
        """
        if not self.few_shot:
            return
        count = self.shots or len(images)
        if len(images) < max(1, count):
            raise DataError(
                f"{images.path or '--normal'}: {len(images) or 'no'} normal images, but --shots asks for "
                f"{self.shots or 'all'}; give a folder with enough of them as --normal, a smaller --shots, or neither "
                "for maps by text alone."
            )
        taps: list[list[Tensor]] = [[] for _ in self.clip.paths.taps]
        seen = 0
        for batch in loader(range(count)):
            for offset, image in enumerate(batch):
                if not bool(image.any()):  # no picture has values of exactly the mean everywhere
                    raise DataError(f"{images[seen + offset].path}: the normal image cannot be read; replace it.")
            seen += len(batch)
            for tokens, kept in zip(self._patches(batch), taps, strict=True):
                kept.append(tokens.flatten(0, 1))
        self.memory = tuple(torch.cat(kept) for kept in taps)

    def _patches(self, batch: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            patches: tuple[Tensor, ...] = self.clip.paths(batch.to(self.text.device)).patches
        return patches

    def state(self) -> dict[str, Tensor]:
        """The remembered patches of each tap, (k * N, D)."""
        return {f"memory.{tap}": tokens.cpu() for tap, tokens in zip(self.clip.paths.taps, self.memory, strict=False)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes remembered patches.

        Raises:
            DataError: they are of other taps or of another number of images.
        """
        names = [f"memory.{tap}" for tap in self.clip.paths.taps] if self.few_shot else []
        patches = self.clip.paths.grid[0] * self.clip.paths.grid[1]
        found = {state[name].shape[0] / patches for name in names if name in state}
        if sorted(state) != sorted(names) or (self.shots and found != {self.shots}):
            raise DataError("What was learnt of normal images is not of this method's settings; make it again.")
        self.memory = tuple(state[name].to(self.text.device) for name in names)

    def maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, gh, gw) and image scores (B,).

        The score is the probability of the image's embedding; with normal images, its mean with the map's maximum.

        Raises:
            DataError: normal images were asked for, but :meth:`prepare` has seen none.
        """
        if self.few_shot and not self.memory:
            raise DataError("KeAD is to compare with normal images and was given none; name them by --normal.")
        with torch.no_grad():
            found = self.clip.paths(batch)
        # Where the network computes in half precision, the comparison does not: the temperature magnifies differences.
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            maps = torch.stack([self._probability(tokens) for tokens in found.patches]).mean(dim=0)
            scores = self._probability(found.image)
            if self.few_shot:
                away = [_distance(tokens, kept) for tokens, kept in zip(found.patches, self.memory, strict=True)]
                maps = maps + torch.stack(away).mean(dim=0)
                scores = (scores + maps.amax(dim=1)) / 2
        return maps.reshape(-1, *self.clip.paths.grid), scores

    def _probability(self, features: Tensor) -> Tensor:
        """The abnormal entry of the softmax for features (..., D), (...)."""
        # Of two classes the softmax is the logistic function of the difference.
        return ((features @ (self.text[1] - self.text[0])) / TEMPERATURE).sigmoid()


def build(options: MapSettings) -> Kead:
    """The method as the options of ``agssp-zoo anomaly-maps`` describe it.

    Raises:
        InvalidArgumentError, DataError: no prompts for the object, or something is wrong with them.
        ModelNotFoundError, HubError, CheckpointError: the model or its weights cannot be had.
    """
    prompts = load_prompts(options.object or DEFAULT_OBJECT)
    options = _with_own_network(options)
    clip = load_clip(
        options.encoder or DEFAULT_MODEL,
        options.encoder_weights or None,
        size=options.size or None,
        taps=options.layers or None,
    )
    return Kead(clip, prompts, few_shot=bool(options.normal), shots=options.shots)


def _with_own_network(options: MapSettings) -> MapSettings:
    """The options with kead's network as the encoder: of a combination the encoder is that of the other methods.

    Raises:
        InvalidArgumentError: two networks, or two files of weights, for kead alone.
    """
    model, weights = options.clip, options.clip_weights
    if len(method_names(options.method)) > 1:
        return dataclasses.replace(options, encoder=model, encoder_weights=weights, size=0, layers=())
    for flag, one, other in (("", options.encoder, model), ("-weights", options.encoder_weights, weights)):
        if one and other and one != other:
            raise InvalidArgumentError(
                f"--encoder{flag} {one} and --clip{flag} {other}: for --method kead alone both name its CLIP model; "
                "give one of them."
            )
    return dataclasses.replace(
        options, encoder=options.encoder or model, encoder_weights=options.encoder_weights or weights
    )


def _distance(tokens: Tensor, memory: Tensor) -> Tensor:
    """0.5 * (1 - cos) of each patch to the nearest one remembered.

    Args:
        tokens: (B, N, D), L2-normalised.
        memory: (M, D), L2-normalised.

    Returns:
        (B, N), 0-1.
    """
    patches = tokens.flatten(0, 1)
    nearest = torch.full((len(patches),), -1.0, dtype=tokens.dtype, device=tokens.device)
    for block in torch.split(memory, max(1, _BLOCK // len(patches))):
        nearest = torch.maximum(nearest, (patches @ block.T).amax(dim=1))
    return (0.5 * (1 - nearest)).clamp(min=0).reshape(tokens.shape[:2])
