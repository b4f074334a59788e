"""What a stricter suppression of overlapping boxes would score, so that a model's own is not taken for granted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agssp_zoo.geometry import nms

from .inputs import GroundTruthLike, Ints, Prediction, PredictionLike
from .quick import quick_map

STRICTER = 0.5
"""The IoU that is tried, what `finetune` gives YOLOv8 detectors."""
WORTH = 0.01
"""From this gain in map50 on it is worth a line."""


@dataclass(frozen=True)
class Stricter:
    """The scores with a stricter suppression.

    Attributes:
        iou: of two boxes of one class that overlap by more, the better one stays.
        map50: mean AP at IoU 0.50.
        map50_95: mean AP over IoU 0.50:0.05:0.95.
    """

    iou: float
    map50: float
    map50_95: float


def try_stricter(
    ground_truth: Sequence[GroundTruthLike],
    predictions: Sequence[PredictionLike],
    classes: int,
    *,
    max_det: int = 100,
    ignore_difficult: bool = False,
) -> Stricter:
    """Scores detections after one more suppression, at :data:`STRICTER`.

    That is nearly, not exactly, what the model would find with it: a box that was dropped for one that is dropped now
    does not come back.

    Args:
        ground_truth: labels, one entry an image.
        predictions: detections of the same images.
        classes: number of classes.
        max_det: the best so many detections of a class in an image count.
        ignore_difficult: whether difficult boxes are ignored like crowd boxes.
    """
    kept = [suppressed(one, np.asarray(one.labels), STRICTER) for one in predictions]
    score = quick_map(ground_truth, kept, classes, max_det=max_det, ignore_difficult=ignore_difficult)
    return Stricter(STRICTER, score.map50, score.map50_95)


def suppressed(one: PredictionLike, labels: Ints, iou: float) -> Prediction:
    """Detections under other labels; of two with one label that overlap by more than ``iou`` the better one stays."""
    kept = nms(one.boxes, one.scores, labels, iou)
    return Prediction(one.boxes[kept], one.scores[kept], labels[kept])
