"""Pseudo-boxes: where an anomaly map is high, by the rule of AGSSP's second stage (AGDP).

The authors' rule (arXiv 2509.18919; facts in their code): the threshold of a data set is the mean over its images of
the map's maximum, minus 0.1; a map is resized to its image; each external contour above the threshold is a box, whose
score is the highest value inside; contours of fewer than ``max((H // 100) * (W // 100), 10)`` pixels are left out; the
ten best are kept, then those that overlap a better one by an IoU of more than 0.8 are dropped. Maps that are no
probabilities are put on the scale 0-1 first (:meth:`~.store.MapStore.probability`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.geometry import nms

from ..data.dataset import Dataset
from ..data.progress import progress
from .grid import Map, enlarge
from .metrics import CORNERS, labeller
from .store import MapStore

CLASS_NAME = "anomaly"
"""The one class of pseudo-boxes."""


@dataclass(frozen=True)
class BoxSettings:
    """How pseudo-boxes are made; the defaults are the authors' rule.

    Attributes:
        quantile: instead of a threshold for a data set, one for each image: this quantile of its pixels, 0-1. Every
            image that is not flat has boxes then, defective or not.
        margin: what is taken off the mean maximum of a data set; not beside ``quantile``.
        most: the best so many boxes of an image are kept.
        iou: of two boxes that overlap by more than this the better one is kept.

    Raises:
        InvalidArgumentError: a value out of range, or a margin beside a quantile.
    """

    quantile: float | None = None
    margin: float = 0.1
    most: int = 10
    iou: float = 0.8

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0.0 <= self.quantile < 1.0:
            raise InvalidArgumentError(f"quantile is {self.quantile}; it must be at least 0 and below 1.")
        if self.quantile is not None and self.margin != BoxSettings.margin:
            raise InvalidArgumentError(
                f"quantile is {self.quantile} and margin {self.margin}: a quantile takes the place of a data set's "
                "threshold, which the margin is of; give one of them."
            )
        if not 0.0 <= self.margin <= 1.0 or not 0.0 <= self.iou <= 1.0:
            raise InvalidArgumentError(f"margin is {self.margin} and iou {self.iou}; both must lie in 0-1.")
        if self.most < 1:
            raise InvalidArgumentError(f"most is {self.most}; an image must be allowed a box at least.")


@dataclass(frozen=True, eq=False)
class PseudoBoxes:
    """The pseudo-boxes of some images.

    Attributes:
        images: the images, each with its boxes as labels; one class, ``anomaly``.
        scores: for every image float32 (n,), the boxes' scores, best first.
        sources: the data set of every image.
        thresholds: the threshold of every data set; empty when each image has its own.
        settings: how they were made.
    """

    images: Dataset
    scores: tuple[NDArray[np.float32], ...]
    sources: tuple[str, ...]
    thresholds: dict[str, float]
    settings: BoxSettings

    def of(self, key: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes (n, 4) and scores (n,) of an image; none where it has none, or is not among the images."""
        row = self._rows.get(key)
        if row is None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return self.images[row].boxes, self.scores[row]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {record.key: row for row, record in enumerate(self.images)}


def pseudo_boxes(store: MapStore, images: Dataset, settings: BoxSettings | None = None) -> PseudoBoxes:
    """Makes the pseudo-boxes of images.

    Args:
        store: their maps. Thresholds come from all maps of a data set, also of images that are not asked for.
        images: the images; only their sizes are looked at. Labels they have are not.
        settings: ``None`` is the authors' rule.

    Raises:
        DataError: the store has no map of an image, or its map was made from other pixels.
        MissingDependencyError: scipy is not installed.
    """
    settings = settings or BoxSettings()
    store.check(images)
    images = replace(images, records=tuple(record for record in images if record.key in store), problems=())
    sources = tuple(store.sources[store.row(record.key)] for record in images)
    limits = thresholds(store, settings.margin) if settings.quantile is None else {}
    records, scores = [], []
    for record, source in progress(zip(images, sources, strict=True), len(images), "pseudo-boxes"):
        large = enlarge(store.probability(record.key), (record.height, record.width))
        limit = limits[source] if settings.quantile is None else float(np.quantile(large, settings.quantile))
        boxes, values = boxes_above(large, limit, most=settings.most, iou=settings.iou)
        no, none = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.bool_)
        records.append(replace(record, boxes=boxes, labels=no, crowd=none, difficult=none))
        scores.append(values)
    chosen = set(sources)
    return PseudoBoxes(
        replace(images, class_names=(CLASS_NAME,), records=tuple(records)),
        tuple(scores),
        sources,
        {source: limit for source, limit in limits.items() if source in chosen},
        settings,
    )


