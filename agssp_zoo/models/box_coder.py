"""Boxes as shifts and stretches of reference boxes (Girshick et al., "R-CNN", arXiv 1311.2524, appendix C).

A delta (dx, dy, dw, dh) moves the reference's centre by dx of its width and dy of its height, and multiplies its sides
by exp(dw) and exp(dh). Networks predict deltas divided by a standard deviation, so that all four are of a size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_STRETCH = math.log(1000 / 16)
"""dw and dh are cut at this: a side grows or shrinks by 62.5 at most, so that exp() never overflows."""
PLAIN = (1.0, 1.0, 1.0, 1.0)


def encode(boxes: Tensor, references: Tensor, std: Sequence[float] = PLAIN) -> Tensor:
    """The deltas that lead from references to boxes.

    Args:
        boxes: (..., 4) xyxy, in pixels.
        references: (..., 4) xyxy, in pixels, of positive width and height.
        std: what the deltas are divided by.

    Returns:
        (..., 4) float32.
    """
    sides = references[..., 2:] - references[..., :2]
    shift = 0.5 * (boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]) / sides
    stretch = ((boxes[..., 2:] - boxes[..., :2]) / sides).log()
    return torch.cat([shift, stretch], dim=-1) / shift.new_tensor(std)


def decode(deltas: Tensor, references: Tensor, std: Sequence[float] = PLAIN) -> Tensor:
    """The boxes that deltas make of references; all of (..., 4), broadcasting. In float32."""
    shift, stretch = (deltas.float() * torch.tensor(std, device=deltas.device)).chunk(2, dim=-1)
    top_left, bottom_right = references.chunk(2, dim=-1)
    sides = bottom_right - top_left
    centre = (top_left + bottom_right) * 0.5 + sides * shift
    half = 0.5 * sides * stretch.clamp(-MAX_STRETCH, MAX_STRETCH).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cuts boxes off at the borders of their images.

    Args:
        boxes: (B, ..., 4) xyxy, in pixels.
        sizes: (B, 2) height and width of each image.
    """
    limits = sizes.to(boxes.dtype).flip(-1).repeat(1, 2)  # width, height, width, height
    limits = limits.reshape(-1, *(1 for _ in boxes.shape[1:-1]), 4)
    return torch.minimum(boxes.clamp(min=0), limits)
