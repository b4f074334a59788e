"""Detectors: images to boxes."""

from __future__ import annotations

from agssp_zoo.models.detectors.base import BoxTargets, DetectorModule
from agssp_zoo.models.detectors.yolov8 import YOLOv8

__all__ = ["BoxTargets", "DetectorModule", "YOLOv8"]
