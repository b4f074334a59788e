"""Measuring a store of anomaly maps against what is known: masks, boxes, and images free of defects.

Which images count where:

- an image with a mask counts for the pixel figures, and is defective where the mask (or a box) says so;
- an image with neither mask nor boxes is free of defects, as labelled data have it, and counts for both;
- an image with boxes but no mask is defective, and is left out of the pixel figures.

Image figures need images of both kinds; where every image is defective (NEU-DET) they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agssp_zoo.errors import DataError
from agssp_zoo.geometry import box_iou

from ..data.dataset import Dataset
from ..data.problems import some
from ..data.progress import progress
from ..data.records import Record
from ..data.unlabelled import pool_names
from .boxes import BoxSettings, pseudo_boxes
from .grid import enlarge
from .metrics import PixelCounter, ScoreBins, image_figures
from .store import MapStore
from .truth import Masks

BOX_IOUS = (0.1, 0.3, 0.5)
"""A true box counts as found by a pseudo-box that overlaps it by at least this."""

_BLOCK = 4096


def evaluate_maps(store: MapStore, dataset: Dataset, *, boxes: BoxSettings | None = None) -> dict[str, Any]:
    """Measures maps, image scores and pseudo-boxes.

    Maps are resized bilinearly to their images, and measured as the method gave them (not rescaled). Figures of
    several data sets in one store are not comparable as they stand, so each is measured alone, under ``sources``, and
    the figures at the top are the means over those that have them.

    Args:
        store: the maps; may hold other images, too.
        dataset: labelled images; those that the store has no map of are left out and counted, and so are those that
            were given to the method as normal images.
        boxes: how pseudo-boxes are made.

    Returns:
        ``images``, ``left_out``, ``given_as_normal``, ``with_mask``, ``normal``, and, where they can be told:
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1`` and ``aupro`` over ``pixel_images`` with ``regions`` connected
        defects; ``image_auroc``, ``image_ap`` and ``image_f1``; ``box_recall_10``, ``_30`` and ``_50`` (the share of
        ``true_boxes`` that a pseudo-box overlaps by that IoU), ``box_mean_iou`` (the mean over true boxes of the best
        IoU), ``box_precision_10`` (the share of pseudo-boxes that overlap a true box by an IoU of 0.1) and
        ``boxes_per_image``.

    Raises:
        DataError: the images have no labels, the store has none of them or maps of other pixels, or a mask cannot be
            used.
        MissingDependencyError: scipy is not installed.
    """
    records = [replace(record, key=_stored_key(store, dataset, record)) for record in dataset]
    masks = Masks.find(replace(dataset, records=tuple(records)))
    if dataset.unlabelled and not len(masks):
        raise DataError(
            f"{dataset.path}: holds neither labels nor masks, so nothing is known to measure by; give the labelled "
            "data that its images come from (`agssp-zoo prepare-data` packs images without their labels)."
        )
    given = _given_as_normal(store.settings)
    seen = [record for record in records if record.key in store]
    held = [record for record in seen if record.key not in given]
    if not held:
        keys = some([record.key for record in dataset])
        raise DataError(
            f"{store.path}: has no maps of the {len(dataset)} images of {dataset.path} ({keys}); its keys are like "
            f"{some(list(store.keys))}."
        )
    found = replace(dataset, records=tuple(held))
    store.check(found)
    names = [store.sources[store.row(record.key)] for record in held]
    parts = {}
    for name in sorted(set(names)):
        chosen = tuple(record for record, source in zip(held, names, strict=True) if source == name)
        parts[name] = _evaluate(store, replace(found, records=chosen), masks, boxes or BoxSettings())
    result = next(iter(parts.values())) if len(parts) == 1 else {**_mean(list(parts.values())), "sources": parts}
    return {"left_out": len(dataset) - len(seen), "given_as_normal": len(seen) - len(held), **result}


def _given_as_normal(settings: Mapping[str, Any]) -> set[str]:
    """Keys of the images that a method was told to be normal; their own maps flatter it."""
    normal = settings.get("normal")
    keys = set(normal.get("in_pool", ())) if isinstance(normal, dict) else set()
    return keys.union(*(_given_as_normal(part) for part in settings.get("parts", ())))


def _stored_key(store: MapStore, dataset: Dataset, record: Record) -> str:
    """The key under which a store has an image: in a pool of several folders, keys begin with the folder's name.

    Where several have one name, those above them stand before it.
    """
    pooled = (f"{name}/{record.key}" for name in pool_names(dataset.path))
    return next((key for key in (record.key, *pooled) if key in store), record.key)


def _evaluate(store: MapStore, images: Dataset, masks: Masks, settings: BoxSettings) -> dict[str, Any]:
    """The figures of one data set."""
    rows = np.array([store.row(record.key) for record in images], np.int64)
    blocks = (store.maps[np.sort(rows[start : start + _BLOCK])] for start in range(0, len(rows), _BLOCK))
    counter = PixelCounter(ScoreBins(blocks, total=len(rows) * int(np.prod(store.maps.shape[1:]))))
    defective = np.zeros(len(images), np.bool_)
    with_mask = pixels = 0
    for place, record in enumerate(progress(images, len(images), "measuring maps")):
        mask = masks.load(record)
        with_mask += mask is not None
        defective[place] = len(record.labels) > 0 or (mask is not None and bool(mask.any()))
        if mask is None and defective[place]:
            continue
        if mask is None:
            mask = np.zeros((record.height, record.width), np.bool_)
        pixels += 1
        counter.add(enlarge(store.map(record.key), mask.shape), mask)
    result: dict[str, Any] = {"images": len(images), "with_mask": with_mask, "normal": int((~defective).sum())}
    figures = counter.figures()
    if figures:
        result |= {"pixel_images": pixels, "regions": counter.regions, **figures}
    result |= image_figures(store.scores[rows], defective)
    return result | _box_figures(store, images, settings)


def _box_figures(store: MapStore, images: Dataset, settings: BoxSettings) -> dict[str, Any]:
    """How well pseudo-boxes find the true boxes; empty where there are none. Boxes around crowds do not count."""
    if not any((~record.crowd).any() for record in images):
        return {}
    made = pseudo_boxes(store, images, settings)
    best: list[float] = []
    hits = count = 0
    for record, guess in zip(images, made.images, strict=True):
        true = record.boxes[~record.crowd]
        count += len(guess.boxes)
        if len(true):
            iou = box_iou(true, guess.boxes)
            best.extend(iou.max(axis=1, initial=0.0).tolist())
            hits += int((iou.max(axis=0, initial=0.0) >= BOX_IOUS[0]).sum())
    ious = np.array(best)
    recalls = {f"box_recall_{round(limit * 100)}": float((ious >= limit).mean()) for limit in BOX_IOUS}
    return {
        "true_boxes": len(ious),
        **recalls,
        "box_mean_iou": float(ious.mean()),
        "box_precision_10": hits / count if count else 0.0,
        "boxes_per_image": count / len(images),
    }


_COUNTS = ("images", "with_mask", "normal", "pixel_images", "regions", "true_boxes")


def _mean(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums of the counts and means of the figures, each over the data sets that have it."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        joined[key] = sum(values) if key in _COUNTS else float(np.mean(values))
    return joined
