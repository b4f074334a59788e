"""Anchors: boxes of fixed size and shape, for a region proposal network to move (Ren et al., arXiv 1506.01497)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from agssp_zoo.models.base import is_capturing

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors at every cell."""
SCALE = 8.0
"""Side of the square anchor, in strides of its level."""


def anchors_of(sizes: Sequence[Sequence[int]], strides: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """The anchors of every level, row by row, the three shapes of a cell side by side.

    Anchors are centred on the cells' top left corners, and their sides are not rounded. Kept for the last sizes.

    Args:
        sizes: (height, width) of every level's map.
        strides: of the levels, in input pixels.
        device: where the answer lies.

    Returns:
        for each level (h * w * 3, 4) float32 xyxy, in input pixels.
    """
    if is_capturing():
        # The sizes may be symbols here, so the anchors belong into the graph.
        return make_anchors(sizes, strides, device)
    return _cached(tuple((int(h), int(w)) for h, w in sizes), tuple(strides), device)


def make_anchors(sizes: Sequence[Sequence[int]], strides: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """:func:`anchors_of`, made anew."""
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) * stride
        x = torch.arange(width, device=device, dtype=torch.float32) * stride
        corners = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)
        cells = torch.cat([corners, corners], dim=-1)  # (h, w, 4)
        levels.append((cells[:, :, None] + base_anchors(stride).to(device)).reshape(-1, 4))
    return tuple(levels)


def base_anchors(stride: int) -> Tensor:
    """The anchors around the origin: (3, 4) float32 xyxy, all of the same area, in the order of :data:`RATIOS`."""
    root = torch.tensor(RATIOS, dtype=torch.float32, device="cpu").sqrt()
    half = 0.5 * SCALE * stride
    width, height = half / root, half * root
    return torch.stack([-width, -height, width, height], dim=-1)


@functools.lru_cache(maxsize=32)
def _cached(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Made outside inference mode, so that training may use them too."""
    with torch.inference_mode(False):
        return make_anchors(sizes, strides, device)
