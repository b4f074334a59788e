"""CSPDarknet in the shape of YOLOv8: a strided convolution and a CSP layer a stage, spatial pyramid pooling at the end.

Widths and depths of one base network are scaled by two factors, as in Scaled-YOLOv4 (Wang et al., arXiv 2011.08036).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.models.backbones.base import Backbone, FeatureInfo
from agssp_zoo.models.layers import SPPF, ConvNormAct, CSPLayer, initialize

BASE_CHANNELS = (64, 128, 256, 512, 1024)  # the stem and the four stages
BASE_DEPTHS = (3, 6, 6, 3)  # bottlenecks in each stage


class CSPDarknet(Backbone):
    """The CSPDarknet backbone; the maps are the four stages' (strides 4, 8, 16, 32).

    Args:
        config: the model's configuration.
        width: factor on the channels.
        depth: factor on the number of bottlenecks.
        out_indices: see :class:`Backbone`.
    """

    def __init__(
        self, config: ModelConfig, *, width: float, depth: float, out_indices: Sequence[int] | None = None
    ) -> None:
        channels = [round(width * c) for c in BASE_CHANNELS]
        info = [FeatureInfo(c, 4 * 2**i, f"stage{i + 1}") for i, c in enumerate(channels[1:])]
        super().__init__(config, info, out_indices)
        self.stem = ConvNormAct(3, channels[0], 3, 2)
        for index, base_depth in enumerate(BASE_DEPTHS):
            out_channels = channels[index + 1]
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["downsample"] = ConvNormAct(channels[index], out_channels, 3, 2)
            layers["csp"] = CSPLayer(out_channels, out_channels, max(round(depth * base_depth), 1), shortcut=True)
            if index == len(BASE_DEPTHS) - 1:
                layers["sppf"] = SPPF(out_channels)
            self.add_module(f"stage{index + 1}", nn.Sequential(layers))

    def reset_parameters(self) -> None:
        """Draws new weights."""
        initialize(self)

    @property
    def stem_modules(self) -> tuple[nn.Module, ...]:
        """The first convolution."""
        return (self.stem,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 2, W / 2)."""
        out: Tensor = self.stem(x)
        return out
