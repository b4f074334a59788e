"""ResNet-50 (He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385), under torchvision's names.

Two variants share names and shapes and differ in where the stride of a stage's first block lies: in its 3x3
convolution (torchvision's and OpenMMLab's, often called v1.5; the default), or in its first 1x1 convolution
(the paper's, option ``v1_strides``). Weights of one give wrong features in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.config import ModelConfig
from agssp_zoo.models.backbones.base import Backbone, FeatureInfo
from agssp_zoo.models.cpu_conv import FoldedConv
from agssp_zoo.models.layers import initialize

EXPANSION = 4


class Projection(nn.Sequential):
    """A convolution and its BatchNorm: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__(conv, norm)
        self._folded = FoldedConv()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves and normalises."""
        conv, norm = self
        return self._folded(x, conv, norm)


class ResNetBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around an identity (or projected) path.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: of the block.
        v1_strides: whether the first 1x1 convolution has the stride instead of the 3x3 one.
        project: whether the identity path needs a 1x1 convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, v1_strides: bool, project: bool) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        first, second = (stride, 1) if v1_strides else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            Projection(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if project
            else None
        )
        self._folded = tuple(FoldedConv() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        first, second, third = self._folded
        identity = x if self.downsample is None else self.downsample(x)
        out = first(x, self.conv1, self.bn1, self.relu)
        out = second(out, self.conv2, self.bn2, self.relu)
        return third(out, self.conv3, self.bn3, self.relu, identity)


class ResNet(Backbone):
    """A ResNet of bottleneck blocks; the maps are the four stages' (strides 4, 8, 16, 32).

    Args:
        config: the model's configuration; ``options["v1_strides"]`` chooses the variant.
        depths: blocks in each stage.
        out_indices: see :class:`Backbone`.
    """

    spare_entries: ClassVar[tuple[str, ...]] = ("fc.",)  # ImageNet's classifier

    def __init__(
        self, config: ModelConfig, *, depths: Sequence[int] = (3, 4, 6, 3), out_indices: Sequence[int] | None = None
    ) -> None:
        widths = tuple(64 * 2**i for i in range(len(depths)))
        info = [FeatureInfo(EXPANSION * w, 4 * 2**i, f"layer{i + 1}") for i, w in enumerate(widths)]
        super().__init__(config, info, out_indices)
        v1_strides = bool(config.options.get("v1_strides", False))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self._folded = FoldedConv()
        channels = 64
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                blocks.append(ResNetBottleneck(channels, width, stride, v1_strides=v1_strides, project=block == 0))
                channels = EXPANSION * width
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))

    def reset_parameters(self) -> None:
        """Draws new weights."""
        initialize(self)

    @property
    def stem_modules(self) -> tuple[nn.Module, ...]:
        """The first convolution and its BatchNorm."""
        return (self.conv1, self.bn1)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 64, H / 4, W / 4)."""
        x = self._folded(x, self.conv1, self.bn1, self.relu)
        return F.max_pool2d(x, 3, 2, padding=1)
