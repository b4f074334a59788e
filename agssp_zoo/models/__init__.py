"""The networks, in PyTorch: build them from a config, fill them from safetensors.

Needs the ``torch`` extra; importing costs no more than torch itself.
"""

from __future__ import annotations

from agssp_zoo.models.backbones import Backbone, FeatureInfo
from agssp_zoo.models.base import ZooModule
from agssp_zoo.models.detectors import DetectorModule
from agssp_zoo.models.factory import ARCHITECTURES, Architecture, build, default_config, get_architecture, load
from agssp_zoo.models.postprocess import select_detections
from agssp_zoo.models.targets import Targets
from agssp_zoo.models.weights import load_weights, read_weights, save_weights

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Backbone",
    "DetectorModule",
    "FeatureInfo",
    "Targets",
    "ZooModule",
    "build",
    "default_config",
    "get_architecture",
    "load",
    "load_weights",
    "read_weights",
    "save_weights",
    "select_detections",
]
