"""The neck of the DETR family: every map to the same number of channels, and one more map of half the size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GROUPS = 32


class ConvNorm(nn.Module):
    """A convolution without bias and GroupNorm (Wu and He, arXiv 1803.08494).

    Args:
        in_channels: of the input.
        out_channels: of the output, a multiple of 32.
        kernel_size: of the convolution.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        norm = self.norm  # its own call refuses groups of a single value, as small maps of narrow networks have
        return torch.group_norm(self.conv(x), GROUPS, norm.weight, norm.bias, norm.eps)


class ChannelMapper(nn.Module):
    """A 1x1 convolution for every map, and a strided 3x3 one on the last (Zhu et al., arXiv 2010.04159, appendix A.4).

    Args:
        in_channels: of the maps, finest first.
        channels: of every output map.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(c, channels, 1) for c in in_channels)
        self.extra = ConvNorm(in_channels[-1], channels, 3, stride=2)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, h_i, w_i)], finest first -> the same sizes with equal channels, and one of half the last's."""
        out = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]
        return [*out, self.extra(maps[-1])]
