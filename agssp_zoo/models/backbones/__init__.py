"""Backbones: images to feature maps."""

from __future__ import annotations

from agssp_zoo.models.backbones.base import Backbone, FeatureInfo
from agssp_zoo.models.backbones.cspdarknet import CSPDarknet
from agssp_zoo.models.backbones.resnet import ResNet
from agssp_zoo.models.backbones.swin import Swin

__all__ = ["Backbone", "CSPDarknet", "FeatureInfo", "ResNet", "Swin"]
