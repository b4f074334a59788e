"""Positions as sines and cosines of many wave lengths.

Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762, section 3.5), in two dimensions as in Carion et al.,
"DETR" (arXiv 2005.12872, appendix A.4); boxes as in Liu et al., "DAB-DETR" (arXiv 2201.12329, section 4.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPS = 1e-6


def encode(values: Tensor, channels: int) -> Tensor:
    """Sines and cosines of values.

    Args:
        values: (...) in turns: 1 is one whole wave of the shortest length.
        channels: an even number.

    Returns:
        (..., channels) float32, in turn the sine and the cosine of one wave length, which grows from 1 to nearly
        ``TEMPERATURE`` turns.
    """
    step = torch.arange(channels // 2, dtype=torch.float32, device=values.device) * (2 / channels)
    angle = values.float()[..., None] * (2 * math.pi) / TEMPERATURE**step
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def encode_map(rows: Tensor, columns: Tensor, channels: int) -> Tensor:
    """Positions of a map's pixels, relative to its valid part.

    Args:
        rows: (B, h) bool, which rows are valid; those come first.
        columns: (B, w) bool, likewise.
        channels: of the encoding, divisible by 4.

    Returns:
        (B, h, w, channels) float32: the first half encodes y, the second x, of the pixels' centres.
    """
    encoded = []
    for valid in (rows, columns):
        number = valid.sum(1, keepdim=True)
        centres = torch.arange(valid.shape[1], dtype=torch.float32, device=valid.device) + 0.5
        encoded.append(encode(centres / (number + EPS), channels // 2))
    y, x = encoded
    height, width = rows.shape[1], columns.shape[1]
    return torch.cat([y[:, :, None].expand(-1, -1, width, -1), x[:, None].expand(-1, height, -1, -1)], -1)


def encode_boxes(boxes: Tensor, channels: int) -> Tensor:
    """Boxes (..., 4) cx, cy, w, h, relative to the image -> (..., channels) float32: y, x, w, h, a quarter each."""
    return encode(boxes[..., [1, 0, 2, 3]], channels // 4).flatten(-2)
