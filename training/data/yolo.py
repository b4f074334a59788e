"""YOLO: a text file an image, one line a box (class, centre x, centre y, width, height, as shares of the image).

Either with a data.yaml that names classes and splits, or as bare folders (``images/`` and ``labels/``, or text files
beside the images). A line of more values is a polygon (class, x1, y1, x2, y2, ...), whose bounding box is read.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError, MissingDependencyError

from .assemble import Box, Pending, assemble, note_unlabelled
from .dataset import Dataset
from .listing import IMAGE_FOLDERS, File, Matcher, is_image, list_images, split_name, walk
from .problems import Problems
from .splits import assign_splits, check_class_names, find_lists, read_class_list, read_list
from .text import read_text

_NOT_LABELS = ("classes.txt", "labels.txt", "predefined_classes.txt", "readme.txt", "license.txt", "requirements.txt")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class DataYaml:
    """What data.yaml says.

    Attributes:
        file: the file.
        classes: class id -> name.
        splits: split -> folders, lists or images, as written there.
        base: the folder that ``path`` names, or the file's own.
        stated: how many classes ``nc`` says there are, or ``None``.
    """

    file: Path
    classes: dict[int, str]
    splits: dict[str, list[str]]
    base: Path
    stated: int | None


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
        base = _base(described, problems)
        if base.resolve() != root.resolve():
            root, rels = base, walk(base)
        images = list_images(root, rels)
        splits = _yaml_splits(described, root, images, rels, problems)
        classes: dict[int, str] | None = described.classes
    else:
        images = list_images(root, rels)
        splits = assign_splits(root, images, Matcher(images), rels, problems)
        listed = read_class_list(root, rels, problems)
        classes = dict(enumerate(listed)) if listed is not None else None
    labels = {rel for rel in rels if _is_label(rel)} - set(find_lists(rels).values())
    pendings, without, used = [], [], set()
    windows: list[str] = []
    for image in images:
        rel = next((candidate for candidate in _label_names(image.rel) if candidate in labels), "")
        used.add(rel)
        if image.key not in splits:
            continue
        file = root / rel if rel else Path(image.path)
        pending = Pending(image.key, image.path, splits[image.key], str(file), normalized=True)
        if not rel:
            without.append(image.rel)
        elif not _read_labels(file, pending, problems, windows):
            continue
        pendings.append(pending)
    if not used - {""}:
        raise DataError(f"{root}: no label files found; YOLO has a text file in labels/ for every image in images/.")
    folders = {rel.rpartition("/")[0] for rel in used if rel}
    for rel in sorted(rel for rel in labels - used if rel.rpartition("/")[0] in folders and _has_numbers(root / rel)):
        problems.error("label-without-image", root / rel, "no image belongs to it.")
    if windows:
        message = f"{len(windows)} label files have Windows line ends; they were read as usual ones."
        problems.warning("windows-line-ends", windows[0], message)
    note_unlabelled(root, without, len(images), "label file", problems)
    names = _number(pendings, classes, root, problems)
    return assemble(root, "yolo", names, pendings, problems)


def find_yaml(root: Path, rels: Sequence[str]) -> str:
    """The data.yaml of a folder: any YAML file at its top that has ``names`` and a split; an empty text without one."""
    for rel in sorted((r for r in rels if "/" not in r), key=lambda rel: (not rel.startswith("data"), rel)):
        if rel.lower().endswith((".yaml", ".yml")):
            lines = read_text(root / rel).lines
            keys = {line.partition(":")[0].strip("\"'") for line in lines if ":" in line and not line.startswith(" ")}
            if "names" in keys and keys & {"train", "val", "test"}:
                return rel
    return ""


def read_data_yaml(file: Path) -> DataYaml:
    """Reads data.yaml.

    Raises:
        DataError: not YAML, no names, or names that contradict ``nc``.
        MissingDependencyError: PyYAML is not installed.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise MissingDependencyError(f"{file}: reading it needs PyYAML; run `pip install pyyaml`.") from None
    text = read_text(file).text
    try:
        # The base loader leaves every value a text: a class may be called "no", "1" or "null".
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{file}{place}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    if not isinstance(values, dict) or not values.get("names"):
        raise DataError(f"{file}: has no names; give the class names as a list, or as ids with names.")
    names = values["names"]
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [names])
        classes = {int(number): str(name) for number, name in pairs}
    except ValueError:
        raise DataError(f"{file}: an id in names is not a whole number.") from None
    check_class_names(list(classes.values()), str(file))
    stated = values.get("nc")
    if stated is not None and not str(stated).isdigit():
        raise DataError(f"{file}: nc is {stated!r}, not a number of classes.")
    count = int(stated) if stated is not None else None
    if count is not None and count != len(classes):
        raise DataError(f"{file}: nc says {count} classes, but names has {len(classes)}; correct one of them.")
    splits: dict[str, list[str]] = {}
    for key in values:
        name = split_name(str(key))
        if name in _SPLITS and values[key]:
            entries = values[key] if isinstance(values[key], list) else [values[key]]
            splits.setdefault(name, []).extend(str(entry) for entry in entries)
    base = Path(str(values["path"])) if values.get("path") else Path()
    return DataYaml(file, classes, splits, base, count)


