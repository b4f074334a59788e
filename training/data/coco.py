"""COCO: one JSON file for all images of a split.

Boxes are x, y, width, height from 0, with fractions. Category ids may have gaps; classes are in the order of the ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from agssp_zoo.errors import DataError

from .assemble import Box, Pending, assemble
from .dataset import Dataset
from .elsewhere import coco_images
from .listing import File, Matcher, is_image, split_name
from .problems import Problems, some
from .splits import check_class_names
from .text import json_list_line, read_json

_SNIFF = 1 << 16
_LISTS = (b'"annotations"', b'"categories"', b'"images"')


@dataclass(slots=True)
class _Document:
    """One JSON file as it is read: where it is, its images by id, and what its category ids mean.

    ``told`` says whether its name or folder names the split.
    """

    file: Path
    rel: str
    split: str
    told: bool
    values: dict[str, Any]
    classes: dict[int, str] = field(default_factory=dict)
    images: dict[Any, Pending] = field(default_factory=dict)

    def line(self, part: str, position: int) -> int | None:
        """The line of an entry of the list ``part``; ``None`` when it cannot be told."""
        return json_list_line(self.file, part, position)


def looks_like_coco(file: Path) -> bool:
    """Whether a JSON file is COCO's: an object with two of its three lists, judged without parsing it."""
    found: set[bytes] = set()
    try:
        with file.open("rb") as stream:
            block = stream.read(_SNIFF)
            if not block.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or b'"shapes"' in block:
                return False
            rest = b""
            # One of the lists may be long, so that the next begins hundreds of megabytes further on.
            while block and len(found) < 2:
                found.update(word for word in _LISTS if word in rest + block)
                if not found:
                    return False
                rest, block = block[-20:], stream.read(_SNIFF << 4)
    except OSError:
        return False
    return len(found) >= 2


def coco_files(root: Path, rels: Sequence[str]) -> list[str]:
    """The COCO files of a folder, those of captions, keypoints and the like left out; at most three folders deep."""
    names = [rel for rel in rels if rel.lower().endswith(".json") and rel.count("/") <= 2]
    # A folder of labelme files holds one JSON an image; looking into each would take long, and two are enough.
    by_folder: dict[str, list[str]] = {}
    for rel in names:
        by_folder.setdefault(rel.rpartition("/")[0], []).append(rel)
    found: list[str] = []
    for group in by_folder.values():
        group = [rel for rel in group if not rel.rpartition("/")[2].startswith(("captions_", "person_keypoints_"))]
        if len(group) > 20 and not any(looks_like_coco(root / rel) for rel in group[:2]):
            continue
        found.extend(rel for rel in group if looks_like_coco(root / rel))
    return sorted(found)


def read_coco(root: Path, rels: Sequence[str], problems: Problems, *, files: Sequence[str] = ()) -> Dataset:
    """Reads one or several COCO files and the images they name.

    A file's split is the one its name or folder says (``instances_val2017.json``, ``valid/_annotations.coco.json``),
    else ``train``.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.
        files: the JSON files, relative to root; found when empty.

    Raises:
        DataError: no images, no COCO file, or one that is not as COCO defines it.
    """
    files = files or coco_files(root, rels)
    if not files:
        raise DataError(f"{root}: holds no COCO file, a JSON with images, annotations and categories.")
    documents = [_open(root, rel) for rel in files]
    for document in documents:
        if not document.told and any(other.told for other in documents):
            message = "its name says no split, so its images are train's; where they are not, call it by theirs."
            problems.warning("split-not-told", document.file, message)
    images = coco_images(root, rels, [document.values for document in documents])
    classes = _class_order(documents, problems)
    index = {name: label for label, name in enumerate(classes)}
    taken: dict[str, _Document] = {}
    finder = _Finder(images)
    for document in documents:
        _read_images(document, finder, taken, problems)
        _read_annotations(document, index, problems)
    unused = [image.rel for image in images if image.key not in taken]
    if unused:
        problems.warning(
            "image-without-entry", root, f"{len(unused)} images are in no COCO file and take no part: {some(unused)}."
        )
    return assemble(root, "coco", classes, [p for d in documents for p in d.images.values()], problems)


def _open(root: Path, rel: str) -> _Document:
    values = read_json(root / rel)
    if not isinstance(values, dict):
        raise DataError(f"{root / rel}: a COCO file is a JSON object, not a {type(values).__name__}.")
    for part in ("images", "annotations", "categories"):
        if not isinstance(values.get(part, []), list) or (part not in values and part != "annotations"):
            raise DataError(f"{root / rel}: {part!r} is missing, or not a list, as COCO has it.")
        for position, entry in enumerate(values.get(part, [])):
            if not isinstance(entry, dict):
                raise DataError(f"{root / rel}: entry {position} of {part!r} is not an object.")
    parts = PurePosixPath(rel)
    words = [*parts.stem.replace("-", "_").replace(".", "_").split("_"), *reversed(parts.parts[:-1])]
    split = next(filter(None, map(split_name, words)), "")
    return _Document(root / rel, rel, split or "train", bool(split), values)


