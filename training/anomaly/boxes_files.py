"""Pseudo-boxes on disk: a COCO JSON that names the images where they are, and YOLO's text files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.folder import write_text

from ..data.coco_export import to_coco
from ..data.dataset import Dataset
from ..data.problems import some
from ..data.text import read_json
from .boxes import CLASS_NAME, PseudoBoxes
from .layout import writing
from .store import MapStore

COCO_NAME = "pseudo_boxes.json"
YOLO_NAME = "yolo"
_MARK = "made_by.json"
_KIND = "agssp-zoo pseudo-boxes"


def to_coco_boxes(boxes: PseudoBoxes, store: MapStore) -> dict[str, Any]:
    """The dict that the COCO file holds: as :func:`to_coco`, with a ``score`` for each box, and ``info`` on how."""
    document = to_coco(boxes.images)
    scores = [float(score) for values in boxes.scores for score in values]
    for annotation, score in zip(document["annotations"], scores, strict=True):
        annotation["score"] = round(score, 6)
    info = {
        "description": "Pseudo-boxes of anomaly maps; no person has drawn them.",
        "kind": _KIND,
        "settings": asdict(boxes.settings),
        "thresholds": boxes.thresholds,
        "maps": store.settings,
        "maps_fingerprint": store.fingerprint,
    }
    return {"info": info, **document}


def write_coco(boxes: PseudoBoxes, store: MapStore, folder: Path) -> Path:
    """Writes ``pseudo_boxes.json``; :func:`read_dataset` reads it, with the images where they are.

    Images in shards have no file of their own; :func:`with_boxes` puts the boxes on them.

    Raises:
        TrainingError: it cannot be written.
    """
    file = folder / COCO_NAME
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(to_coco_boxes(boxes, store), ensure_ascii=False) + "\n")
    return file


def with_boxes(images: Dataset, path: str | os.PathLike[str]) -> Dataset:
    """Images with the pseudo-boxes of a COCO file as their labels, matched by key; also for images in shards.

    Images that the file does not know are left out.

    Raises:
        DataError: the file is not one of pseudo-boxes, knows none of the images, or knew one at another size.
    """
    document = read_json(Path(path))
    if not isinstance(document, dict) or document.get("info", {}).get("kind") != _KIND:
        raise DataError(f"{path}: holds no pseudo-boxes; `agssp-zoo pseudo-boxes` makes them.")
    found: dict[int, list[list[float]]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        found[entry["image_id"]].append([x, y, x + width, y + height])
    known = {entry["key"]: entry for entry in document["images"]}
    records = []
    for record in images:
        entry = known.get(record.key)
        if entry is None:
            continue
        if (entry["width"], entry["height"]) != (record.width, record.height):
            raise DataError(f"{path}: image {record.key!r} had another size when its boxes were made; make them anew.")
        rows = np.array(found[entry["id"]], np.float32).reshape(-1, 4)
        no, none = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        records.append(replace(record, boxes=rows, labels=no, crowd=none, difficult=none))
    if not records:
        raise DataError(f"{path}: has no boxes of the images of {images.path}; its keys are like {some(list(known))}.")
    return replace(images, class_names=(CLASS_NAME,), records=tuple(records), problems=())


def write_yolo(boxes: PseudoBoxes, folder: Path) -> Path:
    """Writes ``yolo/labels/KEY.txt`` for every image, empty where it has no box, and ``yolo/classes.txt``.

    Keys are the images' paths without folders called ``images``, so that the folder ``labels`` fits beside one of that
    name. The folder is built under a temporary name; only one that this function has made is replaced.

    Raises:
        InvalidArgumentError: there is a folder ``yolo`` with something else in it.
        DataError: a key is no path below the folder.
        TrainingError: it cannot be written.
    """
    target, building = folder / YOLO_NAME, folder / f".{YOLO_NAME}.{os.getpid()}.tmp"
    if target.exists() and not (target / _MARK).is_file():
        raise InvalidArgumentError(f"{target}: is there, but not made by this command; give another --out.")
    aside = folder / f".{YOLO_NAME}.{os.getpid()}.old"
    with writing(target):
        shutil.rmtree(building, ignore_errors=True)
        try:
            (building / "labels").mkdir(parents=True)
            (building / "classes.txt").write_text(f"{CLASS_NAME}\n", encoding="utf-8")
            settings = {"kind": _KIND, "settings": asdict(boxes.settings), "thresholds": boxes.thresholds}
            (building / _MARK).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            for record in boxes.images:
                file = building / "labels" / f"{_safe(record.key)}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                centres = (record.boxes[:, :2] + record.boxes[:, 2:]) / 2 / (record.width, record.height)
                sides = (record.boxes[:, 2:] - record.boxes[:, :2]) / (record.width, record.height)
                rows = np.concatenate([centres, sides], axis=1).tolist()
                lines = ["0 " + " ".join(f"{value:.6f}" for value in row) + "\n" for row in rows]
                file.write_text("".join(lines), encoding="utf-8", newline="\n")
            if target.exists():
                target.replace(aside)
            building.replace(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            if aside.exists() and not target.exists():
                aside.replace(target)
            shutil.rmtree(aside, ignore_errors=True)
    return target


def _safe(key: str) -> PurePosixPath:
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"image key {key!r} is no path below a folder, so no label file can be named after it.")
    return path
