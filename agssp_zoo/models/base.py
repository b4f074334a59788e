"""What every network of the zoo has in common: its config, and the normalising of its input."""

from __future__ import annotations

import sys
from typing import ClassVar

import torch
from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import InvalidArgumentError


def is_capturing() -> bool:
    """Whether a compiler or an exporter is reading the code now, so that sizes may be symbols."""
    if torch.compiler.is_compiling():
        return True
    onnx = sys.modules.get("torch.onnx")  # not imported here: it costs time, and nobody exports without it
    return onnx is not None and bool(onnx.is_in_onnx_export())


class ZooModule(nn.Module):
    """Base class of backbones and detectors.

    Attributes:
        config: the model's configuration; ``config.preprocess`` holds the mean and standard deviation that
            :meth:`normalize` applies.
        spare_entries: beginnings of names that weights of other origin hold for layers that the network does without.
    """

    spare_entries: ClassVar[tuple[str, ...]] = ()
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # On the CPU even inside `with torch.device("meta")`: these are in no weights file, so nothing would fill them.
        for name, values in (("pixel_mean", config.preprocess.mean), ("pixel_std", config.preprocess.std)):
            buffer = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def reset_parameters(self) -> None:
        """Draws new weights, for training from scratch."""
        raise NotImplementedError

    def normalize(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Pixels -> the network's input.

        Args:
            images: RGB, uint8 (or float in 0-255), (B, H, W, 3), on the module's device.
            sizes: (B, 2) or (1, 2) int64, valid (height, width) of each image, for models that pad after normalising:
                what lies beyond becomes zero. ``None``: all of it is valid.

        Returns:
            (B, 3, H, W) in the module's dtype, channels last in memory. Computed in float32 also for a module in
            half precision.

        Raises:
            InvalidArgumentError: the shape is another one.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise InvalidArgumentError(f"images have shape {tuple(images.shape)}; give (batch, height, width, 3), RGB.")
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        if any(self.config.preprocess.mean):
            x = x - self.pixel_mean.to(torch.float32)
        x = x / self.pixel_std.to(torch.float32)
        if sizes is not None:
            rows, columns = valid_rows_columns(sizes.to(x.device), x.shape[-2], x.shape[-1])
            x = x * (rows[:, None, :, None] & columns[:, None, None, :])
        return x.to(self.pixel_std.dtype)


def valid_rows_columns(sizes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which rows and columns of padded images hold pixels.

    Args:
        sizes: (B, 2) int64, valid (height, width) of each image in its top left corner; more than there is means all.
        height: of the padded images.
        width: of the padded images.

    Returns:
        (B, height) and (B, width) bool.
    """
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return rows, columns
