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
from agssp_zoo.seams import Found, Window
from agssp_zoo.tiling import Tiling

from .data.records import Record
from .evaluation.inputs import Prediction
from .evaluation.quick import QuickMap, quick_map
from .loader import decode_until
from .tiled import Reader, cut

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
        tiling: how large images are cut, and what their tiles find is merged, as ``agssp-zoo val --tile`` does it.
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
        tiling: Tiling | None = None,
    ) -> None:
        self.records = records
        self.class_names = tuple(class_names)
        self.preprocess = preprocess
        ratio = [r.height / r.width if r.width and r.height else 1.0 for r in records]
        order = np.argsort(ratio, kind="stable")
        self.tiling = tiling
        if tiling is None:
            parts = [order[i : i + batch] for i in range(0, len(order), batch)][rank::processes]
            self.units: list[tuple[int, Record]] = [
                (int(index), records[int(index)]) for part in parts for index in part
            ]
            lengths = [len(part) for part in parts]
        else:  # all tiles of an image belong to one process, which merges them
            reader = Reader()
            self.units = [
                (int(index), tile)
                for index in order[rank::processes]
                for tile in cut(records[index], self._windows(int(index)), reader)
            ]
            lengths = [len(self.units[i : i + batch]) for i in range(0, len(self.units), batch)]
        ends = np.cumsum(lengths, dtype=int)
        self.batches = [range(end - length, end) for end, length in zip(ends.tolist(), lengths, strict=True)]
        self.problems: list[str] = []
        self._kept: dict[int, Prepared | None] = {}
        for unit, item in decode_until(self._read, range(len(self.units)), lambda p: p.canvas.nbytes, cache_bytes):
            self._keep(unit, item)

    @torch.inference_mode()
    def predict(self, module: DetectorModule, device: torch.device) -> dict[int, Prediction]:
        """Detections of this process's images by index, in pixels of the original images."""
        settings = module.config.postprocess
        iou, max_det = (settings.iou, settings.max_det) if settings else (0.7, 300)
        multi_label = settings.multi_label if settings else True
        found_in: dict[int, list[Found]] = {}
        unreadable: set[int] = set()
        for units in self.batches:
            items = [(self.units[unit][0], self._prepare(unit)) for unit in units]
            there = [(index, item) for index, item in items if item is not None]
            unreadable |= {index for index, item in items if item is None}
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
                multi_label=multi_label,
            )
            kept_boxes, kept_scores, kept_labels, counts = (t.cpu().numpy() for t in found)
            for row, (index, item) in enumerate(there):
                n = int(counts[row])
                one = item.placement.to_original(kept_boxes[row, :n]), kept_scores[row, :n], kept_labels[row, :n]
                found_in.setdefault(index, []).append(one)
        whole = {index: found for index, found in found_in.items() if index not in unreadable}
        return {index: Prediction(*self._merge(index, found, iou, max_det)) for index, found in whole.items()}

    def _windows(self, index: int) -> list[Window]:
        return self.tiling.windows(self._size(index)) if self.tiling else []

    def _size(self, index: int) -> tuple[int, int]:
        return self.records[index].height, self.records[index].width

    def _merge(self, index: int, found: Sequence[Found], iou: float, max_det: int) -> Found:
        """What an image's parts have found; without tiles there is one."""
        if self.tiling is None:
            return found[0]
        corners = [np.array([left, top, left, top], np.float32) for top, left, _, _ in self._windows(index)]
        moved = [(one[0] + corner, one[1], one[2]) for one, corner in zip(found, corners, strict=True)]
        merged = self.tiling.merge(moved, self._size(index), iou)
        return merged[0][:max_det], merged[1][:max_det], merged[2][:max_det]

    def score(self, predictions: dict[int, Prediction]) -> QuickMap:
        """COCO's mAP of the detections of all images that could be read."""
        order = sorted(predictions)
        return quick_map([self.records[i] for i in order], [predictions[i] for i in order], self.class_names)

    def _prepare(self, unit: int) -> Prepared | None:
        """A part of an image as the network takes it; ``None`` when it cannot be read."""
        if unit in self._kept:
            return self._kept[unit]
        try:
            return self._read(unit)
        except (AgsspZooError, OSError) as error:
            return self._keep(unit, error)

    def _keep(self, unit: int, item: Prepared | Exception) -> Prepared | None:
        if isinstance(item, Exception) and str(item) not in self.problems:
            self.problems.append(str(item))
        self._kept[unit] = None if isinstance(item, Exception) else item
        return self._kept[unit]

    def _read(self, unit: int) -> Prepared:
        return Prepared(*prepare(self.units[unit][1].load_image(), self.preprocess))
