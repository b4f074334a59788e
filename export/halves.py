"""Two convolutions in place of one whose map is split: the same sums, without copying.

A CSP layer splits the map of its first convolution. On CPUs ONNX Runtime keeps maps in blocks of channels, but its
split does not know them: maps are put in order before it and in blocks again after it. Convolutions that make a half
each take the same products, and give the same answers.
"""

from __future__ import annotations

import contextlib
import copy

from torch import Tensor, nn

from agssp_zoo.models.layers import ConvNormAct, CSPLayer

from .replacing import replaced


def halves_apart(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Lets the CSP layers of a module make their halves apart, as long as the context lasts; its answers stay.

    Args:
        module: in evaluation mode.
    """
    return replaced([layer for layer in module.modules() if isinstance(layer, CSPLayer)], "conv_in", _Halves)


class _Halves(nn.Module):
    """Both halves of the channels of a layer, made apart."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, ConvNormAct):  # for the type checker
            raise TypeError(type(layer))
        middle = layer.conv.out_channels // 2
        self.first = _part(layer, slice(0, middle))
        self.second = _part(layer, slice(middle, None))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> twice (B, D / 2, H, W), where the layer makes D channels."""
        return self.first(x), self.second(x)


def _part(layer: ConvNormAct, channels: slice) -> ConvNormAct:
    """The layer with some of its output channels."""
    part = copy.deepcopy(layer)
    part.conv.weight = nn.Parameter(layer.conv.weight[channels].detach().clone())
    part.conv.out_channels = part.bn.num_features = len(part.conv.weight)
    part.bn.weight, part.bn.bias = (
        nn.Parameter(one[channels].detach().clone()) for one in (layer.bn.weight, layer.bn.bias)
    )
    for name in ("running_mean", "running_var"):
        setattr(part.bn, name, getattr(layer.bn, name)[channels].clone())
    return part
