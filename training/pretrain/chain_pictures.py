"""Pictures for the chain's report: maps with their pseudo-boxes, and what the pretrained detector finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agssp_zoo.detector import load_detector
from agssp_zoo.errors import AgsspZooError
from agssp_zoo.plotting import draw

from ..anomaly.boxes import CLASS_NAME, BoxSettings, PseudoBoxes
from ..anomaly.store import MapStore
from ..anomaly.visualize import draw_sheet, write_pictures
from ..data.dataset import Dataset
from ..data.records import Record
from .stage2_settings import BOXES_FOLDER

CONF = 0.2
"""Detections with a score above this are drawn."""
_SIDE = 260
"""Side of a square image among the detections, in pixels; others get the same area."""


def kept_boxes(folder: Path, images: Dataset, store: MapStore, settings: BoxSettings) -> dict[str, PseudoBoxes]:
    """The pseudo-boxes that a run of stage 2 has kept, of the images to learn from and of those held out.

    Args:
        folder: of the run.
        images: the pool.
        store: its maps.
        settings: the rule that made them.
    """
    known = {record.key: record for record in images}
    found = {}
    for split in ("train", "val"):
        document = json.loads((folder / BOXES_FOLDER / f"instances_{split}.json").read_bytes())
        rows: dict[int, list[tuple[float, list[float]]]] = {entry["id"]: [] for entry in document["images"]}
        for entry in document["annotations"]:
            x, y, width, height = entry["bbox"]
            rows[entry["image_id"]].append((entry["score"], [x, y, x + width, y + height]))
        records, scores = [], []
        for entry in document["images"]:
            own = rows[entry["id"]]
            boxes = np.array([box for _, box in own], np.float32).reshape(-1, 4)
            none = np.zeros(len(own), np.bool_)
            labels = np.zeros(len(own), np.int64)
            records.append(replace(known[entry["key"]], boxes=boxes, labels=labels, crowd=none, difficult=none))
            scores.append(np.array([score for score, _ in own], np.float32))
        part = replace(images, class_names=(CLASS_NAME,), records=tuple(records), problems=())
        sources = tuple(store.sources[store.row(record.key)] for record in records)
        found[split] = PseudoBoxes(part, tuple(scores), sources, document["info"]["thresholds"], settings)
    return found


def map_sheets(
    store: MapStore,
    images: Dataset,
    boxes: dict[str, PseudoBoxes],
    names: Sequence[str],
    folder: Path,
    limit: int,
) -> dict[str, Image.Image]:
    """A sheet of images, maps and pseudo-boxes for each data set; the pictures are left in a folder.

    Args:
        store: the maps.
        images: the pool; those without a box are shown, too.
        boxes: of :func:`kept_boxes`.
        names: the data sets, each with a map at least.
        folder: where the pictures go, also a larger one of each image.
        limit: images of a data set.
    """
    parts = list(boxes.values())
    everything = PseudoBoxes(
        replace(parts[0].images, records=tuple(record for part in parts for record in part.images)),
        tuple(score for part in parts for score in part.scores),
        tuple(source for part in parts for source in part.sources),
        parts[0].thresholds,
        parts[0].settings,
    )
    held = [record for record in images if record.key in store]
    wanted = tuple(record for record in held if store.sources[store.row(record.key)] in names)
    files = write_pictures(store, replace(images, records=wanted), folder, boxes=everything, limit=limit)
    sheets = {}
    for name, file in zip(sorted(names), files[: len(names)], strict=True):
        with Image.open(file) as picture:
            sheets[name] = picture.convert("RGB")
    return sheets


def detection_sheet(model: Path, boxes: PseudoBoxes, store: MapStore, count: int) -> Image.Image | None:
    """Held-out images, each with its pseudo-boxes beside what the detector finds; ``None`` without any.

    Args:
        model: the detector's folder.
        boxes: of the held-out images.
        store: their maps.
        count: how many images.
    """
    chosen = _spread(boxes, store, count)
    if not chosen:
        return None
    detector = load_detector(model, engine="pytorch")
    tiles = []
    for record in chosen:
        try:
            image = record.load_image()
        except AgsspZooError:
            continue
        ratio = _SIDE / (image.shape[0] * image.shape[1]) ** 0.5
        size = (max(8, round(image.shape[1] * ratio)), max(8, round(image.shape[0] * ratio)))
        scale = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2, np.float32)
        small: NDArray[np.uint8] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        found = detector.predict([image], conf=CONF)[0]
        texts = [f"{score:.2f}" for score in found.scores]
        given, scores = boxes.of(record.key)
        left = draw(small, given * scale, np.zeros(len(given), np.int64), [f"{score:.2f}" for score in scores])
        right = draw(small, found.boxes * scale, found.labels, texts)
        tile = Image.new("RGB", (2 * size[0] + 4, size[1]), (255, 255, 255))
        tile.paste(left, (0, 0))
        tile.paste(right, (size[0] + 4, 0))
        tiles.append(tile)
    return draw_sheet(tiles) if tiles else None


def _spread(boxes: PseudoBoxes, store: MapStore, count: int) -> list[Record]:
    """Of every data set in turn the image with the highest score left."""
    queues: dict[str, list[Record]] = {}
    for record, source in zip(boxes.images, boxes.sources, strict=True):
        queues.setdefault(source, []).append(record)
    ranked = [sorted(queue, key=lambda r: (-store.score(r.key), r.key)) for _, queue in sorted(queues.items())]
    longest = max(map(len, ranked), default=0)
    return [queue[turn] for turn in range(longest) for queue in ranked if turn < len(queue)][:count]
