"""Writing a map store row by row, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import TrainingError

from ..data.dataset import Dataset
from ..data.problems import some
from ..data.unlabelled import sources as sources_of
from .layout import (
    DONE,
    DONE_FILE,
    FILES,
    KEYS_FILE,
    KIND,
    MAPS_FILE,
    SCORES_FILE,
    STORE_FILE,
    UNREADABLE,
    VERSION,
    WAITING,
    Rows,
    describe_images,
    fingerprint,
    read_store_file,
    write_json,
    writing,
)
from .rescale import ranges_by_source
from .store import MapStore

SYNC_EVERY = 10.0
"""Seconds after which what was written is brought to the disk, in case the machine stops."""


class MapWriter:
    """Writes a store row by row; the same images and settings go on where an earlier writer stopped.

    Several processes may write into one store, each its own rows: one makes it (:meth:`create`), then the others open
    it, and one finishes it.

    Args:
        path: the store's folder; made where it is not there.
        images: what maps are made of.
        settings: JSON values, all that defines the result.
        bounded: the maps' values are probabilities.
        sources: the data set of each image; left out: as :func:`~agssp_zoo.training.data.sources` tells them.

    Attributes:
        grid: rows and columns of a map; ``None`` until it is known.

    Raises:
        TrainingError: the folder holds maps of other images or by other settings, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: Dataset,
        settings: Mapping[str, Any],
        bounded: bool,
        *,
        sources: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._described = describe_images(images, list(sources_of(images) if sources is None else sources))
        if len(set(self._described["keys"])) != len(images) or not len(images):
            raise TrainingError(f"{images.path}: {len(images)} images; there must be some, each with a key of its own.")
        self._values: dict[str, Any] = {
            "kind": KIND,
            "version": VERSION,
            "complete": False,
            "images": len(images),
            "bounded": bounded,
            "settings": json.loads(json.dumps(settings)),
            "fingerprint": fingerprint(self._described),
            "files": FILES,
        }
        self.grid: tuple[int, int] | None = None
        self._complete = False
        self._synced = time.monotonic()
        stored = read_store_file(self.path)
        if stored is not None:
            self._refuse_others(stored)
            self.grid, self._complete = (stored["grid"][0], stored["grid"][1]), bool(stored["complete"])
            # Rows are in the order of the images that began the store.
            if not self._complete:
                self._join(images)

    def _refuse_others(self, stored: Mapping[str, Any]) -> None:
        if stored["fingerprint"] != self._values["fingerprint"]:
            raise TrainingError(
                f"{self.path}: holds maps of other images ({stored['images']}, now {self._values['images']}; or files "
                "have changed); give another --out, or remove it."
            )
        new = {**self._values["settings"], "bounded": self._values["bounded"]}
        old = {**stored["settings"], "bounded": stored["bounded"]}
        names = [name for name in sorted({*new, *old}) if new.get(name) != old.get(name)]
        if names:
            changes = ", ".join(f"{name} {_short(new.get(name))} (was {_short(old.get(name))})" for name in names)
            raise TrainingError(
                f"{self.path}: holds maps made with other settings: {changes}; give another --out, or remove it."
            )

    def create(self, grid: tuple[int, int]) -> None:
        """Makes the files of a new store, once the maps' rows and columns are known."""
        count = self._values["images"]
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.grid = (int(grid[0]), int(grid[1]))
        write_json(self.path / KEYS_FILE, self._described)
        Rows.create(self.path / MAPS_FILE, (count, *self.grid), np.float16)
        Rows.create(self.path / SCORES_FILE, (count,), np.float32)
        Rows.create(self.path / DONE_FILE, (count,), np.uint8)
        write_json(self.path / STORE_FILE, {**self._values, "grid": self.grid}, indent=1)
        self._open()

    def _join(self, images: Dataset) -> None:
        """Opens the files of a store that was begun."""
        try:
            described = json.loads((self.path / KEYS_FILE).read_bytes())
            self._open()
            if self._maps.shape != (len(images), *(self.grid or ())):
                raise ValueError("its files do not fit together")
        except (OSError, ValueError) as error:
            if self._is_finished():
                return
            raise TrainingError(f"{self.path}: is damaged ({error}); remove it and start again.") from None
        if described["keys"] != self._described["keys"]:
            raise TrainingError(f"{self.path}: holds the same images in another order; give another --out.")

    def _open(self) -> None:
        self._maps, self._scores, self._done = (Rows(self.path / n) for n in (MAPS_FILE, SCORES_FILE, DONE_FILE))

    def _is_finished(self) -> bool:
        """Whether the store is complete by now: another process may have finished it, and removed what made it."""
        self._complete = self._complete or bool((read_store_file(self.path) or {}).get("complete"))
        return self._complete

    def _states(self) -> NDArray[np.uint8]:
        """The state of every row, uint8 (N,)."""
        count = self._values["images"]
        if self.grid is None:
            return np.full(count, WAITING, np.uint8)
        if not self._complete:
            try:
                states: NDArray[np.uint8] = np.load(self.path / DONE_FILE)
                return states
            except FileNotFoundError:
                if not self._is_finished():
                    raise TrainingError(f"{self.path}: has lost {DONE_FILE}; remove it and start again.") from None
        return np.full(count, DONE, np.uint8)

    @property
    def todo(self) -> NDArray[np.int64]:
        """Indices of the images that have no map yet, int64; unreadable ones are tried again."""
        return np.flatnonzero(self._states() != DONE)

    def write(self, indices: Sequence[int], maps: NDArray[np.floating], scores: NDArray[np.floating]) -> None:
        """Writes maps (B, gh, gw) and scores (B,) of the images at some indices; makes the store if need be.

        Raises:
            TrainingError: a value is not finite, the grid is another, or the disk is full.
        """
        rows = np.asarray(indices, np.int64)
        if self.grid is None:
            self.create((maps.shape[1], maps.shape[2]))
        if maps.shape != (len(rows), *(self.grid or ())) or scores.shape != (len(rows),):
            raise TrainingError(
                f"{self.path}: maps {maps.shape} and scores {scores.shape} for {len(rows)} images do not fit the "
                f"store's grid {self.grid}."
            )
        good = np.isfinite(maps).all(axis=(1, 2)) & np.isfinite(scores)
        if not good.all():
            keys = [self._described["keys"][row] for row in rows[~good]]
            raise TrainingError(f"The anomaly map of image {some(keys)} holds values that are no numbers.")
        limit = float(np.finfo(np.float16).max)
        with writing(self.path):
            self._maps.write(rows, np.clip(maps, -limit, limit))
            self._scores.write(rows, scores)
            if time.monotonic() - self._synced > SYNC_EVERY:
                self._sync()
            self._done.write(rows, np.full(len(rows), DONE, np.uint8))

    def mark_unreadable(self, indices: Sequence[int]) -> None:
        """Notes images that cannot be read: the finished store is without them."""
        with writing(self.path):
            self._done.write(np.asarray(indices, np.int64), np.full(len(indices), UNREADABLE, np.uint8))

    def _sync(self) -> None:
        for rows in (self._maps, self._scores, self._done):
            rows.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Waits until all is on the disk; another process goes on."""
        if self.grid is not None and not self._complete:
            with writing(self.path):
                try:
                    self._sync()
                except FileNotFoundError:
                    if not self._is_finished():
                        raise

    def rows(self, state: int) -> NDArray[np.int64]:
        """Indices of the images in a state: ``WAITING``, ``DONE`` or ``UNREADABLE``; a finished store's are done."""
        return np.flatnonzero(self._states() == state)

    def finish(self, notes: Sequence[str] = ()) -> MapStore:
        """Completes the store: ranges of every data set, unreadable images left out, then store.json.

        Args:
            notes: what the method said about what it chose.

        Raises:
            TrainingError: images have no map yet, or none could be read.
        """
        if self._complete:
            return MapStore.open(self.path)
        done = np.load(self.path / DONE_FILE) if self.grid is not None else np.zeros(1)
        if (done == WAITING).any():
            raise TrainingError(f"{self.path}: {int((done == WAITING).sum())} images have no map yet.")
        if not (done == DONE).any():
            raise TrainingError(f"{self.path}: not one of the {len(done)} images could be read.")
        with writing(self.path):
            self._sync()
        described, files = self._described, FILES
        maps, scores = np.load(self.path / MAPS_FILE, mmap_mode="r"), np.load(self.path / SCORES_FILE)
        names = [described["source_names"][number] for number in described["sources"]]
        unreadable = [key for key, state in zip(described["keys"], done, strict=True) if state == UNREADABLE]
        if unreadable:
            kept = np.flatnonzero(done == DONE)
            described = {k: v if k == "source_names" else [v[i] for i in kept] for k, v in described.items()}
            files = {kind: name.replace(".", "-read.") for kind, name in FILES.items()}
            maps, scores = self._without(kept, described, files), scores[kept]
            names = [names[row] for row in kept]
        values = {**self._values, "grid": self.grid, "complete": True, "unreadable": unreadable, "files": files}
        values["notes"] = list(notes)
        values["ranges"] = ranges_by_source(maps, scores, names)
        write_json(self.path / STORE_FILE, values, indent=1)
        self._complete = True
        (self.path / DONE_FILE).unlink(missing_ok=True)
        for left in self.path.glob(".*.tmp"):  # of a killed run
            left.unlink(missing_ok=True)
        for kind in FILES if unreadable else ():
            (self.path / FILES[kind]).unlink(missing_ok=True)
        return MapStore.open(self.path)

    def _without(
        self, kept: NDArray[np.int64], described: Mapping[str, Any], files: Mapping[str, str]
    ) -> NDArray[np.float16]:
        """Writes the store's files anew with only some of the rows; store.json will name them."""
        shape = (len(kept), *(self.grid or ()))
        for kind, source in (("maps", MAPS_FILE), ("scores", SCORES_FILE)):
            old = np.load(self.path / source, mmap_mode="r")
            Rows.create(self.path / files[kind], shape if kind == "maps" else shape[:1], old.dtype.type)
            new = Rows(self.path / files[kind])
            with writing(self.path):
                for start in range(0, len(kept), 4096):
                    part = kept[start : start + 4096]
                    new.write(np.arange(start, start + len(part)), old[part])
                new.sync()
        write_json(self.path / files["keys"], described)
        mapped: NDArray[np.float16] = np.load(self.path / files["maps"], mmap_mode="r")
        return mapped


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
