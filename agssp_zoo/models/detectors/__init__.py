"""Detectors: images to boxes."""

from __future__ import annotations

from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.detectors.yolov8 import YOLOv8

__all__ = ["DetectorModule", "YOLOv8"]
