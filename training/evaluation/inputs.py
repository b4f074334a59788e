"""What evaluation takes: arrays per image, checked once and laid out flat.

The core knows neither files nor models. Anything with the attributes of :class:`GroundTruthLike` (a record of
``agssp_zoo.training.data``) and :class:`PredictionLike` (``agssp_zoo.Detections``) will do; :class:`GroundTruth` and
:class:`Prediction` are the smallest such things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, InvalidArgumentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)


class GroundTruthLike(Protocol):
    """The labels of one image: ``boxes`` (n, 4) xyxy in pixels, ``labels`` (n,), ``crowd`` (n,), ``difficult`` (n,)."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def crowd(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def difficult(self) -> NDArray[np.bool_]: ...  # noqa: D102


class PredictionLike(Protocol):
    """What a detector answered for one image: ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,), ``labels`` (n,)."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def scores(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102


@dataclass(frozen=True)
class GroundTruth:
    """The labels of one image.

    Attributes:
        boxes: float32 (n, 4), xyxy in pixels of the original image.
        labels: int64 (n,), indices into the class names.
        crowd: bool (n,): the box stands for a group; empty means none does.
        difficult: bool (n,): the annotator marked it as hard to see; empty means none is.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: Bools
    difficult: Bools

    def __init__(
        self,
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        crowd: Bools | None = None,
        difficult: Bools | None = None,
    ) -> None:
        """Stores the arrays; flags left out are all false."""
        none = np.zeros(len(labels), np.bool_)
        object.__setattr__(self, "boxes", np.asarray(boxes, np.float32).reshape(-1, 4))
        object.__setattr__(self, "labels", np.asarray(labels, np.int64))
        object.__setattr__(self, "crowd", none if crowd is None else np.asarray(crowd, np.bool_))
        object.__setattr__(self, "difficult", none if difficult is None else np.asarray(difficult, np.bool_))


