"""Which detection finds which labelled box, for all images and IoU thresholds at once.

COCO's rule: in the order of falling score, each detection takes the box of its class and image that it overlaps
best among those still free, if the IoU reaches the threshold. Every box thus prefers the better score and every
detection the larger IoU, so the outcome is the stable matching, and deferred acceptance (Gale and Shapley, 1962)
finds the same one with a few array operations instead of a loop over detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .inputs import Bools, Floats, Ints, Table

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""COCO's ten IoU thresholds."""

BACKGROUND_IOU = 0.1
"""A detection that overlaps every labelled box by less than this lies on sound metal."""


@dataclass(frozen=True)
class Pairs:
    """Overlapping pairs of a detection and a labelled box in one image, of any class.

    Attributes:
        dt: (P,) the detection's row in the table.
        gt: (P,) the labelled box's row.
        iou: (P,) at least :data:`BACKGROUND_IOU`; for an ignored box COCO's crowd overlap: the intersection's share
            of the detection's area.
    """

    dt: Ints
    gt: Ints
    iou: Floats

    def where(self, keep: Bools | Ints) -> Pairs:
        """The pairs that a mask or an index picks, in its order."""
        return Pairs(self.dt[keep], self.gt[keep], self.iou[keep])


@dataclass(frozen=True)
class Matches:
    """The outcome for several IoU thresholds.

    Attributes:
        gt: (T, D) the labelled box that each detection finds, or -1.
        ignored: (T, D) the detection finds none, but lies on an ignored box of its class: it does not count.
    """

    gt: Ints
    ignored: Bools

    def with_detections(self, keep: Bools) -> Matches:
        """The outcome for the detections that a mask (D,) keeps; right where those left out come after them."""
        return Matches(self.gt[:, keep], self.ignored[:, keep])


def find_pairs(table: Table) -> Pairs:
    """All pairs of a detection and a box of the same image that overlap by at least :data:`BACKGROUND_IOU`."""
    images = np.arange(table.images + 1)
    by_image = np.argsort(table.dt_image, kind="stable")
    dt_bounds = np.searchsorted(table.dt_image[by_image], images)
    gt_bounds = np.searchsorted(table.gt_image, images)
    dts, gts, ious = [], [], []
    for image in np.flatnonzero((np.diff(dt_bounds) > 0) & (np.diff(gt_bounds) > 0)):
        rows = by_image[dt_bounds[image] : dt_bounds[image + 1]]
        first, last = gt_bounds[image], gt_bounds[image + 1]
        iou = box_iou(table.dt_box[rows], table.gt_box[first:last], table.gt_ignore[first:last])
        d, g = np.nonzero(iou >= BACKGROUND_IOU)
        dts.append(rows[d])
        gts.append(g + first)
        ious.append(iou[d, g])
    if not dts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(np.concatenate(dts), np.concatenate(gts), np.concatenate(ious))


def box_iou(dt: Floats, gt: Floats, ignore: Bools) -> Floats:
    """(D, G) overlap of boxes given as x, y, width, height; for ignored boxes over the detection's area alone."""
    low = np.maximum(dt[:, None, :2], gt[None, :, :2])
    high = np.minimum(dt[:, None, :2] + dt[:, None, 2:], gt[None, :, :2] + gt[None, :, 2:])
    sides = np.maximum(high - low, 0.0)
    inter = sides[..., 0] * sides[..., 1]
    dt_area = (dt[:, 2] * dt[:, 3])[:, None]
    union = np.where(ignore[None, :], dt_area, dt_area + (gt[:, 2] * gt[:, 3])[None, :] - inter)
    iou: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def match(table: Table, pairs: Pairs, thresholds: Floats = IOU_THRESHOLDS) -> Matches:
    """Matches detections and boxes of the same class.

    Args:
        table: the boxes; detections in the order of falling score.
        pairs: from :func:`find_pairs`.
        thresholds: (T,) IoU thresholds, each at least :data:`BACKGROUND_IOU`.
    """
    same = pairs.where(table.dt_label[pairs.dt] == table.gt_label[pairs.gt])
    on_ignored = table.gt_ignore[same.gt]
    counted, crowd = same.where(~on_ignored), same.where(on_ignored)
    detections = len(table.dt_label)
    # Among equal overlaps COCO takes the box that stands last, hence -gt.
    order = np.lexsort((-counted.gt, -counted.iou, counted.dt))
    counted = counted.where(order)
    best_crowd = np.zeros(detections)
    np.maximum.at(best_crowd, crowd.dt, crowd.iou)

    found = np.full((len(thresholds), detections), -1, np.int64)
    ignored = np.zeros((len(thresholds), detections), np.bool_)
    for row, threshold in enumerate(thresholds):
        needed = min(float(threshold), 1 - 1e-10)  # COCO's bound, so that an IoU of exactly 1 reaches 1
        found[row] = _serial_choice(counted.where(counted.iou >= needed), detections, len(table.gt_label))
        ignored[row] = (found[row] < 0) & (best_crowd >= needed)
    return Matches(found, ignored)


def _serial_choice(pairs: Pairs, detections: int, boxes: int) -> Ints:
    """(D,) the box of each detection, or -1; pairs stand by detection, the most wanted box first."""
    found = np.full(detections, -1, np.int64)
    if not len(pairs.dt):
        return found
    starts = np.flatnonzero(np.diff(pairs.dt, prepend=-1))
    ends = np.append(starts[1:], len(pairs.dt))
    suitors, wish = pairs.dt[starts], starts.copy()
    while True:
        holder = np.full(boxes, detections, np.int64)
        wanted = pairs.gt[wish]
        np.minimum.at(holder, wanted, suitors)  # a box keeps the best score, i.e. the smallest row
        lost = holder[wanted] != suitors
        if not lost.any():
            found[suitors] = wanted
            return found
        wish = wish + lost
        still = wish < ends
        suitors, wish, ends = suitors[still], wish[still], ends[still]
        if not len(suitors):
            return found
