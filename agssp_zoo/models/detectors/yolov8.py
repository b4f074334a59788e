"""YOLOv8-style detectors on any backbone with maps at strides 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from agssp_zoo.config import ModelConfig
from agssp_zoo.models.backbones.base import Backbone
from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.heads.dfl import DFLHead, RawOutput
from agssp_zoo.models.layers import initialize
from agssp_zoo.models.necks.pafpn import PAFPN


class YOLOv8(DetectorModule):
    """Backbone, PAFPN and decoupled DFL head.

    Args:
        config: the model's configuration; ``class_names`` sets the number of classes.
        backbone: gives the neck its maps.
        channels: of the neck's maps, finest first; default those of the backbone's, as the authors have it.
        num_bottlenecks: in every CSP layer of the neck.
        reg_max: bins of the head's distributions.
    """

    family: ClassVar[str] = "yolov8"
    neck: PAFPN
    head: DFLHead

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        *,
        channels: Sequence[int] | None = None,
        num_bottlenecks: int = 1,
        reg_max: int = 16,
    ) -> None:
        super().__init__(config)
        self.strides = tuple(info.reduction for info in backbone.feature_info)
        self.reg_max = reg_max
        self.backbone = backbone
        self.neck = PAFPN([info.channels for info in backbone.feature_info], channels, num_bottlenecks)
        self.head = DFLHead(self.neck.channels, self.num_classes, self.strides, reg_max)
        self.class_layers = tuple(f"head.cls_branches.{level}.2." for level in range(len(self.strides)))

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.backbone.reset_parameters()
        initialize(self.neck)
        initialize(self.head)
        self.head.reset_predictions()

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Class and box logits of every level."""
        return tuple(f"{kind}_logits_{stride}" for stride in self.strides for kind in ("class", "box"))

    def decode(self, raw: Sequence[RawOutput], input_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes (B, N, 4) xyxy in input pixels, and scores (B, N, C); see :meth:`DFLHead.decode`."""
        return self.head.decode(raw)
