"""Losses of the detectors, written from their papers."""

from __future__ import annotations

from agssp_zoo.models.targets import Targets

from .assigner import Assignment, assign_task_aligned
from .balance import class_balance
from .detection import DetectionLoss, LossSums
from .dfl import distribution_focal_loss
from .iou import complete_iou

__all__ = [
    "Assignment",
    "DetectionLoss",
    "LossSums",
    "Targets",
    "assign_task_aligned",
    "class_balance",
    "complete_iou",
    "distribution_focal_loss",
]
