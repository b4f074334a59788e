"""The score after an epoch: rectangular batches through the averaged network, COCO's mAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from agssp_zoo.config import Preprocess
from agssp_zoo.errors import AgsspZooError
from agssp_zoo.geometry import Placement, prepare
from agssp_zoo.models.postprocess import select_detections

from .data.records import Record
from .evaluation.inputs import Prediction
from .evaluation.quick import QuickMap, quick_map
from .loader import decode_until

if TYPE_CHECKING:
    from agssp_zoo.models.detectors import DetectorModule

CONF = 0.001
"""Detections below this score do not count; COCO's curves need the weak ones too."""
MAX_CANDIDATES = 3000


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it: canvas (h, w, 3) uint8 and where the image lies on it."""

    canvas: NDArray[np.uint8]
    placement: Placement


class Validator:
    """Scores a network on a split.

    Images are sorted by shape, so that a batch is padded little, and their canvases are kept in memory. Images that
    cannot be read are left out; ``problems`` names them, and whoever asks for the score has to judge that.

    Args:
        records: the labelled images.
        class_names: names in label order.
        preprocess: how an image becomes the input.
        batch: images a forward pass.
        cache_bytes: canvases are kept up to this many bytes, from the start on.
        rank: this process; it takes every ``processes``-th batch.
        processes: how many there are.
    """

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        preprocess: Preprocess,
        *,
        batch: int,
        cache_bytes: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.records = records
        self.class_names = tuple(class_names)
        self.preprocess = preprocess
        ratio = [r.height / r.width if r.width and r.height else 1.0 for r in records]
        order = np.argsort(ratio, kind="stable")
        self.batches = [order[i : i + batch] for i in range(0, len(order), batch)][rank::processes]
        self.problems: list[str] = []
        self._kept: dict[int, Prepared | None] = {}
        own = [int(index) for batch in self.batches for index in batch]
        for index, item in decode_until(self._read, own, lambda p: p.canvas.nbytes, cache_bytes):
            self._keep(index, item)

    @torch.inference_mode()
    def predict(self, module: DetectorModule, device: torch.device) -> dict[int, Prediction]:
        """Detections of this process's images by index, in pixels of the original images."""
        settings = module.config.postprocess
        iou, max_det = (settings.iou, settings.max_det) if settings else (0.7, 300)
        predictions = {}
        for indices in self.batches:
            there = [(int(i), item) for i in indices if (item := self._prepare(int(i))) is not None]
            if not there:
                continue
            prepared = [item for _, item in there]
            height = max(p.canvas.shape[0] for p in prepared)
            width = max(p.canvas.shape[1] for p in prepared)
            images = np.full((len(prepared), height, width, 3), self.preprocess.pad_value, np.uint8)
            for row, item in enumerate(prepared):
                images[row, : item.canvas.shape[0], : item.canvas.shape[1]] = item.canvas
            valid = None
            if self.preprocess.pad_after_normalize:
                valid = torch.tensor([item.placement.resized for item in prepared], device=device)
            raw = module(module.normalize(torch.from_numpy(images).to(device), valid), valid)
            boxes, scores = module.decode(raw, (height, width))
            found = select_detections(
                boxes,
                scores,
                conf=CONF,
                iou=iou,
                max_det=max_det,
                max_candidates=MAX_CANDIDATES,
                multi_label=True,
            )
            kept_boxes, kept_scores, kept_labels, counts = (t.cpu().numpy() for t in found)
            for row, (index, item) in enumerate(there):
                n = int(counts[row])
                predictions[index] = Prediction(
                    item.placement.to_original(kept_boxes[row, :n]), kept_scores[row, :n], kept_labels[row, :n]
                )
        return predictions

    def score(self, predictions: dict[int, Prediction]) -> QuickMap:
        """COCO's mAP of the detections of all images that could be read."""
        order = sorted(predictions)
        return quick_map([self.records[i] for i in order], [predictions[i] for i in order], self.class_names)

    def _prepare(self, index: int) -> Prepared | None:
        """An image as the network takes it; ``None`` when it cannot be read."""
        if index in self._kept:
            return self._kept[index]
        try:
            return self._read(index)
        except (AgsspZooError, OSError) as error:
            return self._keep(index, error)

    def _keep(self, index: int, item: Prepared | Exception) -> Prepared | None:
        if isinstance(item, Exception):
            self.problems.append(str(item))
        self._kept[index] = None if isinstance(item, Exception) else item
        return self._kept[index]

    def _read(self, index: int) -> Prepared:
        return Prepared(*prepare(self.records[index].load_image(), self.preprocess))
