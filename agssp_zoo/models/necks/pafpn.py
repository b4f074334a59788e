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


class TopDownLayer(CSPLayer):
    """A CSP layer that reads a map and the one of twice its stride, brought to the same size.

    Args:
        coarse_channels: of the map of twice the stride.
        lateral_channels: of the other.
        out_channels: of what is made of them.
        num_bottlenecks: as of a CSP layer.
    """

    def __init__(self, coarse_channels: int, lateral_channels: int, out_channels: int, num_bottlenecks: int) -> None:
        super().__init__(coarse_channels + lateral_channels, out_channels, num_bottlenecks, shortcut=False)
        self.coarse_channels = coarse_channels

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:  # type: ignore[override]
        """(B, coarse, H / 2, W / 2) and (B, lateral, H, W) -> (B, out, H, W)."""
        upsampled = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return super().forward(torch.cat([upsampled, lateral], dim=1))


class PAFPN(nn.Module):
    """Fuses maps of neighbouring strides; the output has the input's sides.

    Args:
        in_channels: of the maps, from the finest to the coarsest, each of twice the stride of the one before.
        channels: of the fused maps; default those of the input. The first layer that reads a map brings it to them.
        num_bottlenecks: in every CSP layer.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: Sequence[int] | None = None, num_bottlenecks: int = 1
    ) -> None:
        super().__init__()
        self.channels = tuple(in_channels if channels is None else channels)
        if len(self.channels) != len(in_channels):
            raise ValueError(f"{len(in_channels)} maps go in and {len(self.channels)} come out; as many are needed.")
        rising = [*self.channels[:-1], in_channels[-1]]
        pairs = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.top_down = nn.ModuleList(
            TopDownLayer(rising[level + 1], in_channels[level], fine, num_bottlenecks)
            for level, fine in reversed(list(enumerate(self.channels[:-1])))
        )
        self.downsample = nn.ModuleList(ConvNormAct(fine, fine, 3, 2) for fine, _ in pairs)
        self.bottom_up = nn.ModuleList(
            CSPLayer(fine + lateral, coarse, num_bottlenecks, shortcut=False)
            for (fine, coarse), lateral in zip(pairs, rising[1:], strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, in_i, h_i, w_i)], finest first, each side twice the next one's -> [(B, C_i, h_i, w_i)]."""
        rising = [maps[-1]]
        for layer, lateral in zip(self.top_down, reversed(maps[:-1]), strict=True):
            rising.append(layer(rising[-1], lateral))
        rising.reverse()
        out = [rising[0]]
        for downsample, layer, lateral in zip(self.downsample, self.bottom_up, rising[1:], strict=True):
            out.append(layer(torch.cat([downsample(out[-1]), lateral], dim=1)))
        return out
