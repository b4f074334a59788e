"""Pretrained models for metallic surface defect detection: load, run, adapt, export.

    import agssp_zoo

    detector = agssp_zoo.load_detector("yolov8_s")
    for found in detector.predict("strip.jpg"):
        print(found.boxes, found.scores)

Importing the package costs next to nothing: every public name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agssp_zoo.backbone import Backbone as Backbone
    from agssp_zoo.backbone import load_backbone as load_backbone
    from agssp_zoo.config import ModelConfig as ModelConfig
    from agssp_zoo.convert import convert_checkpoint as convert_checkpoint
    from agssp_zoo.detections import Detections as Detections
    from agssp_zoo.detector import Detector as Detector
    from agssp_zoo.detector import load_detector as load_detector
    from agssp_zoo.errors import AgsspZooError as AgsspZooError
    from agssp_zoo.registry import ModelInfo as ModelInfo
    from agssp_zoo.registry import list_models as list_models
    from agssp_zoo.registry import model_info as model_info

__version__ = "0.1.0"

__all__ = [
    "AgsspZooError",
    "Backbone",
    "Detections",
    "Detector",
    "ModelConfig",
    "ModelInfo",
    "__version__",
    "convert_checkpoint",
    "list_models",
    "load_backbone",
    "load_detector",
    "model_info",
]

if importlib.util.find_spec("torch") is None:
    # They come with it; `from agssp_zoo import *` and help() ask for all that is named.
    __all__.remove("Backbone")
    __all__.remove("convert_checkpoint")

# Public name -> the module that holds it (PEP 562). The TYPE_CHECKING block above says the same to mypy and to editors;
# a test holds the two together.
_HOMES = {
    "AgsspZooError": "agssp_zoo.errors",
    "Backbone": "agssp_zoo.backbone",
    "Detections": "agssp_zoo.detections",
    "Detector": "agssp_zoo.detector",
    "ModelConfig": "agssp_zoo.config",
    "ModelInfo": "agssp_zoo.registry",
    "convert_checkpoint": "agssp_zoo.convert",
    "list_models": "agssp_zoo.registry",
    "load_backbone": "agssp_zoo.backbone",
    "load_detector": "agssp_zoo.detector",
    "model_info": "agssp_zoo.registry",
}
# Submodules that read well without an import of their own: `except agssp_zoo.errors.HubError`.
_SUBMODULES = ("config", "errors")


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name in _SUBMODULES:
        return importlib.import_module(f"agssp_zoo.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'agssp_zoo' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        if error.name != "torch":
            raise
        from agssp_zoo.errors import MissingDependencyError

        raise MissingDependencyError(f"{name} needs PyTorch; run `pip install 'agssp-zoo[torch]'`.") from None
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted({*__all__, *_SUBMODULES})
