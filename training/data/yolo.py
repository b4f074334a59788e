"""YOLO: a text file an image, one line a box (class, centre x, centre y, width, height, as shares of the image).

Either with a data.yaml that names classes and splits, or as bare folders (``images/`` and ``labels/``, or text files
beside the images). A line of more values is a polygon (class, x1, y1, x2, y2, ...), whose bounding box is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from agssp_zoo.errors import DataError

from .assemble import Box, Pending, assemble, note_unlabelled
from .data_yaml import base_folder, find_yaml, outside_files, read_data_yaml, yaml_splits
from .dataset import Dataset
from .listing import IMAGE_FOLDERS, Matcher, folder_split, is_image, list_images, walk
from .problems import Problems, some
from .splits import assign_splits, find_lists, read_class_list
from .text import read_text

_NOT_LABELS = ("classes.txt", "labels.txt", "predefined_classes.txt", "readme.txt", "license.txt", "requirements.txt")


def read_yolo(root: Path, rels: Sequence[str], problems: Problems, *, yaml_file: str = "") -> Dataset:
    """Reads a folder of images and YOLO label files.

    Classes are those of data.yaml in its order, else of classes.txt, else ``class_00`` and so on. Class ids that
    data.yaml leaves out are closed up.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.
        yaml_file: the data.yaml, relative to root; looked for when empty.

    Raises:
        DataError: no images, no label file, or a data.yaml that contradicts itself.
    """
    yaml_file = yaml_file or find_yaml(root, rels)
    if yaml_file:
        described = read_data_yaml(root / yaml_file)
        base = base_folder(described, problems)
        if base.resolve() != root.resolve():
            root, rels = base, walk(base)
        base = root
        root, rels = outside_files(described, base, rels)
        images = list_images(root, rels)
        splits = yaml_splits(described, base, root, images, rels, problems)
        classes: dict[int, str] | None = described.classes
    else:
        images = list_images(root, rels)
        splits = assign_splits(root, images, Matcher(images), rels, problems)
        listed = read_class_list(root, rels, problems, numbered=True)
        classes = dict(enumerate(listed)) if listed is not None else None
    labels = _labels(set(rels) - set(find_lists(rels).values()))
    pendings, without = [], []
    used: dict[str, list[str]] = {}
    windows: list[str] = []
    for image in images:
        rel = next((labels[name] for name in _label_names(image.rel) if name in labels), "")
        used.setdefault(rel, []).append(image.rel)
        if image.key not in splits:
            continue
        file = root / rel if rel else Path(image.path)
        pending = Pending(image.key, image.path, splits[image.key], str(file), normalized=True)
        if not rel:
            without.append(image.rel)
        elif not _read_labels(file, pending, problems, windows):
            continue
        pendings.append(pending)
    if not used.keys() - {""}:
        raise DataError(f"{root}: no label files found; YOLO has a text file in labels/ for every image in images/.")
    folders = {rel.rpartition("/")[0] for rel in used if rel}
    for rel in sorted(
        rel
        for rel in set(labels.values()) - used.keys()
        if rel.rpartition("/")[0] in folders and _has_numbers(root / rel)
    ):
        problems.error("label-without-image", root / rel, "no image belongs to it.", split=folder_split(rel))
    for rel, shared in used.items():
        if rel and len(shared) > 1:
            message = f"is the label file of {some(shared)}, all of which got its boxes; if they differ, rename them."
            problems.warning("shared-label-file", root / rel, message)
    if windows:
        message = f"{len(windows)} label files have Windows line ends; they were read as usual ones."
        problems.warning("windows-line-ends", windows[0], message)
    note_unlabelled(root, without, len(images), "label file", problems)
    names = _number(pendings, classes, root, problems)
    return assemble(root, "yolo", names, pendings, problems)


def _labels(rels: Iterable[str]) -> dict[str, str]:
    """The files that may be label files, by their path with ``labels`` and ``.txt`` in lower case.

    Some tools write ``Labels/`` and ``.TXT``. Where both spellings are there, the usual one counts.
    """
    files = sorted(rel for rel in rels if _is_label(rel))
    usual = ["/".join(part.lower() if part.lower() == "labels" else part for part in rel.split("/")) for rel in files]
    found = {name[:-4] + ".txt": rel for name, rel in zip(usual, files, strict=True)}
    return {**found, **{rel: rel for rel in files if rel in found}}


def _is_label(rel: str) -> bool:
    name = rel.rpartition("/")[2].lower()
    return name.endswith(".txt") and name not in _NOT_LABELS


def _label_names(rel: str) -> list[str]:
    """Where an image's label file may be: a folder ``images`` replaced by ``labels``, or beside the image."""
    parts = rel.rpartition(".")[0].split("/")
    names = []
    for place in reversed(range(len(parts) - 1)):
        if parts[place].lower() in IMAGE_FOLDERS:
            names.append("/".join([*parts[:place], "labels", *parts[place + 1 :]]) + ".txt")
    return [*names, "labels/" + "/".join(parts) + ".txt", "/".join(parts) + ".txt"]


