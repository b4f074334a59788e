"""A 1x1 convolution before a map is enlarged in place of behind it: the same sums, a quarter of the products.

On its way down the pyramid a map is enlarged to the double, each value four times, joined with the finer map, and read
by a 1x1 convolution. The convolution of the joined maps is the sum of two, one a map; and as it looks at one place at a
time, it may be computed before its map is enlarged.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.layers import ConvNormAct
from agssp_zoo.models.necks.pafpn import PAFPN, TopDownLayer

from .replacing import replaced


def coarse_first(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Lets the necks of a module convolve maps before they are enlarged, as long as the context lasts.

    Args:
        module: in evaluation mode. Its answers stay the same up to rounding.
    """
    necks = [neck for neck in module.modules() if isinstance(neck, PAFPN)]
    return replaced(necks, "top_down", lambda layers: nn.ModuleList(_CoarseFirst(layer) for layer in layers))


class _CoarseFirst(nn.Module):
    """What a top-down layer computes, with its first convolution in four parts: for each half, one of each map."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, TopDownLayer) or not isinstance(layer.conv_in, ConvNormAct):  # for the type checker
            raise TypeError(type(layer))
        self.layer, self.act = layer, layer.conv_in.act
        weight, bias = _folded(layer.conv_in)
        coarse = layer.coarse_channels
        self.small = nn.ModuleList(_pointwise(part[:, :coarse]) for part in weight.chunk(2))
        pairs = zip(weight.chunk(2), bias.chunk(2), strict=True)
        self.large = nn.ModuleList(_pointwise(part[:, coarse:], added) for part, added in pairs)

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """As :class:`TopDownLayer`."""
        halves = [
            self.act(large(lateral) + F.interpolate(small(coarse), scale_factor=2.0, mode="nearest"))
            for small, large in zip(self.small, self.large, strict=True)
        ]
        return self.layer.fuse(halves)


def _folded(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution together with its BatchNorm."""
    norm = layer.bn
    if norm.running_mean is None or norm.running_var is None:  # for the type checker
        raise TypeError(type(norm))
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (layer.conv.weight * scale[:, None, None, None]).detach(), (norm.bias - norm.running_mean * scale).detach()


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight.clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.clone())
    return conv
