"""Reading a data set of any format: recognising which one it is, and handing it to that format's reader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from agssp_zoo.errors import DataError, InvalidArgumentError

from .coco import coco_files, read_coco
from .data_yaml import find_yaml
from .dataset import Dataset
from .labelme import read_labelme
from .listing import MASK_FOLDERS, in_folder, is_image, walk
from .masks import read_masks
from .problems import Problems
from .shards import INDEX_NAME, is_index, is_url, read_shards
from .text import read_json, read_text
from .unlabelled import read_unlabelled
from .voc import read_voc
from .yolo import has_yolo_labels, read_yolo

Format = Literal["auto", "coco", "yolo", "voc", "voc0", "labelme", "masks", "images", "shards"]
FORMATS: tuple[str, ...] = get_args(Format)
"""What ``format`` may be. ``voc0`` is Pascal VOC whose coordinates count from 0 with exclusive ends; ``images`` is
every image without labels, which is never recognised."""


def read_dataset(path: str | os.PathLike[str], *, format: str = "auto", split: str | None = None) -> Dataset:
    """Reads labelled images of any format.

    Args:
        path: a folder of images and labels; a COCO JSON or a data.yaml; or packed shards: their folder, their
            index.json, or the http(s) URL of either.
        format: one of :data:`FORMATS`; ``"auto"`` recognises it (a data.yaml, COCO, Pascal VOC, labelme, YOLO without
            data.yaml, masks, in this order).
        split: the split wanted; ``None`` gives all.

    Returns:
        The data set. Images are not decoded, only their headers are read. What was wrong is in ``problems``;
        ``require_clean`` judges it.

    Raises:
        DataError: the path is not there, the format is not recognised, or the labels contradict themselves as a whole.
        InvalidArgumentError: an unknown format.
        MissingDependencyError: masks without scipy, data.yaml without PyYAML.
    """
    if format not in FORMATS:
        raise InvalidArgumentError(f"format is {format!r}; choose one of {', '.join(FORMATS)}.")
    text = os.fspath(path)
    dataset = read_shards(text) if is_url(text) else _read_local(Path(text), format)
    return dataset if split is None else dataset.split(split)


def recognise(path: str | os.PathLike[str]) -> str:
    """The format of a folder, as :func:`read_dataset` would read it.

    Raises:
        DataError: it is not recognised.
    """
    text = os.fspath(path)
    if is_url(text) or (Path(text).is_dir() and is_index(Path(text) / INDEX_NAME)):
        return "shards"
    root, rels, chosen = _locate(Path(text))
    return _recognise(root, rels, chosen)[0]


def _read_local(path: Path, format: str) -> Dataset:
    root, rels, chosen = _locate(path)
    problems = Problems()
    if format == "auto":
        index = path if chosen == path.name else path / INDEX_NAME
        if is_index(index):
            return read_shards(str(path))
        if (path / ".parts" / "plan.json").exists():
            raise DataError(f"{path}: holds an unfinished packing; run `agssp-zoo pack` again to finish it.")
        format, others = _recognise(root, rels, chosen)
        if others:
            message = f"read as {format}, but there are labels as {' and '.join(others)} too; format= chooses."
            problems.warning("several-formats", root, message)
    if format == "shards":
        return read_shards(str(path))
    if format == "coco":
        return read_coco(root, rels, problems, files=[chosen] if chosen else ())
    if format == "yolo":
        return read_yolo(root, rels, problems, yaml_file=chosen)
    if format == "labelme":
        return read_labelme(root, rels, problems)
    if format == "masks":
        return read_masks(root, rels, problems)
    if format == "images":
        return read_unlabelled(root, rels, problems)
    return read_voc(root, rels, problems, zero_based=format == "voc0")


def _locate(path: Path) -> tuple[Path, list[str], str]:
    """The data folder, its files, and the file that was asked for, if it was one.

    For a JSON in a folder without images (``annotations/``) the data folder is the one above.
    """
    if path.is_dir():
        return path, walk(path), ""
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or file.")
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise DataError(f"{path}: give the data folder, a COCO .json, a data.yaml, or an index.json of shards.")
    root = path.parent
    rels = walk(root)
    if path.suffix.lower() == ".json" and not any(map(is_image, rels)) and not is_index(path):
        root = root.absolute().parent
        rels = walk(root)
    return root, rels, path.absolute().relative_to(root.absolute()).as_posix()


def _recognise(root: Path, rels: Sequence[str], chosen: str) -> tuple[str, list[str]]:
    """The format of a folder, and the other formats whose labels lie there too (masks aside, which go with any)."""
    if chosen:
        return ("coco" if chosen.lower().endswith(".json") else "yolo"), []
    found = []
    if find_yaml(root, rels):
        found.append("yolo")
    if coco_files(root, rels):
        found.append("coco")
    if any(_starts_annotation(root / rel) for rel in [r for r in rels if r.lower().endswith(".xml")][:5]):
        found.append("voc")
    if _has_labelme(root, rels):
        found.append("labelme")
    if "yolo" not in found and has_yolo_labels(root, rels):
        found.append("yolo")
    masks = any(is_image(rel) and in_folder(rel, MASK_FOLDERS) for rel in rels)
    if not found and masks:
        found.append("masks")
    if not found and _has_labelme(root, _fullest(rel for rel in rels if rel.lower().endswith(".json"))):
        found.append("labelme")  # the first JSON files are those of a run or report beside the images
    if not found:
        images = sum(is_image(rel) for rel in rels)
        what = f"{images} images, but no labels that are recognised" if images else "no images"
        raise DataError(
            f"{root}: holds {what}. Known are COCO (a JSON), YOLO (data.yaml, or labels/*.txt), Pascal VOC (*.xml), "
            "labelme (*.json), masks (a folder masks/ beside images/) and packed shards (index.json); --format (in "
            "Python format=) names the one it is."
        )
    return found[0], found[1:]


def _starts_annotation(file: Path) -> bool:
    try:
        return "<annotation" in "".join(read_text(file).lines[:20])
    except DataError:
        return False


def _fullest(rels: Iterable[str]) -> list[str]:
    """The files of the folder that holds most of them."""
    by_folder: dict[str, list[str]] = {}
    for rel in rels:
        by_folder.setdefault(rel.rpartition("/")[0], []).append(rel)
    return max(by_folder.values(), key=len, default=[])


def _has_labelme(root: Path, rels: Sequence[str]) -> bool:
    for rel in [rel for rel in rels if rel.lower().endswith(".json")][:5]:
        try:
            values = read_json(root / rel) if (root / rel).stat().st_size < 1 << 26 else None
        except DataError:
            continue
        if isinstance(values, dict) and isinstance(values.get("shapes"), list):
            return True
    return False
