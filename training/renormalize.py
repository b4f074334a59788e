"""Weights that were trained on pixels normalised in one way, rewritten for pixels normalised in another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agssp_zoo.config import Preprocess
from agssp_zoo.errors import TrainingError
from agssp_zoo.models import Backbone


def renormalize(
    backbone: Backbone, tensors: Mapping[str, Tensor], old: Preprocess, new: Preprocess
) -> dict[str, Tensor]:
    """Rewrites the first convolution, so that the same pixels give the same features.

    With x = (p - mean) / std the convolution's answer to pixels p is linear in p, so its weights take the factor
    ``new std / old std`` for each channel, and what the means add goes into its bias or into the running mean of the
    BatchNorm that follows. This holds where the kernel does not reach beyond the image; zero padding stood for the old
    mean and stands for the new one now.

    Args:
        backbone: of the architecture that the weights belong to.
        tensors: its weights by name.
        old: what they were trained with.
        new: what they will be used with.

    Returns:
        The weights; those given where nothing has to change.

    Raises:
        TrainingError: the backbone does not begin with a convolution that can be rewritten.
    """
    if (old.mean, old.std) == (new.mean, new.std):
        return dict(tensors)
    conv, norm = _first_layers(backbone)
    if f"{conv}.weight" not in tensors:
        return dict(tensors)  # weights of something else; they will not fit
    weight = tensors[f"{conv}.weight"].to(torch.float64)
    factor, shift = (torch.tensor(values, dtype=torch.float64) for values in _affine(old, new))
    added = (weight.sum((2, 3)) * shift).sum(1)
    changed = {f"{conv}.weight": weight * factor[:, None, None]}
    if f"{conv}.bias" in tensors:
        changed[f"{conv}.bias"] = tensors[f"{conv}.bias"] + added
    elif norm and f"{norm}.running_mean" in tensors:
        changed[f"{norm}.running_mean"] = tensors[f"{norm}.running_mean"] - added
    else:
        raise TrainingError(
            f"The weights were trained with pixels of mean {old.mean} and deviation {old.std}, and cannot be rewritten "
            f"for {new.mean} and {new.std}."
        )
    return {**tensors, **{name: value.to(torch.float32) for name, value in changed.items()}}


def _affine(old: Preprocess, new: Preprocess) -> tuple[list[float], list[float]]:
    """Factor and shift, for each channel, that lead from the new normalisation to the old one."""
    factor = [n / o for n, o in zip(new.std, old.std, strict=True)]
    shift = [(n - o) / s for n, o, s in zip(new.mean, old.mean, old.std, strict=True)]
    return factor, shift


def _first_layers(backbone: Backbone) -> tuple[str, str]:
    """Names of the first convolution and of the BatchNorm after it; the latter may be empty."""
    named = {module: name for name, module in backbone.named_modules()}
    layers = [layer for module in backbone.stem_modules for layer in module.modules()]
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    found = [layer for layer in layers if isinstance(layer, kinds)]
    conv = named[found[0]] if found and isinstance(found[0], nn.Conv2d) else ""
    norm = named[found[1]] if len(found) > 1 and isinstance(found[1], nn.BatchNorm2d) else ""
    return conv, norm
