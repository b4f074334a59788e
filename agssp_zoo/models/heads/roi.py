"""The second stage of Faster R-CNN: the features of each proposal -> its class and, for every class, its box.

Girshick, "Fast R-CNN" (arXiv 1504.08083), with two fully connected layers behind RoIAlign as in Lin et al., "Feature
Pyramid Networks" (arXiv 1612.03144), section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.roi_pooling import pool_regions

BOX_STD = (0.1, 0.1, 0.2, 0.2)
"""What the deltas of this stage are divided by."""


class RoIHead(nn.Module):
    """Class logits and box deltas of boxes.

    Args:
        channels: of the maps.
        num_classes: C, without background.
        strides: of the maps that are pooled from, finest first.
        width: of the fully connected layers.
        size: height and width of the pooled features.
    """

    def __init__(
        self, channels: int, num_classes: int, strides: Sequence[int], *, width: int = 1024, size: int = 7
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.size = size
        self.hidden = nn.ModuleList([nn.Linear(channels * size * size, width), nn.Linear(width, width)])
        self.class_logits = nn.Linear(width, num_classes + 1)
        self.box_deltas = nn.Linear(width, 4 * num_classes)

    def reset_parameters(self) -> None:
        """Draws new weights; the last layers with deviations 0.01 and 0.001 (Fast R-CNN, section 2.3)."""
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for last, deviation in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(last.weight, std=deviation)
            nn.init.zeros_(last.bias)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies boxes.

        Args:
            maps: [(B, channels, h_i, w_i)], finest first; as many as there are strides are looked at.
            boxes: (K, 4) xyxy, in input pixels.
            images: (K,) int64, the image of each box.

        Returns:
            class logits (K, C + 1), background last, and deltas (K, C, 4).
        """
        levels = maps[: len(self.strides)]
        x = pool_regions(levels, boxes, images, self.strides, self.size).to(levels[0].dtype).flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        deltas: Tensor = self.box_deltas(x)
        return self.class_logits(x), deltas.reshape(-1, self.num_classes, 4)


def images_of(boxes: Tensor) -> Tensor:
    """Which image each box of (B, P, 4) belongs to, when they are put in one row: (B * P,) int64."""
    numbers = torch.arange(boxes.shape[0], device=boxes.device)
    return numbers[:, None].expand(boxes.shape[0], boxes.shape[1]).reshape(-1)
