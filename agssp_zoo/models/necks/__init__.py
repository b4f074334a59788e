"""Necks: feature maps to fused feature maps."""

from __future__ import annotations

from agssp_zoo.models.necks.channel_mapper import ChannelMapper
from agssp_zoo.models.necks.fpn import FPN
from agssp_zoo.models.necks.pafpn import PAFPN

__all__ = ["FPN", "PAFPN", "ChannelMapper"]
