"""Training on tiles of large labelled images.

An image is cut as ``Detector.predict(tile=..., overlap=...)`` cuts it. A box that a tile's border cuts is cut with it;
its piece is a label where enough of it is left (:data:`MIN_SHARE`, :data:`LONG`), so that the detector learns to answer
pieces that :mod:`agssp_zoo.seams` joins again. A tile that shows only pieces too small to be labels is left out: it is
neither a defect nor a sound surface. Of the tiles that no box touches, some are drawn by the seed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError
from agssp_zoo.seams import Window
from agssp_zoo.tiling import Tiling

from .augment import MIN_SIDE
from .data.dataset import Dataset
from .data.records import Record

MIN_SHARE = 0.2
"""A piece of a box is a label when at least this share of the box's area is left, ..."""
LONG = 0.25
"""... or when it is at least as long as this share of the tile's side, as a piece of a long scratch is."""
_KEPT = 2
"""Whole images kept decoded, since the tiles of one follow each other when memory is filled."""


class Reader:
    """Decodes whole images, and keeps the last ones for their other tiles."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[tuple[str, int], NDArray[np.uint8]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Workers start with nothing kept."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]

    def read(self, record: Record) -> NDArray[np.uint8]:
        """The image of a record."""
        name = (record.path, record.offset)
        with self.lock:
            if name in self.kept:
                self.kept.move_to_end(name)
                return self.kept[name]
        image = record.load_image()
        with self.lock:
            self.kept[name] = image
            while len(self.kept) > _KEPT:
                self.kept.popitem(last=False)
        return image


@dataclass(frozen=True, eq=False, slots=True)
class Tile(Record):
    """A part of a labelled image; width, height and boxes are the tile's.

    Attributes:
        window: (top, left, bottom, right) of the tile on the image.
        whole: the image.
        reader: decodes it.
    """

    window: Window = (0, 0, 0, 0)
    whole: Record | None = None
    reader: Reader | None = None

    def load_image(self) -> NDArray[np.uint8]:
        """The tile's pixels, (height, width, 3) uint8 RGB; errors as for :meth:`Record.load_image`."""
        if self.whole is None or self.reader is None:
            raise DataError(f"{self.key}: is a tile of no image.")
        top, left, bottom, right = self.window
        return np.ascontiguousarray(self.reader.read(self.whole)[top:bottom, left:right])


def cut(record: Record, windows: Sequence[Window], reader: Reader | None = None) -> list[Tile]:
    """The tiles of an image, each with the pieces of boxes that are labels in it.

    Args:
        record: the image.
        windows: where the tiles lie.
        reader: shared by the tiles of several images; ``None`` makes one.
    """
    reader = Reader() if reader is None else reader
    return [_tile(record, window, reader)[0] for window in windows]


def _tile(record: Record, window: Window, reader: Reader) -> tuple[Tile, bool]:
    """One tile, and whether any box touches it."""
    top, left, bottom, right = window
    corner = np.array([left, top, left, top], np.float32)
    inside = np.clip(record.boxes, corner, np.array([right, bottom, right, bottom], np.float32))
    sides = inside[:, 2:] - inside[:, :2]
    touched = (sides > 0).all(1)
    share = sides.prod(1) / np.maximum(np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1), 1e-6)
    long = sides.max(1, initial=0.0) >= LONG * min(bottom - top, right - left)
    # A box that was small from the start is no piece, and stays.
    whole = share > 1 - 1e-4
    keep = touched & (whole | ((sides.min(1, initial=np.inf) >= MIN_SIDE) & ((share >= MIN_SHARE) | long)))
    tile = Tile(
        key=f"{record.key}@{left},{top}",
        path=record.path,
        split=record.split,
        width=right - left,
        height=bottom - top,
        boxes=(inside[keep] - corner).astype(np.float32),
        labels=record.labels[keep],
        crowd=record.crowd[keep],
        difficult=record.difficult[keep],
        offset=record.offset,
        size=record.size,
        window=window,
        whole=record,
        reader=reader,
    )
    return tile, bool(touched.any())


def tile_dataset(data: Dataset, tiling: Tiling, *, empty: float, seed: int) -> Dataset:
    """The tiles to train on: all with a label, and some without any box.

    Args:
        data: labelled images.
        tiling: how they are cut.
        empty: tiles that no box touches, as a share of those with labels; drawn from all images by the seed.
        seed: of that choice.

    Raises:
        DataError: no tile has a label.
    """
    labelled: list[Tile] = []
    sound: list[Tile] = []
    for tile, touched in _all_tiles(data, tiling):
        if len(tile.labels) and not tile.crowd.all():
            labelled.append(tile)
        elif not touched:
            sound.append(tile)
    if not labelled:
        raise DataError(f"{data.path}: no tile of {tiling.tile} pixels has a label; give larger tiles.")
    count = min(round(empty * len(labelled)), len(sound))
    chosen = np.sort(np.random.default_rng([seed, _PURPOSE]).permutation(len(sound))[:count])
    kept = sorted([*labelled, *(sound[i] for i in chosen)], key=lambda tile: (tile.key.rpartition("@")[0], tile.window))
    return replace(data, records=tuple(kept))


_PURPOSE = 7
"""Sets the choice of tiles apart from everything else that is drawn by the seed."""


def _all_tiles(data: Dataset, tiling: Tiling) -> Iterator[tuple[Tile, bool]]:
    reader = Reader()
    for record in data.records:
        for window in tiling.windows((record.height, record.width)):
            yield _tile(record, window, reader)
