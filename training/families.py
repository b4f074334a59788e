"""How the families of detectors are trained: the loss of each, and what its parts are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agssp_zoo.errors import SettingError, TrainingError
from agssp_zoo.models import DetectorModule, Targets

from .losses import DetectionLoss, LossSums, class_balance
from .losses.set_prediction import PARTS as SET_PREDICTION_PARTS
from .losses.set_prediction import SetPredictionLoss
from .losses.two_stage import PARTS as TWO_STAGE_PARTS
from .losses.two_stage import TwoStageLoss
from .settings import TrainSettings


class Loss(Protocol):
    """The loss of a family."""

    def __call__(
        self,
        raw: Any,
        targets: Targets,
        *,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        processes: int = 1,
    ) -> LossSums:
        """The loss of a batch, from what the network answered; see :class:`DetectionLoss`."""
        ...


@dataclass(frozen=True)
class Family:
    """How detectors of a family are trained.

    Attributes:
        parts: what the parts of the loss are called, in their order.
        build_loss: module, settings and labelled boxes of each class -> the loss.
        times_batch: whether the family's learning rates are meant for the loss times the images of a step.
        rates: by optimizer, what a run takes where it does not say and the optimizer's own would not do.
        nms_iou: of the suppression in a fine-tuned model, where a run does not say; None: the model's own.
    """

    parts: tuple[str, ...]
    build_loss: Callable[[Any, TrainSettings, NDArray[np.int64]], Loss]
    times_batch: bool = False
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    nms_iou: float | None = None


def family_of(module: DetectorModule) -> Family:
    """How a detector is trained.

    Raises:
        TrainingError: that is not known.
    """
    family = FAMILIES.get(module.family)
    if family is None:
        raise TrainingError(f"{module.config.architecture} cannot be trained.")
    return family


def _yolov8(module: Any, settings: TrainSettings, counts: NDArray[np.int64]) -> Loss:
    return DetectionLoss(
        module.strides,
        module.num_classes,
        module.reg_max,
        box_weight=settings.box_weight,
        class_weight=settings.cls_weight,
        distance_weight=settings.dfl_weight,
        class_balance=class_balance(counts, settings.cls_pw),
    )


def _faster_rcnn(module: Any, settings: TrainSettings, counts: NDArray[np.int64]) -> Loss:
    _refuse_yolo_settings(module, settings)
    return TwoStageLoss(module.head.rpn, module.num_classes)


def _dino(module: Any, settings: TrainSettings, counts: NDArray[np.int64]) -> Loss:
    _refuse_yolo_settings(module, settings)
    return SetPredictionLoss(module.num_classes)


def _refuse_yolo_settings(module: DetectorModule, settings: TrainSettings) -> None:
    """Raises SettingError for settings that the loss of another family would pass over."""
    for name in ("cls_pw", "box_weight", "cls_weight", "dfl_weight"):
        if getattr(settings, name) != getattr(TrainSettings, name):
            flag = f"--{name.replace('_', '-')}"
            raise SettingError(f"{flag} is of the YOLOv8 detectors' loss; {module.config.architecture} has none.")


DEFECTS_IOU = 0.5
"""Of the suppression after YOLOv8 heads. Crowds of things that hide each other want the usual 0.7; but where a scratch
ends is a matter of opinion, and several boxes around one overlap by less than that (docs/finetuning.md has figures)."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "yolov8": Family(("box_loss", "cls_loss", "dfl_loss"), _yolov8, times_batch=True, nms_iou=DEFECTS_IOU),
        "faster_rcnn": Family(TWO_STAGE_PARTS, _faster_rcnn),
        "dino": Family(SET_PREDICTION_PARTS, _dino, rates={"adamw": {"lr": 1e-4, "weight_decay": 1e-4}}),
    }
)
"""By ``DetectorModule.family``."""
