"""The path-aggregation feature pyramid (Liu et al., "Path Aggregation Network", arXiv 1803.01534) with CSP layers.

A top-down path brings meaning to the fine maps (Lin et al., "Feature Pyramid Networks", arXiv 1612.03144), a bottom-up
path brings exact positions back to the coarse ones; maps are joined by concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.layers import ConvNormAct, CSPLayer


class PAFPN(nn.Module):
    """Fuses maps of neighbouring strides; the output has the input's shapes.

    Args:
        channels: of the maps, from the finest to the coarsest, each of twice the stride of the one before.
        num_bottlenecks: in every CSP layer.
    """

    def __init__(self, channels: Sequence[int], num_bottlenecks: int = 1) -> None:
        super().__init__()
        self.channels = tuple(channels)
        pairs = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.top_down = nn.ModuleList(
            CSPLayer(coarse + fine, fine, num_bottlenecks, shortcut=False) for fine, coarse in reversed(pairs)
        )
        self.downsample = nn.ModuleList(ConvNormAct(fine, fine, 3, 2) for fine, _ in pairs)
        self.bottom_up = nn.ModuleList(
            CSPLayer(fine + coarse, coarse, num_bottlenecks, shortcut=False) for fine, coarse in pairs
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, h_i, w_i)], finest first, each side twice the next one's -> a list of the same shapes."""
        rising = [maps[-1]]
        for layer, lateral in zip(self.top_down, reversed(maps[:-1]), strict=True):
            upsampled = F.interpolate(rising[-1], scale_factor=2.0, mode="nearest")
            rising.append(layer(torch.cat([upsampled, lateral], dim=1)))
        rising.reverse()
        out = [rising[0]]
        for downsample, layer, lateral in zip(self.downsample, self.bottom_up, rising[1:], strict=True):
            out.append(layer(torch.cat([downsample(out[-1]), lateral], dim=1)))
        return out
