"""Images without labels: pools that anomaly maps are made of and backbones are pretrained on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from agssp_zoo.errors import DataError, InvalidArgumentError

from .assemble import Pending, assemble
from .dataset import ALL, Dataset
from .listing import IMAGE_FOLDERS, MASK_FOLDERS, File, Matcher, in_folder, list_images, split_name
from .problems import Problems
from .records import Record
from .shards import is_url
from .splits import find_lists, read_list

_NO_IMAGES = MASK_FOLDERS | {"labels", "label", "annotations", "annotation"}
_MASK_STEM = re.compile(r"^(.+)[_-](mask|label|gt)$", re.IGNORECASE)
UNLISTED = "unlisted"
"""The split of images that are in no list where there is a train.txt."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_unlabelled(root: Path, rels: Sequence[str], problems: Problems) -> Dataset:
    """Reads every image below a folder, without labels; ``read_dataset(..., format="images")`` calls it.

    Left out are images in folders called masks, labels and the like, and ``a_mask.png`` beside ``a.jpg``. Keys are
    those that a reader of labels gives the same images. Splits come from lists (train.txt) and folders (train/).

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.

    Raises:
        DataError: no images.
    """
    images = list_images(root, rels)
    images = [image for image in images if not in_folder(image.rel, _NO_IMAGES)] or images
    known = {str(PurePosixPath(image.rel).with_suffix("")) for image in images}
    masks = {image.rel for image in images if _is_mask(image.rel, known)}
    if masks:
        message = f"{len(masks)} files are named as masks of images beside them and were left out: {min(masks)} ..."
        problems.warning("mask-beside-image", root, message)
    images = [image for image in images if image.rel not in masks]
    splits: dict[str, str] = {}
    lists = find_lists(rels)
    matcher = Matcher(images) if lists else None
    for split, rel in sorted(lists.items()):
        read_list(root / rel, split, matcher or Matcher(images), splits, Problems())  # only labels need every line
    rest = UNLISTED if "train" in lists else "train"
    pending = [
        Pending(image.key, image.path, splits.get(image.key, rest if lists else image.split or "train"), image.path)
        for image in images
    ]
    return assemble(root, "images", (), pending, problems)


def _is_mask(rel: str, known: set[str]) -> bool:
    path = PurePosixPath(rel)
    match = _MASK_STEM.match(path.stem)
    return match is not None and str(path.with_name(match[1])) in known


def read_images(
    paths: Paths, *, split: str = ALL, format: str = "auto", exclude: str | os.PathLike[str] | None = None
) -> Dataset:
    """Reads a pool of images whose labels, if there are any, do not matter.

    Args:
        paths: folders (every image below), packed shards (folder or URL), or what else :func:`read_dataset` reads.
            Of several, every key begins with the name of its folder.
        split: ``"all"`` takes every image; another name the images of that split, by the reader of labels where
            labels are recognised, else by lists and folders.
        format: of the labels, as for :func:`read_dataset`; ``"auto"`` reads no labels where none are needed.
        exclude: a text file of images to leave out, a name a line, matched like the lines of a train.txt.

    Returns:
        The images in a stable order, with unique keys.

    Raises:
        DataError: a path cannot be read, there is no such split, a line of ``exclude`` means no image or several, or
            nothing is left.
        InvalidArgumentError: no path, or an unknown format.
    """
    chosen = [os.fspath(paths)] if isinstance(paths, str | os.PathLike) else [os.fspath(path) for path in paths]
    if not chosen:
        raise InvalidArgumentError("read_images: give at least one folder of images.")
    names = [""] if len(chosen) == 1 else _names(chosen)
    pools = [_read(path, split, format) for path in chosen]
    records = [
        replace(record, key=f"{name}/{record.key}") if name else record
        for name, pool in zip(names, pools, strict=True)
        for record in pool
    ]
    problems = [
        replace(problem, key=f"{name}/{problem.key}") if name and problem.key else problem
        for name, pool in zip(names, pools, strict=True)
        for problem in pool.problems
    ]
    dataset = pools[0]
    if len(pools) > 1:
        dataset = Dataset((), tuple(records), tuple(problems), ", ".join(chosen), "images")
    if exclude is None:
        return dataset
    # What cannot be read is no record, but can be excluded, too.
    lost = [(problem.key, problem.file) for problem in problems if problem.code == "corrupt-image" and problem.key]
    return _without(dataset, _files(records, lost, names, chosen), Path(exclude))