def _base(described: DataYaml, problems: Problems) -> Path:
    """The folder that data.yaml's paths start from."""
    own = described.file.parent
    for base in (own / described.base, described.base):
        if base.is_dir() and str(described.base) != ".":
            return base
    if str(described.base) != ".":
        message = f"path {str(described.base)!r} is not there; the file's own folder is taken."
        problems.warning("path-not-there", described.file, message)
    return own


def _yaml_splits(
    described: DataYaml, root: Path, images: Sequence[File], rels: Sequence[str], problems: Problems
) -> dict[str, str]:
    """The split of every image, as data.yaml says.

    Raises:
        DataError: data.yaml names no split whose images are there.
    """
    splits: dict[str, str] = {}
    known = set(rels)
    matcher = Matcher(images)
    for split, entries in described.splits.items():
        for entry in entries:
            rel = _inside(entry, root)
            if rel.endswith(".txt") and rel in known:
                read_list(root / rel, split, matcher, splits, problems)
                continue
            chosen = [image for image in images if not rel or image.rel == rel or image.rel.startswith(rel + "/")]
            if not chosen:
                message = f"{split}: {entry!r} is not there, or holds no images."
                problems.error("split-not-there", described.file, message)
            for image in chosen:
                if splits.setdefault(image.key, split) != split:
                    message = f"{image.rel} is in {splits[image.key]} already; it stays there and leaves {split}."
                    problems.error("split-overlap", described.file, message, key=image.key)
    if not splits:
        raise DataError(f"{described.file}: names no train, val or test whose images are there.")
    return splits


def _inside(entry: str, root: Path) -> str:
    """A path of data.yaml relative to the data folder.

    Exports for other machines write ``../train/images`` where ``train/images`` is meant, or absolute paths.
    """
    text = entry.replace("\\", "/").rstrip("/")
    path = Path(text)
    if path.is_absolute():
        try:
            return "" if path == root.absolute() else path.relative_to(root.absolute()).as_posix()
        except ValueError:
            parts = path.parts[1:]
            for start in range(len(parts)):
                if (root / Path(*parts[start:])).exists():
                    return "/".join(parts[start:])
            return text
    while text.startswith(("./", "../")):
        text = text.partition("/")[2]
    return "" if text in (".", "..") else text


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
        problems.error("bad-label-file", file, f"its image is left out: {error}", key=pending.key)
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
    """Whether some text file is the label file of some image, judged by its first line."""
    labels = {rel for rel in rels if _is_label(rel)}
    looked = 0
    for rel in rels:
        if not labels or looked >= 50:
            return False
        file = next((candidate for candidate in _label_names(rel) if candidate in labels), "") if is_image(rel) else ""
        if file:
            looked += 1
            if _has_numbers(root / file):
                return True
    return False


def _has_numbers(file: Path) -> bool:
    """Whether a text file begins with a line of at least five numbers."""
    try:
        words = next((line.split() for line in read_text(file).lines if line.strip()), [])
        return len([float(word) for word in words]) >= 5
    except (DataError, ValueError):
        return False
