"""From what a reader found to a :class:`Dataset`: image sizes, boxes cleaned, problems noted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .dataset import Dataset, sort_records
from .listing import File, ImageSize, probe_all
from .problems import Problems, Severity, some
from .records import Record, make_labels
from .text import json_list_line

OUTSIDE_BY = 0.5
"""Boxes that leave the image by up to this many pixels are clipped without a word (rounding of normalised boxes)."""


class Box(NamedTuple):
    """A box as a label file gives it, converted to x1 y1 x2 y2 with exclusive ends.

    ``line`` is its line in the label file, or its position in the JSON list that :attr:`Pending.list_name` names.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: int
    line: int | None = None
    crowd: bool = False
    difficult: bool = False


@dataclass(slots=True)
class Pending:
    """An image that a reader found, before its size is known.

    Attributes:
        key: the image's key.
        path: the image file.
        split: its split.
        file: its label file, for messages.
        boxes: what the label file says.
        size: (width, height) as the label file says; ``None`` when it does not.
        normalized: the boxes are in units of the image's size (YOLO).
        list_name: the label file is JSON, and its boxes are the entries of this list; their lines are looked up only
            for messages, since that takes a second pass over the file.
    """

    key: str
    path: str
    split: str
    file: str
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    normalized: bool = False
    list_name: str = ""

    def line(self, box: Box) -> int | None:
        """The line of a box in the label file; ``None`` when it cannot be told."""
        return json_list_line(Path(self.file), self.list_name, box.line) if self.list_name else box.line


def assemble(
    path: str | Path, format: str, class_names: Sequence[str], pending: Sequence[Pending], problems: Problems
) -> Dataset:
    """Reads the images' sizes, cleans the boxes and builds the data set."""
    sizes = probe_all([item.path for item in pending])
    records = []
    for item, size in zip(pending, sizes, strict=True):
        record = _record(item, size, problems)
        if record is not None:
            records.append(record)
    return Dataset(tuple(class_names), sort_records(records), tuple(problems), str(path), format)


