"""Everything that is measured of a detector on one split, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from agssp_zoo.errors import InvalidArgumentError

from .coco import coco_numbers
from .curves import (
    ClassCurve,
    OperatingPoint,
    ThresholdAdvice,
    advise,
    best_point,
    class_curves,
    common_point,
)
from .errors import KINDS, Confusion, ImageResult, analyse
from .inputs import Bools, Floats, GroundTruthLike, PredictionLike, Table, build_table
from .matching import IOU_THRESHOLDS, Matches, find_pairs, match
from .quick import interpolated_ap, nan_mean, quick_map


@dataclass(frozen=True)
class ClassMetrics:
    """One class; AP is ``nan`` for a class without labelled boxes.

    Attributes:
        name: the class name.
        images: images with a labelled box of it that counts.
        boxes: labelled boxes that count.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ap50_95: AP over IoU 0.50:0.05:0.95.
        best_f1: the threshold with the class's best F1, and what holds there.
        at_common: the same at the threshold that all classes share.
        advice: the threshold for the wanted miss rate.
        errors: errors of each kind at the common threshold.
    """

    name: str
    images: int
    boxes: int
    ap50: float
    ap75: float
    ap50_95: float
    best_f1: OperatingPoint
    at_common: OperatingPoint
    advice: ThresholdAdvice
    errors: dict[str, int]


@dataclass(frozen=True)
class Metrics:
    """What a detector is worth on one split. Figures without meaning are ``nan`` here and null in JSON.

    Attributes:
        map50: COCO's mean AP at IoU 0.50, over the classes with labelled boxes.
        map50_95: over IoU 0.50:0.05:0.95.
        map75: at IoU 0.75.
        map_small: map50_95 of boxes below 32 x 32 pixels of the original image.
        map_medium: of boxes up to 96 x 96.
        map_large: of larger boxes.
        map50_low: lower end of the 95 % interval of map50 (percentiles over resampled images).
        map50_high: upper end.
        best_f1: the one threshold for all classes with the best mean F1; means over classes with labelled boxes.
        images: number of images.
        clean_images: of these, the ones without any labelled box.
        boxes: labelled boxes that count.
        ignored_boxes: labelled boxes that do not (crowd; difficult where these are ignored).
        difficult_boxes: labelled boxes marked difficult.
        map50_counting_difficult: map50 when difficult boxes count like all others.
        map50_ignoring_difficult: map50 when they are ignored, as Pascal VOC does.
        detections: all detections.
        classes: one entry a class.
        classes_without_boxes: names of classes that this split has no box of; they are left out of every mean.
        confusion: at the common threshold.
        iou: the IoU from which a detection finds a box, for everything but AP.
        max_det: the best so many detections of a class in an image counted for AP.
        conf: the score threshold that the predictions were made with.
        curves: precision and recall over thresholds, for plots.
        per_image: what happened in each image at the common threshold.
        precision: (R, C) precision over COCO's recall points at IoU 0.50, for plots.
    """

    map50: float
    map50_95: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    map50_low: float
    map50_high: float
    best_f1: OperatingPoint
    images: int
    clean_images: int
    boxes: int
    ignored_boxes: int
    difficult_boxes: int
    map50_counting_difficult: float
    map50_ignoring_difficult: float
    detections: int
    classes: tuple[ClassMetrics, ...]
    classes_without_boxes: tuple[str, ...]
    confusion: Confusion
    iou: float
    max_det: int
    conf: float
    curves: tuple[ClassCurve, ...] = field(repr=False)
    per_image: tuple[ImageResult, ...] = field(repr=False)
    precision: Floats = field(repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, in label order."""
        return tuple(c.name for c in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values as metrics.json holds them: no ``nan`` (null instead), no curves and images."""
        plain = {
            "map50": self.map50,
            "map50_95": self.map50_95,
            "map75": self.map75,
            "map_small": self.map_small,
            "map_medium": self.map_medium,
            "map_large": self.map_large,
            "map50_low": self.map50_low,
            "map50_high": self.map50_high,
            "best_f1": asdict(self.best_f1),
            "images": self.images,
            "clean_images": self.clean_images,
            "boxes": self.boxes,
            "ignored_boxes": self.ignored_boxes,
            "difficult_boxes": self.difficult_boxes,
            "map50_counting_difficult": self.map50_counting_difficult,
            "map50_ignoring_difficult": self.map50_ignoring_difficult,
            "detections": self.detections,
            "classes": [asdict(c) for c in self.classes],
            "classes_without_boxes": list(self.classes_without_boxes),
            "confusion": {
                "rows": [*self.class_names, None],
                "columns": [*self.class_names, None],
                "matrix": self.confusion.matrix.tolist(),
                "threshold": self.confusion.threshold,
                "iou": self.confusion.iou,
            },
            "iou": self.iou,
            "max_det": self.max_det,
            "conf": self.conf,
        }
        result: dict[str, Any] = without_nan(plain)
        return result


def evaluate(
    ground_truth: Sequence[GroundTruthLike],
    predictions: Sequence[PredictionLike],
    class_names: Sequence[str],
    *,
    max_det: int = 100,
    ignore_difficult: bool = False,
    iou: float = 0.5,
    miss_rate: float = 0.05,
    conf: float = 0.0,
    resamples: int = 200,
) -> Metrics:
    """Measures a detector's answers against the labels; needs numpy and faster-coco-eval, no torch.

    Crowd boxes are COCO's: never missed, and whatever is detected inside them does not count. Difficult boxes count
    like all others: they are defects, training learns them, and formats without that flag (YOLO's, COCO's), which most
    published figures come from, count them too. Pascal VOC's own rule leaves them out: ``ignore_difficult``; map50 is
    given both ways. Sizes are those of the boxes, in pixels of the original image.

    Args:
        ground_truth: labels, one entry an image.
        predictions: detections of the same images, in the same order and with the same class numbers; made with a
            low score threshold (0.001), for average precision needs the uncertain ones too.
        class_names: names of all classes in label order.
        max_det: the best so many detections of a class in an image count for average precision (COCO: 100). For
            everything else all count, for the model answers them all.
        ignore_difficult: whether difficult boxes are ignored like crowd boxes.
        iou: the IoU from which a detection finds a box, for everything but AP; at least 0.1.
        miss_rate: the share of a class's boxes that its advised threshold may miss, 0-1.
        conf: the score threshold that the predictions were made with.
        resamples: how often the images are resampled for map50's interval; 0: no interval.

    Raises:
        InvalidArgumentError: an argument is out of range, or a prediction is malformed.
        DataError: a label is malformed or its class unknown.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    names = tuple(class_names)
    if not 0.0 <= miss_rate < 1.0:
        raise InvalidArgumentError(f"miss_rate is {miss_rate}; give a share from 0 to below 1, e.g. 0.05 for 5 %.")
    if not 0.1 <= iou <= 1.0:
        raise InvalidArgumentError(f"iou is {iou}; it must lie in 0.1-1.")
    if resamples < 0:
        raise InvalidArgumentError(f"resamples is {resamples}; it must be at least 0.")
    if max_det < 1:
        raise InvalidArgumentError(f"max_det is {max_det}; it must be at least 1.")
    table = build_table(ground_truth, predictions, len(names), max_det=None, ignore_difficult=ignore_difficult)
    best = table.among_best(max_det)
    coco = coco_numbers(table.with_detections(best), max_det=max_det)
    pairs = find_pairs(table)
    matches = match(table, pairs, np.array([iou, IOU_THRESHOLDS[0]]))
    curves = class_curves(table, pairs, matches, floor=conf)
    common = common_point(curves)
    analysis = analyse(table, pairs, matches, common.threshold, iou)
    low, high = _interval(table.with_detections(best), matches.with_detections(best), resamples)
    counted = ~table.gt_ignore
    difficult = sum(int(np.sum(g.difficult)) for g in ground_truth)
    map50 = other = nan_mean(coco.ap[0, :, 0])
    if difficult:
        other = quick_map(
            ground_truth, predictions, len(names), max_det=max_det, ignore_difficult=not ignore_difficult
        ).map50
    classes = []
    for label, name in enumerate(names):
        ap = coco.ap[:, label, 0]
        classes.append(
            ClassMetrics(
                name=name,
                images=len(np.unique(table.gt_image[counted & (table.gt_label == label)])),
                boxes=curves[label].boxes,
                ap50=float(ap[0]),
                ap75=float(ap[5]),
                ap50_95=float(ap.mean()),
                best_f1=best_point(curves[label]),
                at_common=curves[label].at(common.threshold),
                advice=advise(curves[label], table.images, miss_rate),
                errors=dict(zip(KINDS, analysis.kinds[label].tolist(), strict=True)),
            )
        )
    return Metrics(
        map50=map50,
        map50_95=nan_mean(coco.ap[:, :, 0].ravel()),
        map75=nan_mean(coco.ap[5, :, 0]),
        map_small=nan_mean(coco.ap[:, :, 1].ravel()),
        map_medium=nan_mean(coco.ap[:, :, 2].ravel()),
        map_large=nan_mean(coco.ap[:, :, 3].ravel()),
        map50_low=low,
        map50_high=high,
        best_f1=common,
        images=table.images,
        clean_images=int((np.bincount(table.gt_image, minlength=table.images) == 0).sum()),
        boxes=int(counted.sum()),
        ignored_boxes=int(table.gt_ignore.sum()),
        difficult_boxes=difficult,
        map50_counting_difficult=other if ignore_difficult else map50,
        map50_ignoring_difficult=map50 if ignore_difficult else other,
        detections=len(table.dt_label),
        classes=tuple(classes),
        classes_without_boxes=tuple(c.name for c in classes if not c.boxes),
        confusion=analysis.confusion,
        iou=iou,
        max_det=max_det,
        conf=conf,
        curves=curves,
        per_image=analysis.images,
        precision=coco.precision[0],
    )


def _interval(table: Table, matches: Matches, resamples: int) -> tuple[float, float]:
    """The 95 % interval of map50 by the bootstrap over images (Efron, 1979), with a fixed seed."""
    if not resamples or not len(table.dt_label) or table.gt_ignore.all() or table.images < 2:
        return float("nan"), float("nan")
    hit, counts = matches.gt[1] >= 0, ~matches.ignored[1]
    per_class: list[tuple[Bools, Any, Any]] = []
    for label in range(table.classes):
        boxes = np.bincount(table.gt_image[(table.gt_label == label) & ~table.gt_ignore], minlength=table.images)
        if boxes.any():
            rows = np.flatnonzero((table.dt_label == label) & counts)
            # What stands below the last hit changes nothing.
            rows = rows[: int(np.flatnonzero(hit[rows])[-1]) + 1] if hit[rows].any() else rows[:0]
            per_class.append((hit[rows], table.dt_image[rows], boxes))
    random = np.random.default_rng(0)
    scores = []
    for _ in range(resamples):
        weights = np.bincount(random.integers(0, table.images, table.images), minlength=table.images)
        aps = []
        for hits, images, boxes in per_class:
            positives = int(boxes @ weights)
            if positives:
                aps.append(interpolated_ap(hits, positives, weights[images].astype(np.float64)))
        if aps:
            scores.append(float(np.mean(aps)))
    if not scores:  # few draws of many images with hardly a box
        return float("nan"), float("nan")
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def without_nan(value: Any) -> Any:
    """Plain values with ``None`` for every number that is none, as JSON needs."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
