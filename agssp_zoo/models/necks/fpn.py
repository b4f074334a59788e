"""The feature pyramid network (Lin et al., arXiv 1612.03144): meaning flows down to the fine maps by addition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class FPN(nn.Module):
    """1x1 convolutions to one width, a top-down path of additions, 3x3 convolutions, and one coarser map.

    The coarser map is every second pixel of the last one. torchvision's module is exactly this.

    Args:
        channels: of the maps, finest first, each of twice the stride of the one before.
        width: channels of all maps that are answered.
    """

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork  # its import costs as much as torch's
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.width = width
        self.pyramid: nn.Module = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelMaxPool())

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, h_i, w_i)], finest first -> [(B, width, h_i, w_i)] and one more map of twice the last stride."""
        return list(self.pyramid({str(level): x for level, x in enumerate(maps)}).values())
