"""Detectors: images to boxes."""

from __future__ import annotations

from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.detectors.dino import DINO_OPTIONS, Dino
from agssp_zoo.models.detectors.faster_rcnn import FasterRCNN
from agssp_zoo.models.detectors.yolov8 import YOLOv8

__all__ = ["DINO_OPTIONS", "DetectorModule", "Dino", "FasterRCNN", "YOLOv8"]
