"""The data.yaml of a YOLO data set: class names, and where the images of each split are."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError, MissingDependencyError

from .listing import IMAGE_FOLDERS, File, Matcher, is_image, split_name, walk
from .problems import Problems
from .splits import check_class_names, read_list
from .text import read_text

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


def base_folder(described: DataYaml, problems: Problems) -> Path:
    """The folder that data.yaml's paths start from."""
    own = described.file.parent
    for base in (own / described.base, described.base):
        if base.is_dir() and str(described.base) != ".":
            return base
    if str(described.base) != ".":
        message = f"path {str(described.base)!r} is not there; the file's own folder is taken."
        problems.warning("path-not-there", described.file, message)
    return own


def outside_files(described: DataYaml, base: Path, rels: Sequence[str]) -> tuple[Path, list[str]]:
    """The data folder and its files, where data.yaml names folders of images that lie outside its own.

    That is only looked at for entries that mean nothing inside (see :func:`_inside`).

    Args:
        described: the data.yaml.
        base: the folder that its paths start from.
        rels: all files below it.

    Returns:
        The folder that all share, and the files of ``base``, of those folders and of the folders of their labels below
        it; ``base`` and ``rels`` themselves where nothing lies outside.
    """
    images = [rel for rel in rels if is_image(rel)]
    folders = set()
    for entry in (entry for entries in described.splits.values() for entry in entries):
        folder = _written(entry, base)
        if _chosen(images, _inside(entry, base)) or not folder.is_dir() or folder.is_relative_to(base.absolute()):
            continue
        folders.add(folder)
        parts = folder.parts
        places = [place for place, part in enumerate(parts) if part.lower() in IMAGE_FOLDERS]
        twins = [Path(*parts[:place], "labels", *parts[place + 1 :]) for place in places]
        folders.update(twin for twin in twins if twin.is_dir())
    if not folders:
        return base, list(rels)
    root = Path(os.path.commonpath([base.absolute(), *folders]))
    found = {base.absolute(): rels, **{folder: walk(folder) for folder in folders}}
    return root, sorted({(f / rel).relative_to(root).as_posix() for f, below in found.items() for rel in below})


def yaml_splits(
    described: DataYaml, base: Path, root: Path, images: Sequence[File], rels: Sequence[str], problems: Problems
) -> dict[str, str]:
    """The split of every image, as data.yaml says.

    Args:
        described: the data.yaml.
        base: the folder that its paths start from.
        root: the data folder, ``base`` or one above it (see :func:`outside_files`).
        images: the images below it.
        rels: all files below it.
        problems: collects what is wrong.

    Raises:
        DataError: data.yaml names no split whose images are there.
    """
    splits: dict[str, str] = {}
    known = set(rels)
    matcher = Matcher(images)
    for split, entries in described.splits.items():
        for entry in entries:
            rel, written = _inside(entry, root), _written(entry, base)
            if root != base and written.is_relative_to(root) and written.is_dir():
                rel = written.relative_to(root).as_posix()
            if rel.endswith(".txt") and rel in known:
                read_list(root / rel, split, matcher, splits, problems)
                continue
            there = _chosen([image.rel for image in images], rel)
            chosen = [image for image in images if image.rel in there]
            if not chosen:
                message = f"{split}: {entry!r} is not there, or holds no images."
                # Exports name a test split that they do not hold; training needs none.
                note = problems.warning if split == "test" else problems.error
                note("split-not-there", described.file, message)
            for image in chosen:
                if splits.setdefault(image.key, split) != split:
                    message = f"{image.rel} is in {splits[image.key]} already; it stays there and leaves {split}."
                    problems.error("split-overlap", described.file, message, key=image.key)
    if not splits:
        raise DataError(f"{described.file}: names no train, val or test whose images are there.")
    return splits


def _chosen(rels: Sequence[str], rel: str) -> set[str]:
    """The images that a path relative to the data folder means; an empty one means all."""
    return {image for image in rels if not rel or image == rel or image.startswith(rel + "/")}


def _written(entry: str, base: Path) -> Path:
    """A path of data.yaml as it is written, absolute."""
    return Path(os.path.normpath(base.absolute() / entry.replace("\\", "/")))


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
