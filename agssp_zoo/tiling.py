"""Large images in overlapping tiles; what the tiles find is merged by :mod:`agssp_zoo.seams`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agssp_zoo.config import Size
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.seams import Found, Window, merge_tiles

OVERLAP = 0.2
"""The share of a tile that the next one covers where nobody says another."""


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        tile: side, or (height, width), of a tile in pixels of the image.
        overlap: the least share of a tile that the next one covers again, in 0-0.9.
        whole: whether the whole image, shrunk to the network's input, is looked at too, for defects larger than the
            overlap.

    Raises:
        InvalidArgumentError: a tile below 1 pixel, or an overlap outside 0-0.9.
    """

    tile: Size
    overlap: float = OVERLAP
    whole: bool = False

    def __post_init__(self) -> None:
        pair = self.tile if isinstance(self.tile, (list, tuple)) and len(self.tile) == 2 else (self.tile, self.tile)
        if any(isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < 1 for side in pair):
            raise InvalidArgumentError(f"tile={self.tile!r}: give a number of pixels, or (height, width).")
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, (int, float, np.number)):
            raise InvalidArgumentError(f"overlap={self.overlap!r}: give the share of a tile, in 0-0.9.")
        if not 0 <= self.overlap <= 0.9:
            raise InvalidArgumentError(f"overlap={self.overlap!r}: give the share of a tile, in 0-0.9.")

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        if isinstance(self.tile, (int, np.integer)):
            return int(self.tile), int(self.tile)
        return int(self.tile[0]), int(self.tile[1])

    def windows(self, image_size: tuple[int, int]) -> list[Window]:
        """The tiles of an image of (height, width), row by row, and last the whole image where it is looked at too."""
        found = list(tiles(image_size, self.tile, self.overlap))
        if self.whole and len(found) > 1:
            found.append((0, 0, *image_size))
        return found

    def merge(self, found: Sequence[Found], image_size: tuple[int, int], iou: float) -> Found:
        """What the :meth:`windows` of an image have found, in their order -> the image's detections, best first."""
        windows = self.windows(image_size)
        if self.whole and len(windows) > 1:
            found = [*found[:-1], self._larger_than_overlap(found[-1])]
        return merge_tiles(found, windows, image_size, iou)

    def _larger_than_overlap(self, found: Found) -> Found:
        """Of the whole image only what no tile is sure to see whole; the tiles see the rest better."""
        boxes, scores, labels = found
        height, width = (side * self.overlap for side in self.sides)
        keep = (boxes[:, 2] - boxes[:, 0] > width) | (boxes[:, 3] - boxes[:, 1] > height)
        return boxes[keep], scores[keep], labels[keep]


def tiles(image_size: tuple[int, int], tile: Size, overlap: float = OVERLAP) -> Iterator[Window]:
    """Cuts an image into overlapping tiles, row by row; the last ones are moved back to end at the border.

    Args:
        image_size: (height, width) in pixels.
        tile: side, or (height, width), of a tile in pixels of the image.
        overlap: the least share of a tile that the next one covers again, in 0-0.9.

    Yields:
        (top, left, bottom, right) of every tile; an image no larger than a tile is one tile.

    Raises:
        InvalidArgumentError: a tile below 1 pixel, or an overlap outside 0-0.9.
    """
    height, width = Tiling(tile, overlap).sides
    for top in _starts(image_size[0], height, overlap):
        for left in _starts(image_size[1], width, overlap):
            yield top, left, min(top + height, image_size[0]), min(left + width, image_size[1])


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the tiles along one axis."""
    if tile >= length:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]
