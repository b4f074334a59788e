"""The files of a map store, and how rows are written into them.

``store.json`` says what the store is and whether it is complete, and is replaced as a whole; ``keys.json`` lists the
images; ``maps.npy`` float16 (N, gh, gw), ``scores.npy`` float32 (N,) and ``done.npy`` uint8 (N,) hold a row an image.
Other tools read all of them without this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, TrainingError

from ..data.dataset import Dataset
from ..data.records import Record

KIND = "agssp-zoo anomaly maps"
VERSION = 1
STORE_FILE, KEYS_FILE = "store.json", "keys.json"
MAPS_FILE, SCORES_FILE, DONE_FILE = "maps.npy", "scores.npy", "done.npy"
FILES = {"keys": KEYS_FILE, "maps": MAPS_FILE, "scores": SCORES_FILE}
"""What a store's files are called; store.json names them, since a store without its unreadable images has others."""

STATE_FILE = "method.safetensors"
"""What a method has learnt of the pool, in the store's folder; of several data sets ``method-0.safetensors`` ..."""
PARTS_FOLDER = "parts"
"""The stores of the methods of a combination, in the folder of the combined one."""

WAITING, DONE, UNREADABLE = 0, 1, 2
"""States of a row in done.npy."""


def read_store_file(folder: Path) -> dict[str, Any] | None:
    """The content of store.json; ``None`` where there is none.

    Raises:
        DataError: it is not that of a store, or of a newer version.
    """
    file = folder / STORE_FILE
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove the folder and make the maps again.") from None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise DataError(f"{folder}: is not a store of anomaly maps; `agssp-zoo anomaly-maps` makes one.")
    if values.get("version") != VERSION:
        raise DataError(
            f"{folder}: is a store of version {values.get('version')}, this installation reads {VERSION}; run "
            "`pip install -U agssp-zoo`."
        )
    return values


def write_json(file: Path, values: Any, *, indent: int | None = None) -> None:
    """Replaces a JSON file as a whole. Processes that write it at the same time write the same."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with writing(file):
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(values, ensure_ascii=False, indent=indent) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Tells of a full disk, or of a folder that cannot be written, in words that help."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{where}: cannot be written ({error.strerror or error}); make room or correct the permissions, then run "
            "the same command again: it goes on where it stopped."
        ) from None


class Rows:
    """An .npy file whose rows are written one by one.

    Written through the file rather than through a memory map: a full disk is then an error instead of the end of the
    process, and memory stays small. Several processes may write different rows.
    """

    def __init__(self, file: Path) -> None:
        mapped = np.load(file, mmap_mode="r")
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype = mapped.dtype
        self._file, self._start, self._stride = file, int(mapped.offset), int(mapped[:1].nbytes)

    @staticmethod
    def create(file: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Writes a file of zeros; on most file systems it takes room only as it is filled."""
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with writing(file):
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
            temporary.replace(file)

    def write(self, indices: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Writes ``values[i]`` to row ``indices[i]``; neighbouring rows go in one piece."""
        values = np.ascontiguousarray(values, self.dtype)
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        with self._file.open("r+b", buffering=0) as stream:
            for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(indices)], strict=True):
                if first == last:
                    continue
                stream.seek(self._start + int(indices[first]) * self._stride)
                left = memoryview(values[first:last].tobytes())
                while left:
                    left = left[stream.write(left) :]

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        with self._file.open("r+b") as stream:
            os.fsync(stream.fileno())


def describe_images(images: Dataset, sources: list[str]) -> dict[str, Any]:
    """The content of keys.json: for every image its key, size in pixels, bytes of its file and data set.

    Bytes are null, and paths empty, for images in shards, since packing may encode them anew. Paths say where the
    images were; readers do not rely on them.
    """
    names = sorted(set(sources))
    place = {name: number for number, name in enumerate(names)}
    return {
        "keys": [record.key for record in images],
        "sizes": [[record.width, record.height] for record in images],
        "bytes": [file_bytes(record) for record in images],
        "paths": [record.path if record.offset < 0 else "" for record in images],
        "source_names": names,
        "sources": [place[name] for name in sources],
    }


def file_bytes(record: Record) -> int | None:
    """The size of an image's own file; ``None`` where it has none, or it is not there."""
    if record.offset >= 0:
        return None
    try:
        return Path(record.path).stat().st_size
    except OSError:
        return None


def fingerprint(described: dict[str, Any]) -> str:
    """A sha256 over keys, sizes and bytes of the images, in hex; their order and place do not enter."""
    entries = sorted(zip(described["keys"], described["sizes"], described["bytes"], strict=True))
    text = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return hashlib.sha256(b"agssp-zoo images 1\n" + text.encode()).hexdigest()
