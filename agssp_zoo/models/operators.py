"""Operators that a tracer keeps whole, because what is inside depends on the data: suppression and pooling by level.

The exporter has a translation of each into ONNX; everywhere else the functions are called directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agssp_zoo.models.postprocess import nms
from agssp_zoo.models.roi_pooling import pool_by_level


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, keep: int) -> Tensor:
    """The best boxes of each image that do not overlap a better one of the same label.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: (B, N); boxes with a score below 0 are left out.
        labels: (N,) int64.
        iou: the overlap from which on the worse box is dropped (more than this).
        keep: at most so many an image.

    Returns:
        (B, keep) int64, indices of the kept boxes by falling score, -1 from their end on.
    """
    kept = torch.full((len(boxes), keep), -1, dtype=torch.int64, device=boxes.device)
    for row, image_boxes, image_scores in zip(kept, boxes, scores, strict=True):
        there = (image_scores >= 0).nonzero()[:, 0]
        best = there[nms(image_boxes[there], image_scores[there], labels[there], iou)[:keep]]
        row[: len(best)] = best
    return kept


_suppress = torch.library.custom_op(
    "agssp_zoo::suppress",
    suppress,
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, Tensor labels, float iou, int keep) -> Tensor",
)
_pool_regions = torch.library.custom_op(
    "agssp_zoo::pool_regions",
    pool_by_level,
    mutates_args=(),
    schema="(Tensor[] maps, Tensor rows, Tensor level, int[] strides, int size) -> Tensor",
)


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, keep: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], keep), dtype=torch.int64)


@_pool_regions.register_fake
def _(maps: Sequence[Tensor], rows: Tensor, level: Tensor, strides: Sequence[int], size: int) -> Tensor:
    return maps[0].new_empty((rows.shape[0], maps[0].shape[1], size, size))
