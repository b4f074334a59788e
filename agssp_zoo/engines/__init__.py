"""What runs a model: ONNX Runtime or PyTorch, behind one small interface."""

from __future__ import annotations

from agssp_zoo.engines.base import Engine, RawDetections, load_engine

__all__ = ["Engine", "RawDetections", "load_engine"]