@dataclass(frozen=True)
class Prediction:
    """What a detector answered for one image.

    Attributes:
        boxes: float32 (n, 4), xyxy in pixels of the original image.
        scores: float32 (n,), 0-1.
        labels: int64 (n,), indices into the class names.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """All images' boxes as flat arrays; detections stand in the order of falling score (ties: image order).

    Attributes:
        images: number of images.
        classes: number of classes.
        gt_image: (G,) index of each labelled box's image.
        gt_label: (G,) its class.
        gt_box: (G, 4) x, y, width, height in pixels.
        gt_ignore: (G,) neither finding nor missing it counts (crowd, or difficult where these are ignored).
        gt_index: (G,) its place in its image's arrays.
        dt_image: (D,) index of each detection's image.
        dt_label: (D,) its class.
        dt_box: (D, 4) x, y, width, height in pixels.
        dt_score: (D,) its score.
        dt_index: (D,) its place in its image's arrays.
    """

    images: int
    classes: int
    gt_image: Ints
    gt_label: Ints
    gt_box: Floats
    gt_ignore: Bools
    gt_index: Ints
    dt_image: Ints
    dt_label: Ints
    dt_box: Floats
    dt_score: Floats
    dt_index: Ints

    def among_best(self, max_det: int) -> Bools:
        """(D,) whether each detection is among the best ``max_det`` of its class in its image (COCO's maxDets)."""
        return _rank_within(self.dt_image * self.classes + self.dt_label) < max_det

    def with_detections(self, keep: Bools) -> Table:
        """The table with the detections that a mask (D,) keeps."""
        return replace(
            self,
            dt_image=self.dt_image[keep],
            dt_label=self.dt_label[keep],
            dt_box=self.dt_box[keep],
            dt_score=self.dt_score[keep],
            dt_index=self.dt_index[keep],
        )


def class_mapping(model_names: Sequence[str], data_names: Sequence[str]) -> Ints | None:
    """How a model's labels become the data's: by name, whatever the order.

    Args:
        model_names: the model's class names.
        data_names: the data set's class names.

    Returns:
        (len(model_names),) the data's label of each of the model's labels, or ``None`` where the lists are the same.

    Raises:
        DataError: the two lists do not hold the same names.
    """
    model, data = list(model_names), list(data_names)
    if model == data:
        return None
    if len(set(model)) != len(model) or len(set(data)) != len(data) or set(model) != set(data):
        hint, lacking = "", [name for name in model if name not in data]
        if set(data) < set(model):
            hint = (
                f" The data lack {', '.join(lacking)}: list these, too, where the data's classes are listed "
                "(classes.txt in the data folder, data.yaml, the categories of COCO)."
            )
        elif set(model) < set(data) and len(model) > 1:
            unknown = ", ".join(name for name in data if name not in model)
            hint = f" To compare it with a model that knows {unknown}, too, evaluate both with --single-class."
        elif len(model) == 1 or len(data) == 1:
            hint = " To ask only whether defects are found, whatever their class, evaluate with --single-class."
        raise DataError(
            f"The model's classes are not the data's. Model ({len(model)}): {', '.join(model)}. "
            f"Data ({len(data)}): {', '.join(data)}. Fine-tune the model on this data, or rename the classes.{hint}"
        )
    return np.array([data.index(name) for name in model], np.int64)


def build_table(
    ground_truth: Sequence[GroundTruthLike],
    predictions: Sequence[PredictionLike],
    classes: int,
    *,
    max_det: int | None,
    ignore_difficult: bool = False,
) -> Table:
    """Checks all images' arrays and lays them out flat.

    Args:
        ground_truth: labels, one entry an image.
        predictions: detections of the same images, in the same order and with the same class numbers.
        classes: number of classes.
        max_det: the best so many detections of a class in an image are kept (COCO's maxDets); ``None``: all.
        ignore_difficult: whether difficult boxes are ignored like crowd boxes.

    Raises:
        InvalidArgumentError: the two sequences differ in length, or a prediction is malformed.
        DataError: a label is malformed.
    """
    if len(ground_truth) != len(predictions):
        raise InvalidArgumentError(
            f"{len(ground_truth)} images have labels and {len(predictions)} have predictions; give one entry an image, "
            "an empty one where nothing was found."
        )
    if classes < 1:
        raise InvalidArgumentError("class_names is empty; evaluation needs at least one class.")
    if max_det is not None and max_det < 1:
        raise InvalidArgumentError(f"max_det is {max_det}; it must be at least 1.")
    gt_counts = np.array([len(g.labels) for g in ground_truth], np.int64)
    dt_counts = np.array([len(p.labels) for p in predictions], np.int64)
    gt_image = np.repeat(np.arange(len(gt_counts)), gt_counts)
    dt_image = np.repeat(np.arange(len(dt_counts)), dt_counts)
    gt_box = _flat_boxes([g.boxes for g in ground_truth], gt_counts, "labels")
    dt_box = _flat_boxes([p.boxes for p in predictions], dt_counts, "predictions")
    gt_label = _flat([g.labels for g in ground_truth], gt_counts, np.int64, "labels: labels")
    dt_label = _flat([p.labels for p in predictions], dt_counts, np.int64, "predictions: labels")
    dt_score = _flat([p.scores for p in predictions], dt_counts, np.float32, "predictions: scores").astype(np.float64)
    ignore = _flat([g.crowd for g in ground_truth], gt_counts, np.bool_, "labels: crowd")
    if ignore_difficult:
        ignore = ignore | _flat([g.difficult for g in ground_truth], gt_counts, np.bool_, "labels: difficult")

    bad = np.flatnonzero((gt_label < 0) | (gt_label >= classes))
    if len(bad):
        name = _name(ground_truth, gt_image[bad[0]])
        raise DataError(
            f"Image {name} has a box of class {gt_label[bad[0]]}, but there are {classes} class names; "
            "the class list contradicts the labels."
        )
    bad = np.flatnonzero((dt_label < 0) | (dt_label >= classes))
    if len(bad):
        raise InvalidArgumentError(
            f"The predictions of image {dt_image[bad[0]]} hold class {dt_label[bad[0]]}, but there are {classes} "
            "class names; map the model's classes to the data's first."
        )
    if not np.isfinite(dt_score).all():
        first = dt_image[np.flatnonzero(~np.isfinite(dt_score))[0]]
        raise InvalidArgumentError(f"The predictions of image {first} hold a score that is no number.")

    order = np.argsort(-dt_score, kind="stable")
    gt_box[:, 2:] -= gt_box[:, :2]
    dt_box[:, 2:] -= dt_box[:, :2]
    if (gt_box[:, 2:] < 0).any():
        first = gt_image[np.flatnonzero((gt_box[:, 2:] < 0).any(axis=1))[0]]
        raise DataError(
            f"Image {_name(ground_truth, first)} has a box whose right edge lies left of its left edge, or whose "
            "bottom lies above its top; run `agssp-zoo check-data`."
        )
    np.maximum(dt_box[:, 2:], 0.0, out=dt_box[:, 2:])
    table = Table(
        images=len(ground_truth),
        classes=classes,
        gt_image=gt_image,
        gt_label=gt_label,
        gt_box=gt_box,
        gt_ignore=ignore,
        gt_index=_index_within(gt_counts),
        dt_image=dt_image[order],
        dt_label=dt_label[order],
        dt_box=dt_box[order],
        dt_score=dt_score[order],
        dt_index=_index_within(dt_counts)[order],
    )
    return table if max_det is None else table.with_detections(table.among_best(max_det))


def _name(images: Sequence[object], index: int) -> str:
    """An image's key where it has one, else its place."""
    return str(getattr(images[index], "key", int(index)))


def _flat_boxes(parts: Sequence[NDArray[np.float32]], counts: Ints, what: str) -> Floats:
    """(N, 4) float64 of all images' boxes, checked for shape and numbers."""
    for image, (part, count) in enumerate(zip(parts, counts, strict=True)):
        if np.shape(part) != (count, 4) and not (count == 0 and np.size(part) == 0):
            raise InvalidArgumentError(
                f"The {what} of image {image} have {count} classes but boxes of shape {np.shape(part)}; "
                "boxes must be (n, 4)."
            )
    kept = [np.asarray(part, np.float64) for part, count in zip(parts, counts, strict=True) if count]
    boxes: Floats = np.concatenate(kept) if kept else np.zeros((0, 4))
    if not np.isfinite(boxes).all():
        row = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        image = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        raise InvalidArgumentError(f"The {what} of image {image} hold a box with a side that is no number.")
    return boxes


def _flat(parts: Sequence[NDArray[Any]], counts: Ints, dtype: type[Scalar], what: str) -> NDArray[Scalar]:
    """(N,) of all images' values, checked for length."""
    for image, (part, count) in enumerate(zip(parts, counts, strict=True)):
        if np.shape(part) != (count,):
            raise InvalidArgumentError(
                f"{what} of image {image} have shape {np.shape(part)}; they must be ({count},), one entry a box."
            )
    if not len(parts):
        return np.zeros(0, dtype)
    return np.concatenate(parts).astype(dtype)


def _index_within(counts: Ints) -> Ints:
    """0..count-1 for every image, one after the other."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)


def _rank_within(groups: Ints) -> Ints:
    """How many earlier entries carry the same number, for every entry."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank
