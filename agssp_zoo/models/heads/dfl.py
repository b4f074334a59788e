"""The decoupled anchor-free head whose box sides are distributions.

Classes and boxes have branches of their own (Ge et al., "YOLOX", arXiv 2107.08430). Each of the four distances from a
point to the box's sides is the mean of a distribution over ``reg_max`` bins, 0 to ``reg_max - 1`` strides (Li et al.,
"Generalized Focal Loss", arXiv 2006.04388, equations 3 and 4 there).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.layers import ConvNormAct

RawOutput = tuple[Tensor, Tensor]
"""Of one level: class logits (B, C, h, w) and box logits (B, 4 * reg_max, h, w), sides left, top, right, bottom."""


class DFLHead(nn.Module):
    """The decoupled head.

    Args:
        in_channels: of the maps, finest first.
        num_classes: at least 1.
        strides: of the maps, in input pixels.
        reg_max: bins of each side's distribution.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, strides: Sequence[int] = (8, 16, 32), reg_max: int = 16
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.reg_max = reg_max
        cls_width = max(in_channels[0], num_classes)
        box_width = max(in_channels[0] // 4, 4 * reg_max)
        self.cls_branches = nn.ModuleList(_branch(c, cls_width, num_classes) for c in in_channels)
        self.box_branches = nn.ModuleList(_branch(c, box_width, 4 * reg_max) for c in in_channels)

    def reset_predictions(self) -> None:
        """Draws the last layers anew, with biases that speed up the start of training.

        Class biases are set so that about 5 objects a 640x640 image are expected at first, spread over the classes
        (the prior of Lin et al., "Focal Loss", arXiv 1708.02002, section 4.1); box biases are 1.
        """
        for stride, cls_branch, box_branch in zip(self.strides, self.cls_branches, self.box_branches, strict=True):
            cls_last, box_last = _last(cls_branch), _last(box_branch)
            cls_last.reset_parameters()
            box_last.reset_parameters()
            for layer, value in (
                (cls_last, math.log(5 / self.num_classes / (640 / stride) ** 2)),
                (box_last, 1.0),
            ):
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, value)

    def forward(self, maps: Sequence[Tensor]) -> list[RawOutput]:
        """[(B, C_i, h_i, w_i)], finest first -> the raw output of every level."""
        return [
            (cls_branch(x), box_branch(x))
            for x, cls_branch, box_branch in zip(maps, self.cls_branches, self.box_branches, strict=True)
        ]

    def decode(self, raw: Sequence[RawOutput]) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes and scores of all N points, level by level, row by row.

        Traceable with a dynamic batch, height and width. Computed in float32: in bfloat16 a coordinate of a large
        image would be off by pixels.

        Returns:
            boxes (B, N, 4) xyxy in input pixels, not clipped, and scores (B, N, C) in 0-1; both float32.
        """
        scores = torch.cat([cls.flatten(2) for cls, _ in raw], dim=2).float().sigmoid().transpose(1, 2)
        distances = self.distances(torch.cat([box.flatten(2) for _, box in raw], dim=2)).transpose(1, 2)
        points, strides = self.points(raw)
        top_left, bottom_right = distances.chunk(2, dim=-1)
        return torch.cat([points - top_left, points + bottom_right], dim=-1) * strides, scores

    def distances(self, box_logits: Tensor) -> Tensor:
        """The means of the distributions: (B, 4 * reg_max, ...) -> float32 (B, 4, ...), in strides."""
        batch, _, *rest = box_logits.shape
        logits = box_logits.reshape(batch, 4, self.reg_max, *rest).float()
        bins = torch.arange(self.reg_max, device=logits.device, dtype=torch.float32).view(-1, *(1 for _ in rest))
        # The mean of a softmax written out: runtimes transpose for a softmax over an inner dimension, and autocast
        # would round a matrix product to half precision.
        weights = (logits - logits.amax(2, keepdim=True)).exp()
        return (weights * bins).sum(2) / weights.sum(2)

    def points(self, raw: Sequence[RawOutput]) -> tuple[Tensor, Tensor]:
        """The centres of all cells in strides, (N, 2) as (x, y), and the strides in pixels, (N, 1)."""
        cls = raw[0][0]
        if is_capturing():
            # The sizes may be symbols here, so the points belong into the graph.
            return make_points([level[0].shape[-2:] for level in raw], self.strides, cls.device)
        sizes = tuple((level[0].shape[-2], level[0].shape[-1]) for level in raw)
        return _cached_points(sizes, self.strides, cls.device)


def make_points(sizes: Sequence[Sequence[int]], strides: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of the cells of all levels.

    Args:
        sizes: (height, width) of every level's map.
        strides: of the levels, in pixels.
        device: where the result lies.

    Returns:
        the points (N, 2) as (x, y) in units of their level's stride, at offset 0.5, and the strides (N, 1); float32.
    """
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        grid = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)
        points.append(grid.reshape(-1, 2))
        steps.append(torch.full_like(points[-1][:, :1], float(stride)))
    return torch.cat(points), torch.cat(steps)


@functools.lru_cache(maxsize=32)
def _cached_points(
    sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """:func:`make_points`, kept for the last sizes; made outside inference mode, so that training may use them too."""
    with torch.inference_mode(False):
        return make_points(sizes, strides, device)


def _branch(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions and the 1x1 prediction layer."""
    return nn.Sequential(
        ConvNormAct(in_channels, width, 3), ConvNormAct(width, width, 3), nn.Conv2d(width, out_channels, 1)
    )


def _last(branch: nn.Module) -> nn.Conv2d:
    """A branch's prediction layer."""
    layer = branch.get_submodule("2")
    if not isinstance(layer, nn.Conv2d):  # for the type checker; branches are made above
        raise TypeError(type(layer))
    return layer
