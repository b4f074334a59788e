"""Faster R-CNN (Ren et al., arXiv 1506.01497) on a feature pyramid (Lin et al., arXiv 1612.03144)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agssp_zoo.config import ModelConfig
from agssp_zoo.models.backbones.base import Backbone
from agssp_zoo.models.box_coder import clip, decode
from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.heads.roi import BOX_STD
from agssp_zoo.models.heads.two_stage import TwoStageHead, TwoStageOutput, TwoStageTraining
from agssp_zoo.models.necks.fpn import FPN
from agssp_zoo.models.targets import Targets


class FasterRCNN(DetectorModule):
    """Backbone, feature pyramid, region proposals and their classification.

    Args:
        config: the model's configuration; ``class_names`` sets the number of classes, the options ``pyramid_width`` the
            channels of the pyramid (256) and ``region_width`` the width of the second stage (1024).
        backbone: all of its maps are taken.
    """

    family: ClassVar[str] = "faster_rcnn"
    neck: FPN
    head: TwoStageHead

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__(config)
        width = int(config.options.get("pyramid_width", 256))
        backbone.set_out_indices(range(len(backbone.stage_info)))
        reductions = [info.reduction for info in backbone.feature_info]
        self.strides = (*reductions, 2 * reductions[-1])
        self.backbone = backbone
        self.neck = FPN([info.channels for info in backbone.feature_info], width)
        self.head = TwoStageHead(
            width, self.num_classes, self.strides, region_width=int(config.options.get("region_width", 1024))
        )
        self.class_layers = ("head.roi.class_logits.", "head.roi.box_deltas.")

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.backbone.reset_parameters()
        self.neck.reset_parameters()
        self.head.reset_parameters()

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, targets: Targets | None = None
    ) -> TwoStageOutput | TwoStageTraining:
        """See :meth:`DetectorModule.forward`; boxes are cut off at the images' valid sizes."""
        self.check_input(x)
        if sizes is None:
            sizes = torch.tensor(x.shape[-2:], device=x.device).expand(x.shape[0], 2)
        return self.head(self.neck(self.backbone(x)), sizes, targets)  # type: ignore[no-any-return]

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The fields of :class:`TwoStageOutput`."""
        return TwoStageOutput._fields

    def row_boxes(self, raw: TwoStageOutput) -> Tensor | None:
        """The proposals."""
        return raw.proposals

    def decode(self, raw: TwoStageOutput, input_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes (B, P, C, 4) xyxy in input pixels, and scores (B, P, C); float32.

        Args:
            raw: what :meth:`forward` answered.
            input_size: not needed.
        """
        boxes = clip(decode(raw.box_deltas, raw.proposals[:, :, None], BOX_STD), raw.sizes)
        scores = raw.class_logits.float().softmax(-1)[..., :-1]
        return boxes, scores * (raw.proposal_scores >= 0)[..., None]
