"""Mask folders: for every defective image a mask, whose connected components become boxes.

Pixels that touch at an edge or a corner belong together (8-connected). Which class a component is:

- masks in folders of their own (``masks/crack/a.png``): the folder's name;
- masks of a few small values, or with a palette: the value; names from classes.txt, value 1 being its first line
  (without it ``class_01`` and so on, or ``defect`` where no mask of the whole set has another value than 1);
- else one class, ``defect`` (or the only line of classes.txt), where the mask is above half of its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, MissingDependencyError

from .assemble import Box, Named
from .dataset import Dataset
from .listing import MASK_FOLDERS, Matcher, in_folder, is_image, list_images, split_name
from .problems import Problems
from .progress import progress
from .splits import assign_splits, read_class_list
from .text import readable

SPECK = 4
"""Components of fewer pixels than this are left out, with a warning: they are noise of the mask, not defects."""

LARGEST_CLASS_VALUE = 31
"""Masks whose values all lie in 0..this (255 aside, VOC's "void") number classes; others are gray pictures of one."""


def read_masks(root: Path, rels: Sequence[str], problems: Problems) -> Dataset:
    """Reads a folder of images and masks.

    Masks lie in a folder called masks, mask, ground_truth, gt or SegmentationClass, under the same path and stem as
    the images, or with ``_mask``, ``_label`` or ``_gt`` after the stem. Images without a mask are free of defects.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.

    Raises:
        DataError: no images, or no masks.
        MissingDependencyError: scipy is not installed.
    """
    label, find_objects = _scipy()
    files = [rel for rel in rels if is_image(rel) and in_folder(rel, MASK_FOLDERS)]
    if not files:
        raise DataError(f"{root}: holds no masks; they lie in a folder called masks, beside one called images.")
    images = list_images(root, rels)
    matcher = Matcher(images)
    splits = assign_splits(root, images, matcher, rels, problems)
    listed = read_class_list(root, rels, problems, numbered=not all(map(_class_folder, files)))
    named = Named(images, splits)
    numbers: set[int] = set()
    for rel in progress(files, len(files), "reading masks"):
        file = root / rel
        image = matcher.match(rel, mask=True)
        # An image may have several masks, one for each class that is on it.
        pending = named.found.get(image.key) if image else None
        pending = pending or named.start(image, file, "", problems)
        if pending is None:
            continue
        values = _read(file)
        if values is None:
            message = "not a readable image; the image it is for is left out."
            named.refuse(image, "corrupt-mask", file, message, problems)
            continue
        pending.size = (values.shape[1], values.shape[0])
        for name, number, chosen in _classes(values, _class_folder(rel), listed):
            numbers |= {number} - {0}
            components, count = label(chosen, np.ones((3, 3), np.uint8))
            areas = np.bincount(components.ravel(), minlength=count + 1)[1:]
            specks = int((areas < SPECK).sum())
            if specks:
                none = " and nothing is left: the image counts as free of defects" if specks == count else ""
                message = f"{specks} of {count} components have under {SPECK} pixels and were left out{none}."
                problems.warning("mask-speck", file, message, key=pending.key)
            for area, (rows, columns) in zip(areas, find_objects(components), strict=True):
                if area >= SPECK:
                    box = Box(columns.start, rows.start, columns.stop, rows.stop, -1)
                    named.boxes.append((pending, name, box))
    if listed is None and numbers == {1}:  # no mask of the whole set tells classes apart
        one = _numbered(1)
        named.boxes = [(pending, "defect" if name == one else name, box) for pending, name, box in named.boxes]
    return named.finish(root, "masks", listed, "mask", problems)


def read_mask(root: Path, rel: str) -> NDArray[np.bool_] | None:
    """Where a mask file of a folder shows a defect of any class, bool (H, W); ``None`` when it cannot be read."""
    values = _read(root / rel)
    if values is None:
        return None
    chosen = [where for *_, where in _classes(values, _class_folder(rel), None)]
    return np.logical_or.reduce(chosen) if chosen else np.zeros(values.shape, np.bool_)


def _class_folder(rel: str) -> str:
    """The folder below the mask folder that is not a split's, if there is one."""
    parts = rel.split("/")[:-1]
    start = next(index for index, part in enumerate(parts) if part.lower() in MASK_FOLDERS)
    return readable(next((part for part in reversed(parts[start + 1 :]) if not split_name(part)), ""))


def _read(file: Path) -> NDArray[np.uint16] | None:
    """A mask's values, (H, W); the largest of the bands of a colour mask, 255 for the ones of a 1-bit mask."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            values = np.asarray(image)
    except Exception:  # Pillow's plugins raise many kinds on broken files
        return None
    if values.dtype == np.bool_:
        return values.astype(np.uint16) * 255
    if values.ndim == 3:
        values = values[..., : 3 if values.shape[2] > 2 else 1].max(axis=2)
    return values.astype(np.uint16)


def _classes(
    values: NDArray[np.uint16], folder: str, listed: tuple[str, ...] | None
) -> list[tuple[str, int, NDArray[np.bool_]]]:
    """The classes on a mask, their values (0 where values do not number classes), and where each is."""
    present = np.flatnonzero(np.bincount(values.ravel()))
    present = present[present > 0]
    if not len(present):
        return []
    numbers = present[present != 255].tolist()
    if folder or not numbers or numbers[-1] > LARGEST_CLASS_VALUE:
        threshold = 0 if len(present) == 1 else int(present[-1]) // 2
        name = folder or (listed[0] if listed and len(listed) == 1 else "defect")
        return [(name, 0, values > threshold)]
    names = [listed[v - 1] if listed and v <= len(listed) else _numbered(v) for v in numbers]
    return [(name, value, values == value) for name, value in zip(names, numbers, strict=True)]


def _numbered(value: int) -> str:
    return f"class_{value:02d}"


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy.ndimage import find_objects, label
    except ImportError:
        raise MissingDependencyError("Reading masks needs scipy; run `pip install 'agssp-zoo[train]'`.") from None
    return label, find_objects
