"""The building blocks of CSPDarknet, its neck and its head.

CSP layers follow Wang et al., "CSPNet" (arXiv 1911.11929), in the form that concatenates the output of every
bottleneck as in ELAN (Wang et al., arXiv 2211.04800); the pooling block is the sequential form of the spatial pyramid
pooling of He et al. (arXiv 1406.4729).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agssp_zoo.models.cpu_conv import FoldedConv

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


class ConvNormAct(nn.Module):
    """A convolution without bias, BatchNorm and SiLU: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        self.act = nn.SiLU(inplace=True)
        self._folded = FoldedConv()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves, normalises and activates."""
        return self._folded(x, self.conv, self.bn, self.act)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions of constant width, with an optional identity path around them."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 3)
        self.conv2 = ConvNormAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = self.conv2(self.conv1(x))
        return x + out if self.shortcut else out


class CSPLayer(nn.Module):
    """A cross-stage-partial layer.

    Half of the channels pass through a chain of bottlenecks; both halves and every bottleneck's output are
    concatenated and fused.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the bottlenecks work on half of them.
        num_bottlenecks: length of the chain.
        shortcut: whether the bottlenecks have an identity path.
    """

    def __init__(self, in_channels: int, out_channels: int, num_bottlenecks: int = 1, *, shortcut: bool) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv_in: nn.Module = ConvNormAct(in_channels, 2 * hidden)
        self.bottlenecks = nn.ModuleList(Bottleneck(hidden, shortcut=shortcut) for _ in range(num_bottlenecks))
        self.conv_out = ConvNormAct((2 + num_bottlenecks) * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        first = self.conv_in(x)
        return self.fuse(first if isinstance(first, tuple) else first.chunk(2, dim=1))  # a tuple: an exporter's layer

    def fuse(self, halves: Sequence[Tensor]) -> Tensor:
        """Both halves of what the first convolution makes, each (B, out / 2, H, W) -> (B, out, H, W)."""
        maps = list(halves)
        for bottleneck in self.bottlenecks:
            maps.append(bottleneck(maps[-1]))
        out: Tensor = self.conv_out(torch.cat(maps, dim=1))
        return out


class SPPF(nn.Module):
    """Spatial pyramid pooling: three 5x5 max-poolings in a row see windows of 5, 9 and 13 pixels."""

    def __init__(self, channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv_in = ConvNormAct(channels, hidden)
        self.pool = nn.MaxPool2d(kernel_size, stride=1, padding=kernel_size // 2)
        self.conv_out = ConvNormAct(4 * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        maps = [self.conv_in(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        out: Tensor = self.conv_out(torch.cat(maps, dim=1))
        return out


def initialize(module: nn.Module) -> None:
    """Draws the weights for training from scratch.

    Convolutions that a BatchNorm follows: Kaiming normal by fan-out (He et al., arXiv 1502.01852); BatchNorm: ones and
    zeros. Convolutions with a bias are prediction layers; their heads initialise them.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
