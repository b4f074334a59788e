"""Operators that a tracer keeps whole: what is inside depends on the data, or on sides of maps that it gets lost in.

The exporter has a translation of each into ONNX; everywhere else the functions are called directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from agssp_zoo.models.anchors import RATIOS, base_anchors
from agssp_zoo.models.box_coder import decode
from agssp_zoo.models.postprocess import nms
from agssp_zoo.models.roi_pooling import pool_by_level


def best_anchors(objectness: Tensor, deltas: Tensor, stride: int, most: int) -> tuple[Tensor, Tensor]:
    """The boxes of a level that most likely hold an object.

    Args:
        objectness: logits (B, 3, h, w), a channel for each shape of anchors.
        deltas: (B, 3 * 4, h, w).
        stride: of the level, in input pixels.
        most: boxes an image.

    Returns:
        (B, most, 4) xyxy in input pixels, not clipped, and scores (B, most) in 0-1, falling; -1 where the level has no
        more boxes.
    """
    width, shapes = objectness.shape[-1], len(RATIOS)
    logits, every = flatten_anchors(objectness, deltas)
    best, index = functional.pad(logits.float(), (0, most), value=-torch.inf).topk(most, dim=1)
    there = index < logits.shape[1]
    index = index * there
    chosen = every.gather(1, index[..., None].expand(-1, -1, 4))
    cell = index // shapes
    corner = torch.stack([cell % width, cell // width], dim=-1).float() * stride
    anchors = torch.cat([corner, corner], dim=-1) + base_anchors(stride).to(index.device)[index % shapes]
    return decode(chosen, anchors), torch.where(there, best.sigmoid(), -1.0)


def flatten_anchors(objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, 3, h, w) and (B, 3 * 4, h, w) -> (B, h * w * 3) and (B, h * w * 3, 4), row by row."""
    return objectness.permute(0, 2, 3, 1).flatten(1), deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, keep: int, groups: int) -> Tensor:
    """The best boxes of each image that do not overlap a better one of the same label.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: (B, N); boxes with a score below 0 are left out.
        labels: (N,) int64, from 0.
        iou: the overlap from which on the worse box is dropped (more than this).
        keep: at most so many an image.
        groups: labels are below this, which the exporter needs to know.

    Returns:
        (B, keep) int64, indices of the kept boxes by falling score, -1 from their end on.
    """
    kept = torch.full((len(boxes), keep), -1, dtype=torch.int64, device=boxes.device)
    for row, image_boxes, image_scores in zip(kept, boxes, scores, strict=True):
        there = (image_scores >= 0).nonzero()[:, 0]
        best = there[nms(image_boxes[there], image_scores[there], labels[there], iou)[:keep]]
        row[: len(best)] = best
    return kept


_best_anchors = torch.library.custom_op(
    "agssp_zoo::best_anchors",
    best_anchors,
    mutates_args=(),
    schema="(Tensor objectness, Tensor deltas, int stride, int most) -> (Tensor, Tensor)",
)
_suppress = torch.library.custom_op(
    "agssp_zoo::suppress",
    suppress,
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, Tensor labels, float iou, int keep, int groups) -> Tensor",
)
_pool_regions = torch.library.custom_op(
    "agssp_zoo::pool_regions",
    pool_by_level,
    mutates_args=(),
    schema="(Tensor[] maps, Tensor rows, Tensor level, int[] strides, int size) -> Tensor",
)


@_best_anchors.register_fake
def _(objectness: Tensor, deltas: Tensor, stride: int, most: int) -> tuple[Tensor, Tensor]:
    batch = objectness.shape[0]
    return objectness.new_empty((batch, most, 4)), objectness.new_empty((batch, most))


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, keep: int, groups: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], keep), dtype=torch.int64)


@_pool_regions.register_fake
def _(maps: Sequence[Tensor], rows: Tensor, level: Tensor, strides: Sequence[int], size: int) -> Tensor:
    return maps[0].new_empty((rows.shape[0], maps[0].shape[1], size, size))
