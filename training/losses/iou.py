"""Overlap of boxes: IoU and complete IoU, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def complete_iou(first: Tensor, second: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of boxes that broadcast against one another.

    ``CIoU = IoU - d^2 / c^2 - a v``: d is the distance of the centres, c the diagonal of the smallest box around both,
    ``v = 4 / pi^2 (atan(w2 / h2) - atan(w1 / h1))^2`` the difference of the aspect ratios and
    ``a = v / (1 - IoU + v)`` its weight, which carries no gradient (Zheng et al., "Distance-IoU Loss", AAAI 2020,
    equations 8-11).

    Args:
        first: (..., 4) boxes x1, y1, x2, y2.
        second: (..., 4) boxes that broadcast with ``first``.
        eps: keeps divisions finite; boxes without extent are allowed.

    Returns:
        (...) values in about [-1.5, 1]; 1 only for equal boxes.
    """
    ax1, ay1, ax2, ay2 = first.unbind(-1)
    bx1, by1, bx2, by2 = second.unbind(-1)
    aw, ah = ax2 - ax1, ay2 - ay1
    bw, bh = bx2 - bx1, by2 - by1
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width * height
    iou = intersection / (aw * ah + bw * bh - intersection + eps)
    hull_width = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_height = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    diagonal = hull_width.square() + hull_height.square() + eps
    distance = ((bx1 + bx2 - ax1 - ax2).square() + (by1 + by2 - ay1 - ay2).square()) / 4
    aspect = (4 / math.pi**2) * (torch.atan(bw / (bh + eps)) - torch.atan(aw / (ah + eps))).square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (distance / diagonal + aspect * weight)


def generalized_iou(first: Tensor, second: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalized IoU of boxes that broadcast against one another.

    ``GIoU = IoU - (|C| - |A + B|) / |C|``, C the smallest box around both (Rezatofighi et al., "Generalized
    Intersection over Union", CVPR 2019, algorithm 1).

    Args:
        first: (..., 4) boxes x1, y1, x2, y2.
        second: (..., 4) boxes that broadcast with ``first``.
        eps: keeps divisions finite; boxes without extent are allowed.

    Returns:
        (...) values in [-1, 1]; 1 only for equal boxes.
    """
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection = _area((high - low).clamp(min=0))
    union = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2]) - intersection
    around = _area(hull)
    return intersection / (union + eps) - (around - union) / (around + eps)


def _area(sides: Tensor) -> Tensor:
    """(..., 2) -> (...); ``prod`` would look for zeros in its backward pass."""
    return sides[..., 0] * sides[..., 1]
