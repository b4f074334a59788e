"""Features of boxes, each taken from the level of the pyramid that suits its size.

RoIAlign: He et al., "Mask R-CNN" (arXiv 1703.06870), section 3; the choice of the level: Lin et al., "Feature Pyramid
Networks" (arXiv 1612.03144), equation 1, with 56 pixels a side as the size that belongs to the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agssp_zoo.models.base import is_capturing

FINEST_SIDE = 56.0
"""Boxes of less than twice this side (the root of their area) are taken from the finest level."""


def pool_regions(
    maps: Sequence[Tensor], boxes: Tensor, images: Tensor, strides: Sequence[int], size: int = 7
) -> Tensor:
    """RoIAlign on a pyramid: adaptive sampling, coordinates half a pixel off (``aligned``).

    Args:
        maps: of the pyramid, finest first, (B, C, h_i, w_i).
        boxes: (K, 4) xyxy, in input pixels.
        images: (K,) int64, the image of each box.
        strides: of the maps, each twice the one before.
        size: height and width of what is answered.

    Returns:
        (K, C, size, size) float32.
    """
    rows = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    level = level_of(boxes, len(maps))
    floats = [x.float() for x in maps]  # coordinates in half precision would be off by pixels
    if is_capturing():
        pooled: Tensor = torch.ops.agssp_zoo.pool_regions(floats, rows, level, list(strides), size)
        return pooled
    return pool_by_level(floats, rows, level, strides, size)


def level_of(boxes: Tensor, levels: int) -> Tensor:
    """The level that each box is taken from, (K, 4) -> (K,) int64, 0 being the finest."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # The small number keeps log2 finite, and a side of exactly 112 on the level above.
    return torch.log2(side / FINEST_SIDE + 1e-6).floor().clamp(0, levels - 1).to(torch.int64)


def pool_by_level(maps: Sequence[Tensor], rows: Tensor, level: Tensor, strides: Sequence[int], size: int) -> Tensor:
    """:func:`pool_regions` with the boxes of each level together; rows are (image, x1, y1, x2, y2)."""
    from torchvision.ops import roi_align  # its import costs as much as torch's

    parts, places = [], []
    for index, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        place = (level == index).nonzero()[:, 0]
        places.append(place)
        parts.append(roi_align(x, rows[place], size, 1 / stride, sampling_ratio=0, aligned=True))
    order = torch.cat(places).argsort()
    return torch.cat(parts)[order]