def thresholds(store: MapStore, margin: float = 0.1) -> dict[str, float]:
    """The threshold of every data set in a store: the mean over its images of the map's maximum, minus the margin.

    Never below 0, so that a map of zeros has no box.
    """
    highest: dict[str, list[float]] = {}
    for key, source in zip(store.keys, store.sources, strict=True):
        highest.setdefault(source, []).append(float(store.probability(key).max()))
    return {source: max(math.fsum(values) / len(values) - margin, 0.0) for source, values in highest.items()}


def least_area(height: int, width: int) -> int:
    """Contours of an image of that size that enclose fewer pixels than this are no boxes."""
    return max((height // 100) * (width // 100), 10)


def boxes_above(
    values: Map, threshold: float, *, most: int = 10, iou: float = 0.8
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The boxes of the regions above a threshold.

    Pixels that touch at an edge or a corner are one region. Holes belong to the region around them, with whatever lies
    in them: that leaves the boxes of the external contours.

    Args:
        values: float32 (H, W), a map at the size of its image.
        threshold: what pixels of a region are above.
        most: how many boxes are kept at most, the best ones; of equal scores, those of the larger regions.
        iou: of boxes that overlap by more than this the better one is kept.

    Returns:
        Boxes float32 (n, 4), x1 y1 x2 y2 in pixels with exclusive ends, best first, and their scores float32 (n,).
    """
    label, find_objects = labeller()
    above: NDArray[np.bool_] = values > threshold
    if not above.any():
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    rows, columns = _extent(np.asarray(above.any(axis=1))), _extent(np.asarray(above.any(axis=0)))
    regions, count = label(_filled(above[rows, columns]), CORNERS)
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    found = []
    for area, (down, across) in zip(areas.tolist(), find_objects(regions), strict=True):
        if area >= least_area(*values.shape):
            y1, y2 = rows.start + down.start, rows.start + down.stop
            x1, x2 = columns.start + across.start, columns.start + across.stop
            found.append((float(values[y1:y2, x1:x2].max()), area, (x1, y1, x2, y2)))
    found.sort(key=lambda entry: entry[:2], reverse=True)
    boxes = np.array([box for _, _, box in found[:most]], np.float32).reshape(-1, 4)
    scores = np.array([score for score, _, _ in found[:most]], np.float32)
    kept = nms(boxes, scores, np.zeros(len(boxes), np.int64), iou)
    return boxes[kept], scores[kept]


def _extent(used: NDArray[np.bool_]) -> slice:
    """From the first to the last true value; at least one is."""
    return slice(int(used.argmax()), len(used) - int(used[::-1].argmax()))


def _filled(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Regions with their holes filled: all but the background that reaches the border along pixel edges."""
    label, _ = labeller()
    ground, _ = label(np.pad(~above, 1, constant_values=True))
    filled: NDArray[np.bool_] = ground[1:-1, 1:-1] != ground[0, 0]
    return filled


def box_statistics(boxes: PseudoBoxes) -> list[dict[str, object]]:
    """For every data set: threshold, images with and without boxes, boxes an image, and the sizes of the boxes.

    Sizes are the sides of a square of the same area, in pixels and as a share of the image's, as quartiles.
    """
    found: list[dict[str, object]] = []
    for source in sorted(set(boxes.sources)):
        records = [record for record, name in zip(boxes.images, boxes.sources, strict=True) if name == source]
        counts = [len(record.boxes) for record in records]
        sides = [np.sqrt(np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1)) for record in records]
        shares = [side / math.sqrt(r.width * r.height) for side, r in zip(sides, records, strict=True)]
        found.append(
            {
                "source": source,
                "threshold": boxes.thresholds.get(source),
                "images": len(records),
                "with_boxes": sum(count > 0 for count in counts),
                "without_boxes": sum(count == 0 for count in counts),
                "boxes": sum(counts),
                "boxes_per_image": sum(counts) / len(records),
                "side": _quartiles(sides),
                "share_of_side": _quartiles(shares),
            }
        )
    return found


def _quartiles(values: Sequence[NDArray[np.floating]]) -> list[float] | None:
    joined = np.concatenate(values)
    return [float(value) for value in np.quantile(joined, (0.25, 0.5, 0.75))] if len(joined) else None
