"""A store of anomaly maps: the maps of a whole pool in one memory-mapped file, with what they are of and made by."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError

from ..data.dataset import Dataset
from ..data.problems import some
from .layout import (
    DONE,
    DONE_FILE,
    KEYS_FILE,
    MAPS_FILE,
    PARTS_FOLDER,
    STATE_FILE,
    file_bytes,
    read_store_file,
)
from .rescale import rescale


class MapStore:
    """Anomaly maps, as :class:`~agssp_zoo.training.anomaly.MapWriter` wrote them; :meth:`open` gives one.

    It pickles into worker processes, which open the file anew.

    Attributes:
        path: the store's folder.
        keys: keys of the images, in the order of the rows.
        sources: the data set that each image comes from.
        grid: rows and columns of a map.
        settings: method and all that defines the result.
        fingerprint: of the images.
        bounded: the values are probabilities.
        notes: what the method said about what it chose.
        unreadable: keys of images that could not be read and have no map.
        ranges: for every source the ``"map"`` and ``"score"`` values that stand for 0 and 1.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        self.path = path
        self.keys: tuple[str, ...] = tuple(described["keys"])
        names = described["source_names"]
        self.sources: tuple[str, ...] = tuple(names[number] for number in described["sources"])
        self.grid: tuple[int, int] = (values["grid"][0], values["grid"][1])
        self.settings: dict[str, Any] = values["settings"]
        self.fingerprint: str = values["fingerprint"]
        self.bounded: bool = values["bounded"]
        self.notes: tuple[str, ...] = tuple(values["notes"])
        self.unreadable = frozenset(values["unreadable"])
        self.ranges: dict[str, dict[str, list[float]]] = values["ranges"]
        self._files: dict[str, str] = values["files"]
        self._sizes, self._bytes = described["sizes"], described["bytes"]
        self._rows = {key: row for row, key in enumerate(self.keys)}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, images: Dataset | None = None) -> MapStore:
        """Opens a finished store.

        Args:
            path: its folder.
            images: images that must be in it, with the size (and, of plain files, the bytes) that the maps were made
                from. The store may hold more.

        Raises:
            DataError: it is no store, is not finished, is damaged, or holds maps of other images.
        """
        folder = Path(path)
        values = read_store_file(folder)
        if values is None:
            begun = any((folder / name).exists() for name in (KEYS_FILE, DONE_FILE, MAPS_FILE, PARTS_FOLDER))
            begun = begun or any(folder.glob(STATE_FILE.replace(".", "*.")))  # nothing but learning has been done
            how = "holds unfinished maps; run the same `agssp-zoo anomaly-maps` command again to finish them."
            raise DataError(f"{folder}: {how if begun else 'is not a store of anomaly maps.'}")
        if not values.get("complete"):
            raise DataError(
                f"{folder}: the maps are not finished ({_count_done(folder)} of {values['images']} images); run the "
                "same `agssp-zoo anomaly-maps` command again, it goes on where it stopped."
            )
        try:
            store = cls(folder, values, json.loads((folder / values["files"]["keys"]).read_bytes()))
            fits = store.maps.shape == (len(store.keys), *store.grid) and store.scores.shape == (len(store.keys),)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{folder}: is damaged ({error}); remove it and make the maps again.") from None
        if not fits or store.maps.dtype != np.float16:
            raise DataError(f"{folder}: is damaged (its files do not fit together); make the maps again.")
        if images is not None:
            store.check(images)
        return store

    @cached_property
    def maps(self) -> NDArray[np.float16]:
        """All maps, float16 (N, gh, gw), memory-mapped and read-only."""
        mapped: NDArray[np.float16] = np.load(self.path / self._files["maps"], mmap_mode="r")
        return mapped

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Image scores, float32 (N,)."""
        scores: NDArray[np.float32] = np.load(self.path / self._files["scores"])
        return scores

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __repr__(self) -> str:
        return f"MapStore({str(self.path)!r}, {self.settings.get('method')}, {len(self)} images, grid {self.grid})"

    def __reduce__(self) -> Any:
        return MapStore.open, (self.path,)

    def row(self, key: str) -> int:
        """The row of an image.

        Raises:
            DataError: the store has no map of it.
        """
        row = self._rows.get(key)
        if row is None:
            why = "it could not be read when they were made" if key in self.unreadable else f"it has {len(self)} others"
            raise DataError(f"{self.path}: has no anomaly map of image {key!r}; {why}.")
        return row

    def map(self, key: str) -> NDArray[np.float32]:
        """The map of an image as the method gave it, float32 (gh, gw); errors as for :meth:`row`."""
        return np.array(self.maps[self.row(key)], np.float32)

    def probability(self, key: str) -> NDArray[np.float32]:
        """The map of an image on the scale 0-1, float32 (gh, gw); errors as for :meth:`row`.

        Probabilities stay as they are; other values are rescaled by their data set's range (:mod:`.rescale`).
        """
        values = self.map(key)
        if not self.bounded:
            low, high = self.ranges[self.sources[self.row(key)]]["map"]
            values = rescale(values, (low, high))
        return np.clip(values, 0.0, 1.0, out=values)

    def score(self, key: str) -> float:
        """The image's score; errors as for :meth:`row`."""
        return float(self.scores[self.row(key)])

    def check(self, images: Dataset) -> None:
        """Refuses images that the maps were not made of.

        Raises:
            DataError: an image is not in the store, or has another size.
        """
        missing = [r.key for r in images if r.key not in self._rows and r.key not in self.unreadable]
        if missing:
            raise DataError(
                f"{self.path}: has no maps of {len(missing)} of {len(images)} images: {some(missing)}. It was made of "
                f"other images, or of a folder at another level (its keys are like {self.keys[0]!r})."
            )
        for record in images:
            row = self._rows.get(record.key)
            if row is None:
                continue
            width, height = self._sizes[row]
            if (width, height) != (record.width, record.height):
                raise DataError(
                    f"{self.path}: image {record.key!r} had {width}x{height} pixels when its map was made, now "
                    f"{record.width}x{record.height}: the maps are of other images; make them anew."
                )
            now = file_bytes(record) if self._bytes[row] is not None else None
            if now is not None and now != self._bytes[row]:
                raise DataError(
                    f"{self.path}: image {record.key!r} has changed since its map was made ({record.path} has {now} "
                    f"bytes, then {self._bytes[row]}); make the maps anew."
                )


def _count_done(folder: Path) -> int:
    try:
        return int((np.load(folder / DONE_FILE) == DONE).sum())
    except (OSError, ValueError):
        return 0