def _class_order(documents: list[_Document], problems: Problems) -> tuple[str, ...]:
    """Class names in the order of their ids; the files of the splits may number them differently."""
    order: dict[str, int] = {}
    for document in documents:
        names = []
        for position, category in enumerate(document.values["categories"]):
            number, name = category.get("id"), category.get("name")
            if not _is_int(number) or not isinstance(name, str) or number in document.classes:
                what = "its id is used twice" if _is_int(number) and isinstance(name, str) else "it needs id and name"
                raise DataError(f"{document.file}: category {position}: {what}.")
            document.classes[int(number)] = name
            names.append(name)
        check_class_names(names, str(document.file))
        for number, name in document.classes.items():
            order.setdefault(name, number)
        numbers = sorted(document.classes)
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.warning(
                "category-gaps", document.file, f"category ids have gaps ({some(list(map(str, numbers)), 8)}); closed."
            )
        if set(document.classes.values()) != set(documents[0].classes.values()):
            problems.warning(
                "class-lists-differ",
                document.file,
                f"its categories are not those of {documents[0].file}; classes are matched by name.",
            )
    return tuple(sorted(order, key=lambda name: (order[name], name)))


class _Finder:
    """Finds the image that a COCO file calls ``file_name``."""

    def __init__(self, images: Sequence[File]) -> None:
        self._by_rel = {image.rel: image for image in images}
        self._matcher = Matcher(images)

    def find(self, document: _Document, name: str) -> File | None:
        name = name.replace("\\", "/").removeprefix("./")
        folder = document.rel.rpartition("/")[0]
        split = PurePosixPath(document.rel).stem.rpartition("_")[2]
        for place in (folder, "", "images", document.split, f"images/{document.split}", split, f"images/{split}"):
            image = self._by_rel.get(f"{place}/{name}" if place else name)
            if image is not None:
                return image
        return self._matcher.find(name)


def _read_images(document: _Document, finder: _Finder, taken: dict[str, _Document], problems: Problems) -> None:
    def note(code: str, position: int, message: str, key: str = "") -> None:
        line = document.line("images", position)
        problems.error(code, document.file, f"left out: {message}", line=line, key=key, split=document.split)

    for position, entry in enumerate(document.values["images"]):
        name, number = entry.get("file_name"), entry.get("id")
        if not isinstance(name, str) or isinstance(number, (list, dict)) or number is None:
            note("bad-entry", position, "an image entry without file_name or id.")
            continue
        if number in document.images:
            note("duplicate-image-id", position, f"image id {number} is used twice, by {name!r} too.")
            continue
        image = finder.find(document, name)
        if image is None:
            note(
                "missing-image",
                position,
                f"image {name!r} is not there{'' if is_image(name) else ', or not an image'}.",
            )
            continue
        if image.key in taken:
            other = taken[image.key]
            code = "duplicate-image" if other is document else "split-overlap"
            note(code, position, f"image {name!r} has an entry already, in {other.file}.", image.key)
            continue
        taken[image.key] = document
        width, height = entry.get("width"), entry.get("height")
        size = (int(width), int(height)) if _is_int(width) and _is_int(height) and width > 0 < height else None
        document.images[number] = Pending(
            image.key, image.path, document.split, str(document.file), size=size, list_name="annotations"
        )


def _read_annotations(document: _Document, index: dict[str, int], problems: Problems) -> None:
    refused = {entry.get("id") for entry in document.values["images"] if not isinstance(entry.get("id"), (list, dict))}

    def note(code: str, position: int, message: str, key: str = "") -> None:
        line, entry = document.line("annotations", position), document.values["annotations"][position]
        message = f"left out: annotation {entry.get('id')} {message}"
        problems.error(code, document.file, message, line=line, key=key, split=document.split)

    for position, entry in enumerate(document.values.get("annotations", [])):
        number, category = entry.get("image_id"), entry.get("category_id")
        pending = document.images.get(number) if not isinstance(number, (list, dict)) else None
        if pending is None:
            # The images that were left out have been reported, each once; their annotations need no error each.
            if isinstance(number, (list, dict)) or number not in refused:
                note("unknown-image", position, f"is for image id {number!r}, which is not listed.")
            continue
        name = document.classes.get(category) if _is_int(category) else None
        if name is None:
            note("unknown-class", position, f"has category id {category!r}, which is not listed.", pending.key)
            continue
        corners = _corners(entry)
        if corners is None:
            note("bad-box", position, "has no bbox of four numbers (nor a polygon).", pending.key)
            continue
        x1, y1, x2, y2 = corners
        difficult = bool(entry.get("difficult", 0) or entry.get("ignore", 0))
        crowd = bool(entry.get("iscrowd", 0))
        pending.boxes.append(Box(x1, y1, x2, y2, index[name], position, crowd, difficult))


def _corners(entry: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Corners of an annotation's box, or of its polygons when it has no box."""
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        x, y, width, height = map(float, box)
        return x, y, x + width, y + height
    parts = entry.get("segmentation")
    if box or not isinstance(parts, list):
        return None
    points = [value for part in parts if isinstance(part, list) for value in part]
    if len(points) < 6 or len(points) % 2 or not all(map(_is_number, points)):
        return None
    return min(points[0::2]), min(points[1::2]), max(points[0::2]), max(points[1::2])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
