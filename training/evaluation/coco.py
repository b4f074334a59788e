"""COCO's numbers by faster-coco-eval, the reference that other papers and tools agree with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from agssp_zoo.errors import MissingDependencyError

from .inputs import Floats, Table
from .matching import IOU_THRESHOLDS
from .quick import RECALL_POINTS

AREA_RANGES: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's sizes, in square pixels of the original image; the area is that of the box."""


@dataclass(frozen=True)
class CocoNumbers:
    """Average precision; ``nan`` where there is no labelled box to find.

    Attributes:
        ap: (T, C, A) AP at each IoU threshold, class and size of :data:`AREA_RANGES`.
        precision: (T, R, C) precision at each IoU threshold, recall point and class, all sizes.
    """

    ap: Floats
    precision: Floats


def coco_numbers(table: Table, *, max_det: int) -> CocoNumbers:
    """Scores all images as COCO does (bounding boxes; IoU 0.50:0.05:0.95; 101 recall points; ``max_det`` a class).

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    shape = (len(IOU_THRESHOLDS), len(RECALL_POINTS), table.classes, len(AREA_RANGES))
    if table.gt_ignore.all():  # also where there is no box at all: the library wants at least one
        precision = np.full(shape, np.nan)
    elif not len(table.dt_label):
        precision = _nothing_detected(table, shape)
    else:
        precision = _by_class(table, max_det, shape)
    known = precision[:, 0] > -1  # -1 or nan in every recall point, or in none
    ap = np.where(known, precision.mean(axis=1), np.nan)
    return CocoNumbers(ap, np.where(precision[..., 0] > -1, precision[..., 0], np.nan))


def require_library() -> None:
    """Raises MissingDependencyError where faster-coco-eval is not installed; for asking before a long run."""
    if find_spec("faster_coco_eval") is None:
        raise MissingDependencyError("Evaluation needs faster-coco-eval; run `pip install 'agssp-zoo[train]'`.")


def _by_class(table: Table, max_det: int, shape: tuple[int, ...]) -> Floats:
    """(T, R, C, A) precision, -1 where there is no box to find.

    Every class is scored alone, on the images that show it or where it was detected; others say nothing about it.
    The library keeps a result for every class, size and image, gigabytes for hundreds of classes at once.
    """
    require_library()
    precision = np.full(shape, -1.0)
    for label in np.unique(table.gt_label):
        precision[:, :, label] = _run(_of_class(table, int(label)), max_det)[:, :, 0]
    return precision


def _of_class(table: Table, label: int) -> Table:
    """The boxes of one class, on the images that have some, as a table of a single class; orders stay."""
    gt, dt = table.gt_label == label, table.dt_label == label
    images = np.union1d(table.gt_image[gt], table.dt_image[dt])
    return replace(
        table.with_detections(dt),
        images=len(images),
        classes=1,
        gt_image=np.searchsorted(images, table.gt_image[gt]),
        gt_label=np.zeros(int(gt.sum()), np.int64),
        gt_box=table.gt_box[gt],
        gt_ignore=table.gt_ignore[gt],
        gt_index=table.gt_index[gt],
        dt_image=np.searchsorted(images, table.dt_image[dt]),
        dt_label=np.zeros(int(dt.sum()), np.int64),
    )


def _run(table: Table, max_det: int) -> Floats:
    """(T, R, C, A) precision, -1 where there is no box to find."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, answers = COCO(), COCO()
    truth.dataset, detections = coco_dicts(table)
    answers.dataset = {**truth.dataset, "annotations": detections}
    truth.createIndex()
    answers.createIndex()
    evaluation: Any = COCOeval_faster(truth, answers, iouType="bbox", print_function=_silent)
    evaluation.params.maxDets = [max_det]
    evaluation.params.iouThrs = IOU_THRESHOLDS
    evaluation.params.recThrs = RECALL_POINTS
    evaluation.params.areaRng = [list(bounds) for bounds in AREA_RANGES.values()]
    evaluation.params.areaRngLbl = list(AREA_RANGES)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"], np.float64)[..., -1]


def coco_dicts(table: Table) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO data set and COCO results of a table; ids count from 1 (0 means "unmatched" to COCO's code).

    Crowd and ignored difficult boxes both carry ``iscrowd``, the one flag that COCO's code heeds.
    """
    categories = [{"id": label + 1, "name": str(label)} for label in range(table.classes)]
    images = [{"id": image + 1} for image in range(table.images)]
    truth = [
        {"id": row + 1, "image_id": image + 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3],
         "iscrowd": int(ignore)}
        for row, (image, label, box, ignore) in enumerate(
            zip(table.gt_image.tolist(), table.gt_label.tolist(), table.gt_box.tolist(), table.gt_ignore.tolist(),
                strict=True)
        )
    ]  # fmt: skip
    results = [
        {"id": row + 1, "image_id": image + 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3],
         "score": score}
        for row, (image, label, box, score) in enumerate(
            zip(table.dt_image.tolist(), table.dt_label.tolist(), table.dt_box.tolist(), table.dt_score.tolist(),
                strict=True)
        )
    ]  # fmt: skip
    return {"images": images, "categories": categories, "annotations": truth}, results


def _nothing_detected(table: Table, shape: tuple[int, ...]) -> Floats:
    """Precision 0 for every class and size with a box to find, else -1."""
    precision = np.full(shape, -1.0)
    area = table.gt_box[:, 2] * table.gt_box[:, 3]
    for column, (low, high) in enumerate(AREA_RANGES.values()):
        present = table.gt_label[~table.gt_ignore & (area >= low) & (area <= high)]
        precision[:, :, present, column] = 0.0
    return precision


def _silent(*_: object) -> None:
    """Swallows the library's progress lines."""
