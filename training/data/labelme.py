"""labelme: a JSON file an image, with polygons, rectangles, circles and masks; their bounding boxes are read.

Points are in pixels from 0 with fractions, so a box is the smallest and largest of them. Those of a mask are its first
and its last pixel, and its picture has what lies between. Shapes of one label that share a ``group_id`` are parts of
one object and give one box.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError

from .assemble import Box, Named, Pending
from .dataset import Dataset
from .listing import Matcher, list_images
from .problems import Problems
from .splits import assign_splits, read_class_list
from .text import json_list_line, read_json

_IGNORED = ("__ignore__", "_background_")


def read_labelme(root: Path, rels: Sequence[str], problems: Problems) -> Dataset:
    """Reads a folder of images and labelme JSON files.

    Classes are those of classes.txt or labels.txt, else the sorted labels. Images without a JSON file count as
    background. A shape's (or its ``flags``') ``difficult`` and ``crowd`` are kept.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.

    Raises:
        DataError: no images, or no labelme file.
    """
    images = list_images(root, rels)
    matcher = Matcher(images)
    splits = assign_splits(root, images, matcher, rels, problems)
    classes = read_class_list(root, rels, problems)
    named = Named(images, splits)
    any_file = False
    for rel in rels:
        if not rel.lower().endswith(".json"):
            continue
        file = root / rel
        try:
            document = read_json(file)
        except DataError as error:
            message = f"not readable JSON, its image is left out: {error}"
            named.refuse(matcher.match(rel), "bad-label-file", file, message, problems)
            continue
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            continue
        any_file = True
        path, width, height = document.get("imagePath"), document.get("imageWidth"), document.get("imageHeight")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 < height else None
        stated = path if isinstance(path, str) else ""
        pending = named.start(matcher.match(rel, stated), file, stated, problems, size)
        if pending is not None:
            pending.list_name = "shapes"
            named.boxes.extend((pending, name, box) for name, box in _shapes(document["shapes"], pending, problems))
    if not any_file:
        raise DataError(f"{root}: holds no labelme files, a JSON with shapes for every image.")
    return named.finish(root, "labelme", classes, "labelme file", problems)


def _shapes(shapes: list[Any], pending: Pending, problems: Problems) -> list[tuple[str, Box]]:
    """Class names and boxes of the shapes; the parts of a group joined."""
    boxes: list[tuple[str, Box]] = []
    groups: dict[tuple[str, Any], int] = {}
    for position, shape in enumerate(shapes):
        name = shape.get("label") if isinstance(shape, dict) else None
        if isinstance(name, str) and name.strip() in _IGNORED:
            continue
        corners = _corners(shape) if isinstance(name, str) and name.strip() else None
        if corners is None:
            line = json_list_line(Path(pending.file), "shapes", position)
            kind = shape.get("shape_type", "shape") if isinstance(shape, dict) else "shape"
            message = f"left out: a {kind} without label, or without points that span a box."
            problems.error("bad-box", pending.file, message, line=line, key=pending.key)
            continue
        flags = shape.get("flags")
        marks = {**shape, **(flags if isinstance(flags, dict) else {})}
        box = Box(*corners, -1, position, bool(marks.get("crowd")), bool(marks.get("difficult")))
        name = str(name).strip()
        group = shape.get("group_id")
        if isinstance(group, (int, str)) and (name, group) in groups:
            place = groups[name, group]
            boxes[place] = (name, _join(boxes[place][1], box))
            continue
        if isinstance(group, (int, str)):
            groups[name, group] = len(boxes)
        boxes.append((name, box))
    return boxes


def _corners(shape: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Corners of the box around a shape."""
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < 2:
        return None
    try:
        xs, ys = [float(point[0]) for point in points], [float(point[1]) for point in points]
    except (TypeError, ValueError, IndexError):
        return None
    if not all(map(math.isfinite, [*xs, *ys])):
        return None
    if shape.get("shape_type") == "circle":
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    if shape.get("shape_type") == "mask":
        left, top = round(min(xs)), round(min(ys))
        width, height = _mask_size(shape.get("mask")) or (round(max(xs)) + 1 - left, round(max(ys)) + 1 - top)
        return left, top, left + width, top + height
    return min(xs), min(ys), max(xs), max(ys)


def _mask_size(encoded: Any) -> tuple[int, int] | None:
    """Width and height of a mask's picture, a PNG in base64; ``None`` where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            return image.size
    except Exception:  # Pillow's plugins raise many kinds on broken files
        return None


def _join(one: Box, other: Box) -> Box:
    return one._replace(
        x1=min(one.x1, other.x1),
        y1=min(one.y1, other.y1),
        x2=max(one.x2, other.x2),
        y2=max(one.y2, other.y2),
        crowd=one.crowd or other.crowd,
        difficult=one.difficult or other.difficult,
    )
