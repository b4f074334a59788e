"""PyTorch: the trainable module itself, for GPUs, fine-tuning and comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from agssp_zoo.engines.base import WEIGHTS_FILE, RawDetections, score_thresholds
from agssp_zoo.errors import EngineError
from agssp_zoo.models import DetectorModule, load, select_detections

if TYPE_CHECKING:
    from agssp_zoo.folder import ModelFolder


class PyTorchEngine:
    """A detector in PyTorch; see :class:`agssp_zoo.engines.base.Engine`.

    On x86 CPUs convolutions are folded with their BatchNorms at the first image
    (:mod:`agssp_zoo.models.cpu_conv`), which saves about a tenth of the time of a YOLOv8 and takes as much memory as
    their weights once more, beside the module.

    Attributes:
        module: the network; moving or training it shows in the next :meth:`run`.
    """

    name = "pytorch"
    max_det: int | None = None

    def __init__(self, module: DetectorModule) -> None:
        self.module = module
        self.config = module.config

    @classmethod
    def load(cls, folder: ModelFolder, *, device: str = "cpu") -> PyTorchEngine:
        """Builds the network of a folder and fills it.

        Raises:
            EngineError: the device is not there, or the model is no detector.
            IntegrityError, CheckpointError, HubError: its weights cannot be read.
        """
        where = find_device(device)
        module = load(folder.config, folder.file(WEIGHTS_FILE))
        if not isinstance(module, DetectorModule):
            raise EngineError(f"{folder.config.name} is a {folder.config.task}; load it with load_backbone.")
        return cls(module.to(where))

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> RawDetections:
        """See :meth:`agssp_zoo.engines.base.Engine.run`. A module in training mode is evaluated, and put back."""
        settings = self.config.postprocess
        if settings is None:
            raise EngineError(f"{self.config.name} has no postprocess in its config.json.")
        module = self.module
        in_training = [part for part in module.modules() if part.training]
        module.eval()
        try:
            with torch.inference_mode():
                pixels = torch.from_numpy(images).to(module.pixel_mean.device)
                valid = None
                if sizes is not None and self.config.preprocess.pad_after_normalize:
                    valid = torch.from_numpy(sizes).to(pixels.device)
                raw = module(module.normalize(pixels, valid), valid)
                boxes, scores = module.decode(raw, (images.shape[1], images.shape[2]))
                found = select_detections(
                    boxes,
                    scores,
                    conf=score_thresholds(self.config, conf),
                    iou=settings.iou if iou is None else iou,
                    max_det=settings.max_det if max_det is None else max_det,
                    max_candidates=settings.max_candidates,
                    multi_label=settings.multi_label,
                )
                kept, best, labels, count = (tensor.cpu().numpy() for tensor in found)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"The device has no memory for images of shape {images.shape}; take a smaller batch or size."
            ) from error
        finally:
            for part in in_training:
                part.training = True
        return RawDetections(kept.astype(np.float32, copy=False), best.astype(np.float32, copy=False), labels, count)


def find_device(device: str) -> torch.device:
    """The device of a name.

    Raises:
        EngineError: there is no such device here; the message lists those that are.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    if torch.xpu.is_available():
        there += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    if device not in there and f"{device}:0" not in there:
        raise EngineError(f"device={device!r} is not there; PyTorch has {', '.join(there)} here.")
    return torch.device(device)
