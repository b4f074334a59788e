"""The light score that a trainer takes after every epoch, and the arithmetic that it shares with the full one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .inputs import Floats, GroundTruthLike, Ints, PredictionLike, Table, build_table
from .matching import IOU_THRESHOLDS, Matches, find_pairs, match

RECALL_POINTS: Floats = np.linspace(0.0, 1.0, 101)
"""COCO's recall points."""


@dataclass(frozen=True)
class QuickMap:
    """COCO's figures over all sizes; ``nan`` where no class has a labelled box.

    Attributes:
        map50: mean AP at IoU 0.50 over the classes with labelled boxes.
        map75: the same at IoU 0.75.
        map50_95: the same over IoU 0.50:0.05:0.95.
        ap50: AP at IoU 0.50 per class, ``nan`` for a class without labelled boxes.
        ap50_95: AP over IoU 0.50:0.05:0.95 per class.
    """

    map50: float
    map75: float
    map50_95: float
    ap50: tuple[float, ...]
    ap50_95: tuple[float, ...]


def quick_map(
    ground_truth: Sequence[GroundTruthLike],
    predictions: Sequence[PredictionLike],
    classes: int | Sequence[str],
    *,
    max_det: int = 100,
    ignore_difficult: bool = False,
) -> QuickMap:
    """COCO's mAP with numpy alone: the same numbers as :func:`evaluate`, without sizes, curves and advice.

    Args:
        ground_truth: labels, one entry an image.
        predictions: detections of the same images, in the same order and with the same class numbers.
        classes: number of classes, or their names.
        max_det: the best so many detections of a class in an image count.
        ignore_difficult: whether difficult boxes are ignored like crowd boxes, as Pascal VOC does.

    Raises:
        InvalidArgumentError: the sequences differ in length or a prediction is malformed.
        DataError: a label is malformed or its class unknown.
    """
    count = classes if isinstance(classes, int) else len(classes)
    table = build_table(ground_truth, predictions, count, max_det=max_det, ignore_difficult=ignore_difficult)
    ap = average_precisions(table, match(table, find_pairs(table)))
    per_threshold = [nan_mean(row) for row in ap]
    return QuickMap(
        map50=per_threshold[0],
        map75=per_threshold[5],
        map50_95=nan_mean(ap.ravel()),
        ap50=tuple(ap[0].tolist()),
        ap50_95=tuple(ap.mean(axis=0).tolist()),
    )


def average_precisions(table: Table, matches: Matches) -> Floats:
    """(T, C) COCO's 101-point average precision; ``nan`` for a class without labelled boxes."""
    positives = counted_boxes(table)
    result = np.full((len(matches.gt), table.classes), np.nan)
    for label in np.flatnonzero(positives):
        of_class = table.dt_label == label
        for row in range(len(matches.gt)):
            kept = of_class & ~matches.ignored[row]
            result[row, label] = interpolated_ap(matches.gt[row, kept] >= 0, int(positives[label]))
    return result


def interpolated_ap(hits: np.ndarray, positives: float, weights: Floats | None = None) -> float:
    """COCO's average precision of one class: precision made falling, read at 101 recalls, averaged.

    Args:
        hits: (n,) bool: whether each detection, by falling score, finds a box.
        positives: number of boxes to find (their weights' sum).
        weights: (n,) how often each detection counts; all once if left out.
    """
    if not len(hits):
        return 0.0
    found = np.cumsum(hits if weights is None else hits * weights, dtype=np.float64)
    total = np.arange(1.0, len(hits) + 1) if weights is None else np.cumsum(weights, dtype=np.float64)
    precision = found / np.maximum(total, np.spacing(1.0))
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    # Weighted by resampling, a class may have lost all its boxes: then nothing of it can be found.
    at = np.searchsorted(found / max(positives, np.spacing(1.0)), RECALL_POINTS, side="left")
    return float(np.append(falling, 0.0)[at].mean())


def counted_boxes(table: Table) -> Ints:
    """(C,) labelled boxes of each class that are not ignored."""
    return np.bincount(table.gt_label[~table.gt_ignore], minlength=table.classes)


def nan_mean(values: Floats) -> float:
    """The mean of the numbers among the values, ``nan`` where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


__all__ = ["IOU_THRESHOLDS", "QuickMap", "average_precisions", "interpolated_ap", "nan_mean", "quick_map"]
