"""Heads: fused feature maps to predictions."""

from __future__ import annotations

from agssp_zoo.models.heads.dfl import DFLHead, RawOutput
from agssp_zoo.models.heads.dino import Answer, DinoHead, TrainingAnswer
from agssp_zoo.models.heads.two_stage import TwoStageHead, TwoStageOutput, TwoStageTraining

__all__ = [
    "Answer",
    "DFLHead",
    "DinoHead",
    "RawOutput",
    "TrainingAnswer",
    "TwoStageHead",
    "TwoStageOutput",
    "TwoStageTraining",
]
