"""DINO (Zhang et al., arXiv 2203.03605) on any backbone with maps at strides 8, 16 and 32."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import ConfigError
from agssp_zoo.models.backbones.base import Backbone
from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.detectors.base import DetectorModule
from agssp_zoo.models.heads.dino import Answer, DinoHead, TrainingAnswer
from agssp_zoo.models.necks.channel_mapper import ChannelMapper
from agssp_zoo.models.targets import Targets

HEADS = 8
GROUPS = 32
DINO_OPTIONS = {"queries": 100, "layers": 6, "width": 256, "hidden": 2048}
"""Options of :class:`Dino` and their defaults."""


class Dino(DetectorModule):
    """Backbone, channel mapper, transformer; no anchors and no suppression.

    Inputs may have any sides. What is padded is known by the valid sizes, and takes no part.

    Args:
        config: the model's configuration; ``class_names`` sets the number of classes. Its options: ``queries``,
            ``layers`` of the encoder (and as many of the decoder), ``width`` of the transformer (a multiple of 32) and
            ``hidden`` of its feed-forward parts.
        backbone: its maps go to the neck with their own channels.

    Raises:
        ConfigError: options that make no network.
    """

    family: ClassVar[str] = "dino"
    rows_are_queries: ClassVar[bool] = True
    neck: ChannelMapper
    head: DinoHead

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__(config)
        queries, layers, width, hidden = (
            int(config.options.get(name, default)) for name, default in DINO_OPTIONS.items()
        )
        if min(queries, layers, hidden, width) < 1 or width % GROUPS:
            raise ConfigError(
                f"{config.name}: options queries={queries}, layers={layers}, width={width}, hidden={hidden}: give "
                f"numbers above 0, and a width that is a multiple of {GROUPS}."
            )
        info = backbone.feature_info
        self.strides = (*(level.reduction for level in info), 2 * info[-1].reduction)
        self.backbone = backbone
        self.neck = ChannelMapper([level.channels for level in info], width)
        self.head = DinoHead(
            self.num_classes,
            channels=width,
            levels=len(self.strides),
            queries=queries,
            layers=layers,
            hidden=hidden,
            heads=HEADS,
        )
        # What makes noisy copies of labels knows the classes too.
        self.class_layers = (*(f"head.class_layers.{i}." for i in range(layers + 1)), "head.label_embedding.")

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.backbone.reset_parameters()
        self.neck.reset_parameters()
        self.head.reset_parameters()

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, targets: Targets | None = None
    ) -> Answer | TrainingAnswer:
        """See :meth:`DetectorModule.forward`; boxes of an :class:`Answer` are xyxy in pixels here."""
        self.check_input(x)
        size = (x.shape[-2], x.shape[-1])
        if sizes is not None and not is_capturing() and bool((sizes >= sizes.new_tensor(size)).all()):
            sizes = None  # nothing is padded, which saves the masks
        found: Answer | TrainingAnswer = self.head(self.neck(self.backbone(x)), size, sizes, targets)
        return found._replace(boxes=_to_pixels(found.boxes, size, sizes)) if isinstance(found, Answer) else found

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Class logits (B, Q, C), and boxes (B, Q, 4) xyxy in pixels."""
        return ("class_logits", "query_boxes")

    def decode(self, raw: Answer, input_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The decoder's last answer -> boxes (B, Q, 4) xyxy in input pixels, and scores (B, Q, C) in 0-1."""
        return raw.boxes, raw.logits.sigmoid()


def _to_pixels(boxes: Tensor, input_size: tuple[int, int], sizes: Tensor | None) -> Tensor:
    """(B, Q, 4) cx, cy, w, h in 0-1 -> xyxy in pixels, cut at the border of the valid image."""
    height, width = (torch.ones(1, dtype=torch.float32, device=boxes.device) * side for side in input_size)
    if sizes is not None:
        valid = sizes.to(boxes.device, torch.float32)
        height, width = torch.minimum(valid[:, 0], height), torch.minimum(valid[:, 1], width)
    centres, sides = boxes.chunk(2, -1)
    corners = torch.cat([centres - sides / 2, centres + sides / 2], -1).clamp(0, 1)
    return corners * torch.stack([width, height, width, height], -1)[:, None]