def _read_labels(file: Path, pending: Pending, problems: Problems, windows: list[str]) -> bool:
    """Reads one label file; false when it cannot be read at all."""
    try:
        text = read_text(file)
    except DataError as error:
        problems.error("bad-label-file", file, f"its image is left out: {error}", key=pending.key, split=pending.split)
        return False
    if text.windows:
        windows.append(str(file))
    for line, row in enumerate(text.lines, 1):
        words = row.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if not values or not values[0].is_integer() or values[0] < 0:
            message = f"left out: {row.strip()[:60]!r} is not a class id and coordinates."
            problems.error("bad-line", file, message, line=line, key=pending.key)
            continue
        box = _corners(values)
        if box is None:
            message = f"left out: {len(values)} values; a box has 5 (class x y w h), a polygon 7, 9, 11 ..."
            problems.error("bad-line", file, message, line=line, key=pending.key)
        elif not all(math.isfinite(v) for v in box) or max(map(abs, box)) > 2.0:
            message = "left out: coordinates are not shares of the image (0-1); are they in pixels?"
            problems.error("not-normalized", file, message, line=line, key=pending.key)
        else:
            pending.boxes.append(Box(*box, int(values[0]), line))
    return True


def _corners(values: list[float]) -> tuple[float, float, float, float] | None:
    """Corners of the box on one line, as shares of the image."""
    if len(values) == 5:
        x, y, width, height = values[1:]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 7 or len(values) % 2 == 0:
        return None
    xs, ys = values[1::2], values[2::2]
    return min(xs), min(ys), max(xs), max(ys)


def _number(pendings: list[Pending], classes: dict[int, str] | None, root: Path, problems: Problems) -> tuple[str, ...]:
    """Turns class ids into labels, closing gaps, and returns the class names in the order of the ids."""
    if classes is None:
        top = max((box.label for item in pendings for box in item.boxes), default=-1)
        if top > 9999:
            raise DataError(f"{root}: a class id is {top}; the label files seem not to be YOLO's.")
        classes = {number: f"class_{number:02d}" for number in range(top + 1)}
        message = f"no data.yaml or classes.txt names the classes; they are called class_00 to class_{top:02d}."
        problems.warning("no-class-list", root, message)
    order = sorted(classes)
    if order != list(range(len(order))):
        problems.warning("category-gaps", root, f"class ids {order} do not count up from 0; gaps were closed.")
    index = {number: label for label, number in enumerate(order)}
    for item in pendings:
        kept = []
        for box in item.boxes:
            if box.label in index:
                kept.append(box._replace(label=index[box.label]))
            else:
                message = f"left out: class id {box.label} is not among the {len(order)} classes named."
                problems.error("unknown-class", item.file, message, line=box.line, key=item.key)
        item.boxes = kept
    return tuple(classes[number] for number in order)


def has_yolo_labels(root: Path, rels: Sequence[str]) -> bool:
    """Whether some text file is the label file of some image, judged by the first lines of those that are not empty."""
    labels = _labels(rels)
    looked = 0
    for rel in rels:
        if not labels or looked >= 50:
            return False
        file = next((labels[name] for name in _label_names(rel) if name in labels), "") if is_image(rel) else ""
        if file and not _is_empty(root / file):  # as of an image without defects; some sets begin with hundreds
            looked += 1
            if _has_numbers(root / file):
                return True
    return False


def _is_empty(file: Path) -> bool:
    try:
        return file.stat().st_size <= 2  # a line end is nothing, too
    except OSError:
        return False


def _has_numbers(file: Path) -> bool:
    """Whether a text file begins with a line of at least five numbers."""
    try:
        words = next((line.split() for line in read_text(file).lines if line.strip()), [])
        return len([float(word) for word in words]) >= 5
    except (DataError, ValueError):
        return False
