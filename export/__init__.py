"""From a model to files that run elsewhere: ONNX in float32, float16 or 8 bits, checked before they are put in place.

Needs the ``export`` extra (torch, onnx, onnxscript); importing this package does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import export_onnx as export_onnx
    from .half import export_half as export_half
    from .quantize import Int8Settings as Int8Settings
    from .quantize import export_int8 as export_int8

__all__ = ["Int8Settings", "export_half", "export_int8", "export_onnx"]

_HOMES = {"Int8Settings": "quantize", "export_half": "half", "export_int8": "quantize", "export_onnx": "exporter"}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, and torch with it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
