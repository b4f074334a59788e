"""Detectors: images to boxes."""

from __future__ import annotations

from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.detectors.faster_rcnn import FasterRCNN
from agssp_zoo.models.detectors.yolov8 import YOLOv8

__all__ = ["DetectorModule", "FasterRCNN", "YOLOv8"]
