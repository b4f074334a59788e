"""The contract of a detector: backbone, neck, head; raw outputs for training, decoded ones for detection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.models.backbones.base import Backbone
from agssp_zoo.models.base import ZooModule, is_capturing
from agssp_zoo.models.targets import Targets


class DetectorModule(ZooModule):
    """Base class of detectors.

    Attributes:
        family: how it is trained, ``"yolov8"``, ``"faster_rcnn"`` or ``"dino"``.
        backbone: images to feature maps.
        neck: feature maps to fused ones.
        head: fused feature maps to raw outputs.
        num_classes: number of classes.
        class_layers: names of the layers that tell the classes apart, drawn anew when a model learns other classes.
        strides: of the head's levels, in input pixels.
        rows_are_queries: whether rows of an answer begin with the best proposals; of two whose scores are equal but for
            rounding, either may come first.
    """

    family: ClassVar[str]
    rows_are_queries: ClassVar[bool] = False
    class_layers: tuple[str, ...]
    backbone: Backbone
    neck: nn.Module
    head: nn.Module
    strides: tuple[int, ...]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_classes = len(config.class_names)

    def forward(self, x: Tensor, sizes: Tensor | None = None, targets: Targets | None = None) -> Any:
        """Normalised images -> the head's raw outputs, which the losses and :meth:`decode` take.

        Args:
            x: float, (B, 3, H, W).
            sizes: (B, 2) int64 valid height and width of each image in the top left corner of its canvas, the rest
                being zero, for detectors whose answer depends on it; ``None``: all is valid.
            targets: the labelled boxes, for detectors that need them to choose what they are trained on. With them the
                raw outputs are those that the loss takes.

        Raises:
            InvalidArgumentError: height or width is no multiple of the config's stride.
        """
        self.check_input(x)
        return self.head(self.neck(self.backbone(x)))

    def check_input(self, x: Tensor) -> None:
        """Raises InvalidArgumentError when height or width of a batch is no multiple of the config's stride."""
        if is_capturing():
            return
        height, width = x.shape[-2:]
        stride = self.config.preprocess.stride
        if height % stride or width % stride:
            raise InvalidArgumentError(
                f"the input is {height}x{width}; {self.config.architecture} needs multiples of {stride}."
            )

    @property
    @abstractmethod
    def raw_names(self) -> tuple[str, ...]:
        """What the tensors of the raw outputs are called in a graph, in order."""

    def row_boxes(self, raw: Any) -> Tensor | None:
        """What the rows of an answer belong to, where their order is no fixed one; (B, N, 4) xyxy, or ``None``.

        Two runtimes may put rows of nearly equal scores in another order; whoever compares them matches rows by these.

        Args:
            raw: what :meth:`forward` answered.
        """
        return None

    @abstractmethod
    def decode(self, raw: Any, input_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes (B, N, 4) xyxy in input pixels, and scores (B, N, C) in 0-1.

        Detectors that answer a box for every class give boxes (B, N, C, 4).

        Args:
            raw: what :meth:`forward` answered.
            input_size: (height, width) of the input, for detectors whose boxes are relative to it.
        """
