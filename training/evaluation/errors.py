"""What goes wrong at one score threshold: confused classes, kinds of errors, and the images they happen in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .inputs import Bools, Ints, Table
from .matching import Matches, Pairs

KINDS = ("missed", "wrong_class", "misplaced", "duplicate", "unprovoked")
"""Kinds of errors: a labelled box without a detection; a detection on a box of another class; one that overlaps a box
by less than the IoU threshold; a second one on a box already found; and one that touches no box."""


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which, at one threshold.

    Attributes:
        matrix: int64 (C + 1, C + 1): rows are labelled classes, the last row "no label"; columns are detected
            classes, the last column "not detected". The diagonal holds the boxes found, as in recall.
        threshold: the score threshold; ``None`` when nothing was detected.
        iou: the IoU from which a detection and a box belong together.
    """

    matrix: Ints
    threshold: float | None
    iou: float


@dataclass(frozen=True)
class ImageResult:
    """One image at the common threshold.

    Attributes:
        index: its place in the sequence that was evaluated.
        boxes: labelled boxes that count.
        found: of these, the found ones.
        false_alarms: detections that find no box.
        certainty: mean score of the detections that find a box, 0 without one.
        missed_boxes: rows of the image's ground truth that are missed.
        ignored_boxes: rows of its ground truth that do not count.
        detections: rows of its predictions above the threshold, best first.
        hits: of these, whether each finds a box.
        ignored_detections: of these, whether each lies on a box that does not count.
    """

    index: int
    boxes: int
    found: int
    false_alarms: int
    certainty: float
    missed_boxes: tuple[int, ...]
    ignored_boxes: tuple[int, ...]
    detections: tuple[int, ...]
    hits: tuple[bool, ...]
    ignored_detections: tuple[bool, ...]

    @property
    def errors(self) -> int:
        """Missed boxes and false alarms."""
        return self.boxes - self.found + self.false_alarms

    @property
    def f1(self) -> float:
        """F1 of this image; 1 where there is nothing to find and nothing was found."""
        total = self.found + self.false_alarms + self.boxes
        return 2.0 * self.found / total if total else 1.0


@dataclass(frozen=True)
class ErrorAnalysis:
    """Confusion, kinds of errors and images at one threshold.

    Attributes:
        confusion: see :class:`Confusion`.
        kinds: int64 (C, len(KINDS)): errors of each class and kind; a missed box counts for its own class, a wrong
            detection for the class it claims.
        images: one entry an image.
    """

    confusion: Confusion
    kinds: Ints
    images: tuple[ImageResult, ...]


def analyse(table: Table, pairs: Pairs, matches: Matches, threshold: float | None, iou: float) -> ErrorAnalysis:
    """Sorts every detection above ``threshold`` and every labelled box.

    Args:
        table: the boxes.
        pairs: all overlapping pairs.
        matches: its first row is for ``iou``.
        threshold: the score threshold, ``None``: nothing was detected.
        iou: the IoU threshold.
    """
    kept = table.dt_score > (np.inf if threshold is None else threshold)
    finds = np.where(kept, matches.gt[0], -1)
    ignored = kept & matches.ignored[0]
    found = np.zeros(len(table.gt_label), np.bool_)
    found[finds[finds >= 0]] = True
    wrong = kept & (finds < 0) & ~ignored
    missed = ~found & ~table.gt_ignore
    mistaken = _mistaken(table, pairs, wrong, missed, iou)

    classes = table.classes
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    hits = np.flatnonzero(finds >= 0)
    np.add.at(matrix, (table.gt_label[finds[hits]], table.dt_label[hits]), 1)
    taken = np.flatnonzero(mistaken >= 0)
    np.add.at(matrix, (table.gt_label[mistaken[taken]], table.dt_label[taken]), 1)
    lost = missed.copy()
    lost[mistaken[taken]] = False
    matrix[:-1, -1] = np.bincount(table.gt_label[lost], minlength=classes)
    matrix[-1, :-1] = np.bincount(table.dt_label[wrong & (mistaken < 0)], minlength=classes)
    return ErrorAnalysis(
        Confusion(matrix, threshold, iou),
        _kinds(table, pairs, wrong, missed, iou),
        _images(table, kept, finds, ignored, found),
    )


def _mistaken(table: Table, pairs: Pairs, wrong: Bools, missed: Bools, iou: float) -> Ints:
    """(D,) the missed box of another class that a wrong detection took, one to one, the better overlap first."""
    result = np.full(len(table.dt_label), -1, np.int64)
    taken = np.zeros(len(table.gt_label), np.bool_)
    usable = pairs.where((pairs.iou >= iou) & wrong[pairs.dt] & missed[pairs.gt])
    for row in np.lexsort((usable.dt, -usable.iou)):
        dt, gt = usable.dt[row], usable.gt[row]
        if result[dt] < 0 and not taken[gt]:
            result[dt] = gt
            taken[gt] = True
    return result


def _kinds(table: Table, pairs: Pairs, wrong: Bools, missed: Bools, iou: float) -> Ints:
    """(C, len(KINDS)) errors by class and kind."""
    detections = len(table.dt_label)
    same = table.dt_label[pairs.dt] == table.gt_label[pairs.gt]
    over = pairs.iou >= iou

    def any_pair(mask: Bools) -> Bools:
        flags = np.zeros(detections, np.bool_)
        flags[pairs.dt[mask]] = True
        return flags

    counted = ~table.gt_ignore[pairs.gt]
    duplicate = wrong & any_pair(same & over & counted)
    other = wrong & ~duplicate & any_pair(~same & over)
    misplaced = wrong & ~duplicate & ~other & any_pair(np.ones(len(pairs.dt), np.bool_))
    unprovoked = wrong & ~duplicate & ~other & ~misplaced
    columns = [table.gt_label[missed], *(table.dt_label[m] for m in (other, misplaced, duplicate, unprovoked))]
    return np.stack([np.bincount(labels, minlength=table.classes) for labels in columns], axis=1)


def _images(table: Table, kept: Bools, finds: Ints, ignored: Bools, found: Bools) -> tuple[ImageResult, ...]:
    """One result an image."""
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(table.dt_image[rows], kind="stable")]
    edges = np.arange(table.images + 1)
    dt_at = np.searchsorted(table.dt_image[rows], edges)
    gt_at = np.searchsorted(table.gt_image, edges)
    results = []
    for image in range(table.images):
        mine = rows[dt_at[image] : dt_at[image + 1]]
        boxes = slice(gt_at[image], gt_at[image + 1])
        hits, skipped = finds[mine] >= 0, ignored[mine]
        counted = ~table.gt_ignore[boxes]
        results.append(
            ImageResult(
                index=image,
                boxes=int(counted.sum()),
                found=int(hits.sum()),
                false_alarms=int((~hits & ~skipped).sum()),
                certainty=float(table.dt_score[mine[hits]].mean()) if hits.any() else 0.0,
                missed_boxes=_rows(table.gt_index[boxes][counted & ~found[boxes]]),
                ignored_boxes=_rows(table.gt_index[boxes][~counted]),
                detections=_rows(table.dt_index[mine]),
                hits=tuple(hits.tolist()),
                ignored_detections=tuple(skipped.tolist()),
            )
        )
    return tuple(results)


def _rows(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(values.tolist())
