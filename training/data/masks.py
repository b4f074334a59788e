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
from .problems import Problems, some
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
        pixels = _read(file)
        if pixels is None:
            message = "not a readable image; the image it is for is left out."
            named.refuse(image, "corrupt-mask", file, message, problems)
            continue
        values = _values(pixels)
        size = (values.shape[1], values.shape[0])
        if pending.size not in (None, size):
            message = f"has {size[0]}x{size[1]} pixels, {pending.file} of the same image other ones; it is left out."
            named.refuse(image, "size-mismatch", file, message, problems)
            continue
        pending.size = size
        if _is_picture(values, _class_folder(rel)):
            one = bool(_class_folder(rel)) or (listed is not None and len(listed) == 1)
            _judge(pixels, values, one, label, file, pending.key, problems)
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
        first = _numbered(1)
        named.boxes = [(pending, "defect" if name == first else name, box) for pending, name, box in named.boxes]
    return named.finish(root, "masks", listed, "mask", problems)


def read_mask(root: Path, rel: str) -> NDArray[np.bool_] | None:
    """Where a mask file of a folder shows a defect of any class, bool (H, W); ``None`` when it cannot be read."""
    pixels = _read(root / rel)
    if pixels is None:
        return None
    values = _values(pixels)
    chosen = [where for *_, where in _classes(values, _class_folder(rel), None)]
    return np.logical_or.reduce(chosen) if chosen else np.zeros(values.shape, np.bool_)


def _class_folder(rel: str) -> str:
    """The folder below the mask folder that is not a split's, if there is one."""
    parts = rel.split("/")[:-1]
    start = next(index for index, part in enumerate(parts) if part.lower() in MASK_FOLDERS)
    return readable(next((part for part in reversed(parts[start + 1 :]) if not split_name(part)), ""))


def _read(file: Path) -> NDArray[np.uint16] | None:
    """A mask as it is stored, (H, W) or, in colour, (H, W, 3); 255 for the ones of a 1-bit mask."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            values = np.asarray(image)
    except Exception:  # Pillow's plugins raise many kinds on broken files
        return None
    if values.dtype == np.bool_:
        return values.astype(np.uint16) * 255
    if values.ndim == 3:
        values = values[..., :3] if values.shape[2] > 2 else values[..., 0]
    return values.astype(np.uint16)


def _values(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A mask's values, (H, W); the largest of the bands of a colour mask."""
    return pixels if pixels.ndim == 2 else pixels.max(axis=2)


def _is_picture(values: NDArray[np.uint16], folder: str) -> bool:
    """Whether a mask is a gray picture of one class, and its values do not number classes."""
    rest = values[values != 255]
    return bool(folder) or not rest.any() or int(rest.max()) > LARGEST_CLASS_VALUE


def _threshold(values: NDArray[np.uint16]) -> int:
    """Above which value a gray picture shows the defect: half of its range, so that soft edges are halved."""
    top = int(values.max())
    return 0 if not ((values > 0) & (values < top)).any() else top // 2


def _judge(
    pixels: NDArray[np.uint16],
    values: NDArray[np.uint16],
    one: bool,
    label: Any,
    file: Path,
    key: str,
    problems: Problems,
) -> None:
    """Notes what is lost where a mask is read as a gray picture of one class although its values tell more.

    Even areas of several values or colours are no soft edges of one, unless there are more of them than classes, as on
    a map of probabilities. Where the mask is known to be of ``one`` class, that matters only below the threshold.
    """
    top, threshold = int(values.max()), _threshold(values)
    if not top or (not threshold and pixels.ndim == 2):
        return  # empty, or all of one value
    slack = top // 8  # what compression does to one value
    kinds = _even_areas(pixels, values > slack)
    kinds = [kind for kind in kinds if np.abs(kind - kinds[0]).max() > slack] + kinds[:1]
    merged = len(kinds) > 1 and not (one and min(kind.max() for kind in kinds) > threshold)
    if merged and len(kinds) <= LARGEST_CLASS_VALUE:
        shown = some(sorted("/".join(map(str, kind.tolist())) for kind in kinds))
        message = (
            f"has even areas of {len(kinds)} values ({shown}), which were read as one class where they are above "
            f"{threshold}. Masks hold 0 and one other value, or class numbers from 0 to {LARGEST_CLASS_VALUE}; where "
            "all are of one class, name it alone in classes.txt and keep the values above half of the largest."
        )
        problems.error("mask-values", file, message, key=key)
        return
    components, count = label(values > top // 4, np.ones((3, 3), np.uint8))
    kept = np.unique(components[values > threshold])
    areas = np.bincount(components.ravel(), minlength=count + 1)
    lost = int((np.delete(areas, [0, *kept.tolist()]) >= SPECK).sum())
    if lost:
        message = f"{lost} of {count} components are nowhere above {threshold}, half of the range, and were left out."
        problems.warning("mask-faint", file, message, key=key)


def _even_areas(pixels: NDArray[np.uint16], where: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The values or colours, the most frequent first, that a pixel shares with all eight around it."""
    colors = pixels.reshape(*pixels.shape[:2], -1).astype(np.int64)
    codes = (colors * (1 << 16) ** np.arange(colors.shape[2])).sum(axis=2)
    across, down = codes[:, 1:] == codes[:, :-1], codes[1:] == codes[:-1]
    rows = across[:, 1:] & across[:, :-1]
    even = rows[2:] & rows[1:-1] & rows[:-2] & (down[1:] & down[:-1])[:, 1:-1] & where[1:-1, 1:-1]
    found, counts = np.unique(codes[1:-1, 1:-1][even], return_counts=True)
    ordered = found[np.argsort(-counts, kind="stable")]
    return [code // (1 << 16) ** np.arange(colors.shape[2]) % (1 << 16) for code in ordered]


def _classes(
    values: NDArray[np.uint16], folder: str, listed: tuple[str, ...] | None
) -> list[tuple[str, int, NDArray[np.bool_]]]:
    """The classes on a mask, their values (0 where values do not number classes), and where each is."""
    present = np.flatnonzero(np.bincount(values.ravel()))
    present = present[present > 0]
    if not len(present):
        return []
    numbers = present[present != 255].tolist()
    if _is_picture(values, folder):
        name = folder or (listed[0] if listed and len(listed) == 1 else "defect")
        return [(name, 0, values > _threshold(values))]
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