def _read(path: str, split: str, format: str) -> Dataset:
    from .recognise import read_dataset, recognise  # which imports this module

    if format == "auto" and not is_url(path):
        try:
            found = recognise(path)
        except DataError:
            if not Path(path).is_dir():
                raise
            found = "images"  # no labels are recognised
        format = "images" if split == ALL and found != "shards" and Path(path).is_dir() else found
    return read_dataset(path, format=format, split=None if split == ALL else split)


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each of several pools: its folder's, with the one above where that is needed."""
    for names in zip(*map(pool_names, paths), strict=True):
        if len(set(names)) == len(names):
            return list(names)
    raise DataError(f"{', '.join(paths)}: a folder is given twice.")


def pool_names(path: str) -> list[str]:
    """What :func:`read_images` may call a folder, or shards, among several: its name, and that with those above it."""
    parts = [part for part in re.split(r"[\\/]+", _absolute(path)) if part]
    return ["_".join(parts[-depth:]) for depth in (1, 2, 3)]


def _absolute(path: str) -> str:
    return path.partition("?")[0].partition("://")[2] if is_url(path) else str(Path(path).absolute())


def _files(
    records: Sequence[Record], lost: Sequence[tuple[str, str]], names: Sequence[str], paths: Sequence[str]
) -> list[File]:
    """The images as files, for matching the lines of a list with them; ``lost`` are keys and paths of further ones."""
    roots = [(name, _absolute(path)) for name, path in zip(names, paths, strict=True)]
    known = [(record.key, record.path, record.offset < 0) for record in records]
    files = []
    for key, path, own in (*known, *((key, path, True) for key, path in lost)):
        rel = key
        if own:
            for name, root in roots:
                if path.startswith(root + os.sep) and key.startswith(name):
                    below = path[len(root) + 1 :].replace(os.sep, "/")
                    rel = f"{name}/{below}" if name else below
                    break
        files.append(File(rel, path, key))
    return files


def _without(dataset: Dataset, files: Sequence[File], listed: Path) -> Dataset:
    """The images that a list does not name.

    Raises:
        DataError: a line means no image or several, or every image is listed.
    """
    problems, found = Problems(), dict[str, str]()
    read_list(listed, "excluded", Matcher(files), found, problems)
    bad = [str(problem).rstrip(".") for problem in problems if problem.severity == "error"]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(
            f"{'; '.join(bad[:3])}{more}. Every line has to name one image of {dataset.path}, with its folders where "
            "names repeat."
        )
    records = tuple(record for record in dataset if record.key not in found)
    if not records:
        raise DataError(f"{listed}: excludes every image of {dataset.path}.")
    kept = tuple(problem for problem in dataset.problems if problem.key not in found)
    return replace(dataset, records=records, problems=kept)


def sources(dataset: Dataset, *, one: bool = False) -> list[str]:
    """The data set that each image of a pool comes from, in the order of the records.

    A pool of several folders holds several data sets: the folders given to :func:`read_images`, or those at the top of
    the one that was given. Folders called images and the like, or train and the like, are no data sets, nor is what
    lies in them; shards, where these cannot be told, go by the first folder of the key. Anything else is one data set,
    called as its folder.

    Args:
        dataset: the pool.
        one: take all of it for one data set, for pools whose top folders are classes.
    """
    path = dataset.path.partition("?")[0].rstrip("/\\")
    name = re.split(r"[\\/]+", path if is_url(path) else str(Path(path or "data").absolute()))[-1]
    name = name.removesuffix("/index.json") or "data"
    tops = ["" if one else _top(record, dataset) for record in dataset]
    return [top or name for top in tops] if len(set(tops) - {""}) > 1 else [name] * len(tops)


def source_of(record_key: str, dataset: Dataset) -> str:
    """The data set that one image comes from; :func:`sources` tells those of all images at once.

    Raises:
        DataError: no image has this key.
    """
    for record, source in zip(dataset, sources(dataset), strict=True):
        if record.key == record_key:
            return source
    raise DataError(f"{dataset.path}: has no image {record_key!r}.")


def _top(record: Record, dataset: Dataset) -> str:
    """The folder of a pool that an image is in; empty where that folder is no data set."""
    rel = record.key
    if record.offset < 0 and dataset.path and not is_url(dataset.path):
        root = str(Path(dataset.path).absolute()) + os.sep
        if record.path.startswith(root):
            rel = record.path[len(root) :].replace(os.sep, "/")
    top, slash, _ = rel.partition("/")
    return "" if not slash or top.lower() in IMAGE_FOLDERS or split_name(top) else top
