"""Precision, recall and F1 over the score threshold, and the thresholds that follow from them.

A threshold t keeps the detections with a score *above* t, as ``Detector.predict(conf=t)`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .inputs import Floats, Ints, Table
from .matching import Matches, Pairs


@dataclass(frozen=True)
class ClassCurve:
    """One class at one IoU threshold; entry i describes the threshold just below the i-th distinct score.

    Attributes:
        label: index of the class.
        boxes: labelled boxes that count.
        scores: (n,) the distinct scores, falling.
        thresholds: (n,) a score threshold just below each, midway to the next smaller score.
        found: (n,) labelled boxes found, i.e. true positives.
        false_alarms: (n,) detections that find no box.
        unprovoked: (n,) of these, how many touch no labelled box at all (IoU below 0.1 with every one).
        flagged_clean: (n,) images without any labelled box that have at least one false alarm of this class.
    """

    label: int
    boxes: int
    scores: Floats
    thresholds: Floats
    found: Ints
    false_alarms: Ints
    unprovoked: Ints
    flagged_clean: Ints

    @property
    def precision(self) -> Floats:
        """(n,) share of the detections that find a box."""
        precision: Floats = self.found / np.maximum(self.found + self.false_alarms, 1)
        return precision

    @property
    def recall(self) -> Floats:
        """(n,) share of the boxes that are found; ``nan`` without boxes."""
        return self.found / self.boxes if self.boxes else np.full(len(self.found), np.nan)

    @property
    def f1(self) -> Floats:
        """(n,) harmonic mean of precision and recall; ``nan`` without boxes."""
        if not self.boxes:
            return np.full(len(self.found), np.nan)
        f1: Floats = 2.0 * self.found / (self.found + self.false_alarms + self.boxes)
        return f1

    def above(self, thresholds: Floats) -> Ints:
        """The entry that describes each threshold, -1 where it keeps nothing."""
        return np.searchsorted(-self.scores, -np.asarray(thresholds, np.float64), side="left") - 1

    def at(self, threshold: float | None) -> OperatingPoint:
        """What this class does at a threshold; ``None`` keeps nothing."""
        index = -1 if threshold is None else int(self.above(np.array([threshold]))[0])
        found, wrong = (int(self.found[index]), int(self.false_alarms[index])) if index >= 0 else (0, 0)
        recall = found / self.boxes if self.boxes else None
        return OperatingPoint(
            threshold=threshold,
            precision=found / (found + wrong) if found + wrong else None,
            recall=recall,
            f1=2.0 * found / (found + wrong + self.boxes) if self.boxes else None,
            found=found,
            false_alarms=wrong,
        )


@dataclass(frozen=True)
class OperatingPoint:
    """What a detector does at one score threshold; ``None`` where a figure has no meaning.

    Attributes:
        threshold: detections with a score above this are kept; ``None``: nothing was detected.
        precision: share of the detections that find a box.
        recall: share of the boxes that are found.
        f1: harmonic mean of the two.
        found: labelled boxes found.
        false_alarms: detections that find no box.
    """

    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    found: int
    false_alarms: int


@dataclass(frozen=True)
class ThresholdAdvice:
    """The highest threshold that misses no more than the given share of a class's boxes, and what it costs.

    Attributes:
        miss_rate: the share that may be missed.
        reachable: whether the wanted rate is reached at all; if not, the figures are those of the lowest threshold.
        threshold: the score threshold; ``None`` for a class without labelled boxes or detections.
        boxes: labelled boxes that this rests on.
        missed: of these, how many are missed at the threshold.
        missed_low: lower end of the 95 % interval of the true miss rate (Wilson, 1927).
        missed_high: upper end.
        false_alarms_per_image: expected false alarms of this class per image like those of the split.
        unprovoked_per_image: of these, how many touch no labelled box.
        clean_images_flagged: images without any label that have a false alarm of this class.
    """

    miss_rate: float
    reachable: bool
    threshold: float | None
    boxes: int
    missed: int | None
    missed_low: float | None
    missed_high: float | None
    false_alarms_per_image: float
    unprovoked_per_image: float
    clean_images_flagged: int


def class_curves(table: Table, pairs: Pairs, matches: Matches, *, floor: float = 0.0) -> tuple[ClassCurve, ...]:
    """The curves of every class for the first IoU threshold of the matches; ``floor``: no score lies below it."""
    hit, ignored = matches.gt[0] >= 0, matches.ignored[0]
    touching = np.zeros(len(table.dt_label), np.bool_)
    touching[pairs.dt] = True
    counted = np.bincount(table.gt_label[~table.gt_ignore], minlength=table.classes)
    clean = np.bincount(table.gt_image, minlength=table.images) == 0
    curves = []
    for label in range(table.classes):
        rows = np.flatnonzero((table.dt_label == label) & ~ignored)
        scores = table.dt_score[rows]
        ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # last entry of every distinct score
        wrong = ~hit[rows]
        images = table.dt_image[rows]
        first_flag = np.zeros(len(rows), np.bool_)
        on_clean = np.flatnonzero(clean[images])
        first_flag[on_clean[np.unique(images[on_clean], return_index=True)[1]]] = True
        curves.append(
            ClassCurve(
                label=label,
                boxes=int(counted[label]),
                scores=scores[ends],
                thresholds=between(scores[ends], floor),
                found=np.cumsum(hit[rows], dtype=np.int64)[ends],
                false_alarms=np.cumsum(wrong, dtype=np.int64)[ends],
                unprovoked=np.cumsum(wrong & ~touching[rows], dtype=np.int64)[ends],
                flagged_clean=np.cumsum(first_flag, dtype=np.int64)[ends],
            )
        )
    return tuple(curves)


def between(scores: Floats, floor: float = 0.0) -> Floats:
    """For falling distinct scores, a threshold just below each: midway to the next, with as few digits as will do.

    Scores are float32, and numpy compares them with a Python number as float32; so a threshold that separates two
    scores must still do so when it is rounded to float32.
    """
    below = np.append(scores[1:], floor)[: len(scores)]
    middle = (scores + below) / 2
    for digits in (6, 5, 4, 3, 2):
        short = np.round(middle, digits)
        rounded = short.astype(np.float32)
        fits = (short < scores) & (rounded < scores) & (short >= below) & (rounded >= below.astype(np.float32))
        middle = np.where(fits, short, middle)
    thresholds: Floats = np.minimum(middle, np.nextafter(scores.astype(np.float32), np.float32(-np.inf)))
    return thresholds


def best_point(curve: ClassCurve) -> OperatingPoint:
    """The threshold with the best F1 of a class (of equal ones the highest)."""
    if not curve.boxes or not len(curve.found):
        return curve.at(None)
    return curve.at(float(curve.thresholds[int(np.argmax(curve.f1))]))


def common_point(curves: Sequence[ClassCurve]) -> OperatingPoint:
    """The one threshold for all classes with the best mean F1 over the classes with boxes.

    Precision, recall and F1 are means over the classes with labelled boxes (a class that detects nothing has
    precision 0); ``found`` and ``false_alarms`` are sums over all classes.
    """
    rated = [curve for curve in curves if curve.boxes]
    candidates = [curve.thresholds for curve in rated if len(curve.thresholds)]
    if not candidates:
        recall = 0.0 if rated else None
        return OperatingPoint(None, None, recall, recall, 0, sum(c.at(0.0).false_alarms for c in curves))
    thresholds = np.unique(np.concatenate(candidates))[::-1]
    mean = np.zeros(len(thresholds))
    for curve in rated:
        mean += np.append(curve.f1, 0.0)[curve.above(thresholds)] / len(rated)  # -1, nothing kept: the appended 0
    threshold = float(thresholds[int(np.argmax(mean))])
    points = [curve.at(threshold) for curve in curves]
    own = [curve.at(threshold) for curve in rated]
    return OperatingPoint(
        threshold=threshold,
        precision=float(np.mean([p.precision or 0.0 for p in own])),
        recall=float(np.mean([p.recall or 0.0 for p in own])),
        f1=float(np.mean([p.f1 or 0.0 for p in own])),
        found=sum(p.found for p in points),
        false_alarms=sum(p.false_alarms for p in points),
    )


def advise(curve: ClassCurve, images: int, miss_rate: float) -> ThresholdAdvice:
    """The highest threshold of a class that misses at most ``miss_rate`` of its boxes."""
    allowed = math.floor(miss_rate * curve.boxes + 1e-9)
    if not len(curve.found) or not curve.boxes:
        missed = curve.boxes if curve.boxes else None
        low, high = wilson(curve.boxes, curve.boxes) if curve.boxes else (None, None)
        return ThresholdAdvice(miss_rate, False, None, curve.boxes, missed, low, high, 0.0, 0.0, 0)
    enough = np.flatnonzero(curve.boxes - curve.found <= allowed)
    index = int(enough[0]) if len(enough) else len(curve.found) - 1
    missed = curve.boxes - int(curve.found[index])
    low, high = wilson(missed, curve.boxes)
    return ThresholdAdvice(
        miss_rate=miss_rate,
        reachable=bool(len(enough)),
        threshold=float(curve.thresholds[index]),
        boxes=curve.boxes,
        missed=missed,
        missed_low=low,
        missed_high=high,
        false_alarms_per_image=float(curve.false_alarms[index]) / max(images, 1),
        unprovoked_per_image=float(curve.unprovoked[index]) / max(images, 1),
        clean_images_flagged=int(curve.flagged_clean[index]),
    )


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    share = count / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
