"""Several stores of the same images as one: rescaled by data set, then averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, InvalidArgumentError

from ..data.dataset import Dataset
from .grid import enlarge
from .rescale import rescale
from .store import MapStore
from .writer import MapWriter

_BLOCK = 256


def combine(stores: Sequence[MapStore], out: str | os.PathLike[str], images: Dataset) -> MapStore:
    """The mean of several stores, each on a scale of its own before.

    Maps and image scores are put on the scale of :mod:`.rescale`, data set by data set, so that each store has the
    same say; nothing is clipped, so that the order of the highest values stays. Maps are enlarged to as many rows and
    columns as the finest have. Probabilities are rescaled too. An interrupted combining goes on when it is called
    again.

    Args:
        stores: at least two.
        out: folder of the new store.
        images: what the maps are of; images that are in no store because they could not be read are left out.

    Raises:
        InvalidArgumentError: fewer than two stores.
        DataError: a store is of other images, or they tell data sets apart in different ways.
        TrainingError: ``out`` holds something else, or cannot be written.
    """
    if len(stores) < 2:
        raise InvalidArgumentError("combine: give at least two stores.")
    for store in stores:
        store.check(images)
        if set(store.ranges) != set(stores[0].ranges):
            raise DataError(f"{store.path}: has other data sets than {stores[0].path}; make both with the same pool.")
    first = stores[0]
    known = dict(zip(first.keys, first.sources, strict=True))
    # An unreadable image belongs to any source: the finished store is without it.
    sources = [known.get(record.key, first.sources[0]) for record in images]
    settings = {
        "method": "+".join(str(store.settings.get("method")) for store in stores),
        "parts": [store.settings for store in stores],
    }
    writer = MapWriter(out, images, settings, bounded=False, sources=sources)
    grid = (max(store.grid[0] for store in stores), max(store.grid[1] for store in stores))
    if writer.grid is None:
        writer.create(grid)
    waiting = writer.todo
    for start in range(0, len(waiting), _BLOCK):
        block = waiting[start : start + _BLOCK].tolist()
        rows = [row for row in block if all(images[row].key in store for store in stores)]
        writer.mark_unreadable([row for row in block if row not in rows])
        if rows:
            keys = [images[row].key for row in rows]
            maps = np.array([[_map(store, key, grid) for key in keys] for store in stores])
            scores = np.array([[_score(store, key) for key in keys] for store in stores])
            writer.write(rows, maps.mean(axis=0), scores.mean(axis=0))
    return writer.finish([note for store in stores for note in store.notes])


def _map(store: MapStore, key: str, grid: tuple[int, int]) -> NDArray[np.float32]:
    low, high = store.ranges[store.sources[store.row(key)]]["map"]
    values = rescale(store.map(key), (low, high))
    return values if store.grid == grid else enlarge(values, grid)


def _score(store: MapStore, key: str) -> float:
    low, high = store.ranges[store.sources[store.row(key)]]["score"]
    return float(rescale(np.array([store.score(key)], np.float64), (low, high))[0])
