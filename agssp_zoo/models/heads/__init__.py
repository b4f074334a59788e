"""Heads: fused feature maps to predictions."""

from __future__ import annotations

from agssp_zoo.models.heads.dfl import DFLHead, RawOutput

__all__ = ["DFLHead", "RawOutput"]
