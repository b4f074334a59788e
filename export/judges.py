"""Is a changed file of a detector as good as the float one? By labels, or by what the float one detects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agssp_zoo.engines.base import score_thresholds
from agssp_zoo.errors import ExportError

from .calibration import Progress

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig
    from agssp_zoo.detector import Detector

Answer = tuple[Any, Any, Any]
"""Boxes (N, 4), scores (N,) and labels (N,) of one image."""

SAME_BOX = 0.75
"""IoU from which two files have found the same."""


@dataclass(frozen=True)
class Judgement:
    """How good a detector is.

    Attributes:
        points: of 100; a changed file may have so many fewer as its user allows.
        rank: which of two changed files is the better one: that of the larger rank.
        map50: points, of 100; ``None`` without labels.
    """

    points: float
    rank: tuple[float, ...]
    map50: float | None = None


class Judge(Protocol):
    """Says how good a detector is."""

    measure: str

    def measured(self, detector: Detector) -> Judgement:
        """What holds for a detector."""
        ...


class Labels:
    """map50_95 on labelled images; of two files the one with more in map50 and map50_95 together is the better one.

    Coarser weights cost a class whose scores are low much of its map50 before map50_95 shows it.
    """

    measure = "map50_95"

    def __init__(self, data: str | os.PathLike[str], split: str) -> None:
        from agssp_zoo.training.data import read_dataset

        self._data, self._split = read_dataset(data), split

    def measured(self, detector: Detector) -> Judgement:
        """See :class:`Judge`; raises DataError where the data do not suit the detector."""
        from agssp_zoo.training.evaluation import validate

        metrics = validate(detector, self._data, split=self._split, command="").metrics
        points, map50 = 100 * float(metrics.map50_95), 100 * float(metrics.map50)
        return Judgement(points, (points + map50,), map50)


class Agreement:
    """How many detections of the float file the other one has as well, and the other way round.

    A detection of either file counts as found when the other has one of the same class at an IoU of 0.75 or more, whose
    score may lie below its class's threshold by half of it: one that only slips under the threshold is a matter of the
    threshold. Where as many are found, the mean IoU decides.
    """

    measure = "agreement"

    def __init__(self, images: Sequence[Any], reference: Detector, progress: Progress) -> None:
        self._images = images
        self._expected = [self._answers(reference, image) for image in progress(images, len(images), "float (images)")]
        if not any(_above(answer, self._thresholds(reference)).any() for answer in self._expected):
            raise ExportError(
                f"The float model detects nothing in {len(images)} calibration images, so there is nothing to compare "
                "with; give labelled images (--validation) or calibration images that show defects."
            )

    @staticmethod
    def _thresholds(detector: Detector) -> Any:
        """(classes,) the threshold of every class."""
        config = detector.config
        return np.broadcast_to(np.array(score_thresholds(config, None), np.float32), (len(config.class_names),))

    def _answers(self, detector: Detector, image: Any) -> Answer:
        thresholds = self._thresholds(detector) / 2
        raw = detector.engine.run(image[None], conf=float(thresholds.min()))
        count = int(raw.count[0])
        answer = raw.boxes[0, :count], raw.scores[0, :count], raw.labels[0, :count]
        above = _above(answer, thresholds)
        return answer[0][above], answer[1][above], answer[2][above]

    def measured(self, detector: Detector) -> Judgement:
        """See :class:`Judge`."""
        thresholds = self._thresholds(detector)
        near: list[float] = []
        for image, expected in zip(self._images, self._expected, strict=True):
            answer = self._answers(detector, image)
            near += _nearness(expected, answer, thresholds) + _nearness(answer, expected, thresholds)
        number = max(len(near), 1)
        points = 100 * sum(iou >= SAME_BOX for iou in near) / number
        return Judgement(points, (points, sum(near) / number))


def _above(answer: Answer, thresholds: Any) -> Any:
    """(N,) which detections lie above the threshold of their class."""
    return answer[1] > thresholds[answer[2]]


def _nearness(one: Answer, other: Answer, thresholds: Any) -> list[float]:
    """For every detection of ``one`` above its threshold the best IoU with one of ``other`` of the same class."""
    from agssp_zoo.geometry import box_iou

    sure = _above(one, thresholds)
    if not len(other[1]):
        return [0.0] * int(sure.sum())
    overlap = box_iou(one[0][sure], other[0]) * (one[2][sure][:, None] == other[2][None])
    best: list[float] = overlap.max(1).tolist()
    return best


def open_detector(path: Path, config: ModelConfig) -> Detector:
    """A file in ONNX Runtime, on the CPU."""
    from agssp_zoo.detector import Detector
    from agssp_zoo.engines.onnx import OnnxEngine

    return Detector(OnnxEngine.load(path, config=config))