@dataclass(slots=True)
class Named:
    """What a reader of label files with class *names* has gathered, image by image.

    Attributes:
        images: all images of the folder.
        splits: the split of each image that takes part, by key.
        found: the images that have a label file, by key.
        boxes: the boxes with their class names.
        refused: keys of images whose label file cannot be read; they are left out, not taken for free of defects.
    """

    images: Sequence[File]
    splits: dict[str, str]
    found: dict[str, Pending] = field(default_factory=dict)
    boxes: list[tuple[Pending, str, Box]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def start(
        self, image: File | None, file: Path, stated: str, problems: Problems, size: tuple[int, int] | None = None
    ) -> Pending | None:
        """Begins an image's labels; ``None`` when there is no such image, it has labels already or takes no part."""
        if image is None:
            hint = f" (it states {stated!r})" if stated else ""
            problems.error("label-without-image", file, f"no image belongs to it{hint}.")
            return None
        if image.key in self.found:
            message = f"{self.found[image.key].file} is for the same image, and was read."
            problems.error("two-label-files", file, message, key=image.key)
            return None
        if image.key not in self.splits:
            return None
        pending = Pending(image.key, image.path, self.splits[image.key], str(file), size=size)
        self.found[image.key] = pending
        return pending

    def refuse(
        self, image: File | None, code: str, file: Path, message: str, problems: Problems, *, line: int | None = None
    ) -> None:
        """Notes that a label file cannot be read, and leaves its image out."""
        key = "" if image is None else image.key
        problems.error(code, file, message, line=line, key=key, split=self.splits.get(key, ""))
        if image is not None:
            self.refused.add(key)

    def finish(self, root: Path, format: str, listed: tuple[str, ...] | None, what: str, problems: Problems) -> Dataset:
        """The data set; classes are the listed ones, else the sorted names. ``what`` is what a label file is called."""
        classes = listed if listed is not None else tuple(sorted({name for _, name, _ in self.boxes}))
        index = {name: label for label, name in enumerate(classes)}
        for pending, name, box in self.boxes:
            if name in index:
                pending.boxes.append(box._replace(label=index[name]))
            else:
                message = f"left out: class {name!r} is not in the class list."
                problems.error("unknown-class", pending.file, message, line=pending.line(box), key=pending.key)
        without = [
            image
            for image in self.images
            if image.key in self.splits and image.key not in self.found and image.key not in self.refused
        ]
        note_unlabelled(root, [image.rel for image in without], len(self.images), what, problems)
        pendings = [item for item in self.found.values() if item.key not in self.refused]
        pendings += [Pending(image.key, image.path, self.splits[image.key], image.path) for image in without]
        return assemble(root, format, classes, pendings, problems)


def note_unlabelled(root: Path, names: list[str], total: int, what: str, problems: Problems) -> None:
    """One warning for all the images that have no label file and therefore count as free of defects."""
    if names:
        problems.warning(
            "no-label-file",
            root,
            f"{len(names)} of {total} images have no {what} and count as free of defects: {some(names)}.",
        )


def _record(item: Pending, size: ImageSize, problems: Problems) -> Record | None:
    """One record, or ``None`` when the image cannot be used (and a problem says so)."""
    if size.error:
        problems.error("corrupt-image", item.path, f"left out: {size.error}.", key=item.key, split=item.split)
        return None
    if item.size is not None and item.size != (size.width, size.height):
        turned = " (the image is stored turned or mirrored, by its EXIF orientation)" if size.turned else ""
        problems.error(
            "size-mismatch",
            item.file,
            f"left out: the labels are for {item.size[0]}x{item.size[1]} pixels, the image {item.path} has "
            f"{size.width}x{size.height}{turned}.",
            key=item.key,
            split=item.split,
        )
        return None
    if size.turned:
        problems.warning(
            "exif-orientation",
            item.path,
            "is stored turned or mirrored, by its EXIF orientation; boxes are taken to be for the upright image.",
            key=item.key,
        )
    boxes, labels, crowd, difficult = clean_boxes(item, size.width, size.height, problems)
    return Record(
        item.key, item.path, item.split, size.width, size.height, *make_labels(boxes, labels, crowd, difficult)
    )


def clean_boxes(
    item: Pending, width: int, height: int, problems: Problems
) -> tuple[list[tuple[float, float, float, float]], list[int], list[bool], list[bool]]:
    """Boxes in pixels, clipped to the image; empty, lost and repeated ones are dropped and noted."""
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    crowds: list[bool] = []
    difficults: list[bool] = []
    seen: set[tuple[int, float, float, float, float]] = set()

    def note(severity: Severity, code: str, box: Box, message: str) -> None:
        problems.add(severity, code, item.file, message, line=item.line(box), key=item.key)

    for box in item.boxes:
        x1, y1, x2, y2, label, _, crowd, difficult = box
        if item.normalized:
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        if not (math.isfinite(x1) and math.isfinite(y1) and math.isfinite(x2) and math.isfinite(y2)):
            note("error", "bad-box", box, "left out: a coordinate is not a number.")
            continue
        place = f"{x1:.6g},{y1:.6g} - {x2:.6g},{y2:.6g}"
        if x2 <= x1 or y2 <= y1:
            note("error", "empty-box", box, f"left out: box {place} has no area.")
            continue
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            message = f"left out: box {place} lies outside the image of {width}x{height} pixels."
            note("error", "box-outside", box, message)
            continue
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            if max(-x1, -y1, x2 - width, y2 - height) > OUTSIDE_BY:
                message = f"box {place} was clipped to the image of {width}x{height} pixels."
                note("warning", "box-clipped", box, message)
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        identity = (label, round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2))
        if identity in seen:
            note("warning", "duplicate-box", box, f"box {place} stands twice; once is kept.")
            continue
        seen.add(identity)
        if x2 - x1 < 1.0 or y2 - y1 < 1.0:
            note("warning", "tiny-box", box, f"box {place} is under 1 pixel.")
        boxes.append((x1, y1, x2, y2))
        labels.append(label)
        crowds.append(crowd)
        difficults.append(difficult)
    return boxes, labels, crowds, difficults
