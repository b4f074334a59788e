"""Activation maps against anomaly maps: the losses of anomaly-guided backbone pretraining (AGSSP, arXiv 2509.18919).

A backbone's response at a place is the sum of its squared features there. Map and anomaly map are normalised over the
pixels of an image, so that only where the responses lie counts, not how strong they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Literal["cosine", "l2"]
Resizing = Literal["cumulative", "direct"]


def squared_activation(features: Tensor) -> Tensor:
    """Where a stage responds: the sum of the squared features over the channels.

    Args:
        features: (B, C, H, W) in any precision.

    Returns:
        (B, 1, H, W) float32; squares of half-precision features would overflow in their own type.
    """
    return features.float().square().sum(1, keepdim=True)


def resize_maps(maps: Tensor, sizes: Sequence[tuple[int, int]], resizing: Resizing = "cumulative") -> list[Tensor]:
    """Anomaly maps at the sizes of several stages.

    Args:
        maps: (B, 1, H, W).
        sizes: (height, width) for each stage, in the order of the stages.
        resizing: ``"cumulative"`` resizes what the stage before got, as the authors do (a coarse stage then sees an
            average); ``"direct"`` resizes the given map for each stage, which takes points of it.

    Returns:
        One (B, 1, h, w) for each size; bilinear, without ``align_corners`` and without antialiasing.
    """
    found = []
    for size in sizes:
        resized = maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)
        found.append(resized)
        maps = resized if resizing == "cumulative" else maps
    return found


def map_loss(activation: Tensor, target: Tensor, form: Form = "cosine") -> Tensor:
    """How far activation maps are from anomaly maps.

    Args:
        activation: (B, 1, H, W), not negative.
        target: (B, 1, H, W) float32.
        form: ``"cosine"``: the mean over the images of 2 - 2 cos; ``"l2"``: the sum over the pixels of the squared
            differences of the normalised maps, as a mean over the images. The two have the same value (the
            authors weigh ``"l2"`` twice) and the same gradient, up to rounding, as long as no map is all zero.

    Returns:
        A number; an anomaly map that is zero everywhere adds a constant.
    """
    a = F.normalize(activation.flatten(1).float(), dim=1)
    t = F.normalize(target.flatten(1).float(), dim=1)
    if form == "cosine":
        return (2 - 2 * (a * t).sum(1)).mean()
    return (a - t).square().sum(1).mean()


def guidance_losses(
    features: Sequence[Tensor],
    maps: Tensor,
    *,
    form: Form = "cosine",
    resizing: Resizing = "cumulative",
    visible: Tensor | None = None,
) -> Tensor:
    """The loss of every tapped stage.

    Args:
        features: of the tapped stages, in order, each (B, C_i, H_i, W_i).
        maps: the anomaly maps of the same images, (B, 1, H, W).
        form: see :func:`map_loss`.
        resizing: see :func:`resize_maps`.
        visible: where parts of the images are hidden, 1 for what can be seen and 0 for the rest, (B, 1, P, P); what is
            hidden is nowhere expected to respond.

    Returns:
        (number of stages,) float32; their sum is the authors' loss, without its weight.
    """
    activations = [squared_activation(feature) for feature in features]
    sizes = [(a.shape[-2], a.shape[-1]) for a in activations]
    targets = resize_maps(maps.float(), sizes, resizing)
    if visible is not None:
        seen = [F.interpolate(visible, size, mode="nearest") for size in sizes]
        targets = [target * part for target, part in zip(targets, seen, strict=True)]
    return torch.stack([map_loss(a, t, form) for a, t in zip(activations, targets, strict=True)])
