"""WebDataset shards with an index: reading them sample by sample, in any order, from a folder or by http(s).

A packed data set is a folder (or a URL) with

- ``index.json``: classes, shards with size and sha256, and for every image its key, split, size, labels, and where its
  encoded bytes lie (shard, offset, size);
- ``train-000000.tar`` and so on: ordinary WebDataset tar files, two members a sample: ``000012.jpg`` (the encoded
  image) and ``000012.json`` (its key and labels), so that other tools read them front to back.

Reading needs only the index; an image is then one read, or one range request, of exactly its bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from agssp_zoo.errors import DataError

from .dataset import Dataset
from .ranges import is_url, read_range
from .records import Record, empty_labels

INDEX_NAME = "index.json"
KIND = "agssp-zoo shards"
VERSION = 1

__all__ = ["INDEX_NAME", "is_index", "is_url", "read_shards"]


def is_index(file: Path) -> bool:
    """Whether a file is the index of packed shards."""
    try:
        with file.open("rb") as stream:
            return KIND.encode() in stream.read(200)
    except OSError:
        return False


def read_shards(path: str) -> Dataset:
    """Reads the index of packed shards.

    Args:
        path: the folder or URL of the shards, or of their index.json.

    Raises:
        DataError: no index, one of a newer version, or shards that are missing or of another size.
    """
    base, query = _base(path)
    index_path = f"{base}/{INDEX_NAME}{query}"
    index = _read_index(index_path)
    try:
        shards = index["shards"]
        files = [f"{base}/{shard['file']}{query}" for shard in shards]
        records = tuple(to_record(sample, files) for sample in index["samples"])
        class_names = tuple(index["class_names"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(f"{index_path}: is damaged ({error!r}); pack the data again.") from None
    if not is_url(base):
        for file, shard in zip(files, shards, strict=True):
            found = Path(file).stat().st_size if Path(file).is_file() else -1
            if found != shard["size"]:
                what = "is missing" if found < 0 else f"has {found} bytes instead of {shard['size']}"
                raise DataError(f"{file}: {what}; copy it again, or pack the data again.")
    return Dataset(class_names, records, (), path, "shards")


def _base(path: str) -> tuple[str, str]:
    """The folder or URL of the shards, absolute and without a last slash, and the query that goes with a URL."""
    if is_url(path):
        bare, mark, query = path.partition("?")
        return bare.rstrip("/").removesuffix("/" + INDEX_NAME), mark + query
    file = Path(path).absolute()
    return str(file if file.is_dir() else file.parent), ""


def _read_index(path: str) -> dict[str, Any]:
    text = read_range(path)
    try:
        index = json.loads(text)
    except ValueError:
        raise DataError(f"{path}: is not valid JSON; pack the data again.") from None
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise DataError(f"{path}: is not the index of packed shards; `agssp-zoo pack` makes one.")
    if index.get("version") != VERSION:
        raise DataError(
            f"{path}: is of version {index.get('version')}, this installation reads {VERSION}; "
            "run `pip install -U agssp-zoo`."
        )
    return index


def from_record(record: Record) -> dict[str, Any]:
    """What the index holds about a sample, without its place."""
    sample: dict[str, Any] = {
        "key": record.key,
        "split": record.split,
        "width": record.width,
        "height": record.height,
        "boxes": [[float(value) for value in box] for box in record.boxes],
        "labels": record.labels.tolist(),
    }
    # Rare, so only written where there is one.
    if record.crowd.any():
        sample["crowd"] = record.crowd.tolist()
    if record.difficult.any():
        sample["difficult"] = record.difficult.tolist()
    return sample


def to_record(sample: dict[str, Any], files: list[str]) -> Record:
    """The record of one entry of the index."""
    labels = sample["labels"]
    arrays = empty_labels()
    if labels:
        none = [False] * len(labels)
        arrays = (
            np.array(sample["boxes"], np.float32),
            np.array(labels, np.int64),
            np.array(sample.get("crowd", none), np.bool_),
            np.array(sample.get("difficult", none), np.bool_),
        )
    return Record(
        sample["key"],
        files[sample["shard"]],
        sample["split"],
        sample["width"],
        sample["height"],
        *arrays,
        offset=sample["offset"],
        size=sample["size"],
    )
