"""The contract of a detector: backbone, neck, head; raw outputs for training, decoded ones for detection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.models.backbones.base import Backbone
from agssp_zoo.models.base import ZooModule, is_capturing


class DetectorModule(ZooModule):
    """Base class of detectors.

    Attributes:
        backbone: images to feature maps.
        neck: feature maps to fused ones.
        head: fused feature maps to raw outputs.
        num_classes: number of classes.
        strides: of the head's levels, in input pixels.
    """

    backbone: Backbone
    neck: nn.Module
    head: nn.Module
    strides: tuple[int, ...]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_classes = len(config.class_names)

    def forward(self, x: Tensor) -> Any:
        """Normalised images, float, (B, 3, H, W) -> the head's raw outputs, which the losses and :meth:`decode` take.

        Raises:
            InvalidArgumentError: height or width is no multiple of the config's stride.
        """
        if not is_capturing():
            height, width = x.shape[-2:]
            stride = self.config.preprocess.stride
            if height % stride or width % stride:
                raise InvalidArgumentError(
                    f"the input is {height}x{width}; {self.config.architecture} needs multiples of {stride}."
                )
        return self.head(self.neck(self.backbone(x)))

    @abstractmethod
    def decode(self, raw: Any, input_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes (B, N, 4) xyxy in input pixels, and scores (B, N, C) in 0-1.

        Args:
            raw: what :meth:`forward` answered.
            input_size: (height, width) of the input, for detectors whose boxes are relative to it.
        """
