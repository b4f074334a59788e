"""From a model to files that run elsewhere: ONNX, checked against PyTorch before it is put in place.

Needs the ``export`` extra (torch, onnx, onnxscript); importing this package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import export_onnx as export_onnx

__all__ = ["export_onnx"]


def __getattr__(name: str) -> Any:
    """Loads the public function when it is first used, and torch with it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import exporter

    return getattr(exporter, name)
