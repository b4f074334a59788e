"""What an input size of the network does to the boxes of a data set: which become too thin, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agssp_zoo.tiling import tiles

from .records import Record

SIZES = (224, 320, 480, 640, 960, 1280)
"""Values of ``--size`` that are compared."""
TILE = 640
"""The value of ``--tile`` that is compared where images are larger than it."""
THIN = 8
"""Pixels of the network's input, the stride of the finest maps of most detectors. What is thinner is hard to find."""
MOST_ENLARGED = 4.0
"""Sizes that enlarge images more than this are left out."""


@dataclass(frozen=True)
class InputSize:
    """What one choice of ``--size`` or ``--tile`` means for a data set.

    Attributes:
        option: as ``finetune`` takes it, such as ``--size 640``.
        scale: median over the images: pixels of the input for each pixel of the image.
        thin: boxes whose shorter side is below :data:`THIN` pixels of the input.
        boxes: all boxes.
        megapixels: mean over the images: what the network sees of one, without padding, in millions of pixels.
    """

    option: str
    scale: float
    thin: int
    boxes: int
    megapixels: float


def compare_input_sizes(records: Sequence[Record]) -> list[InputSize]:
    """What the usual input sizes do to a data set's boxes, the smallest first; nothing where there are no images."""
    if not records:
        return []
    sides = np.array([(record.width, record.height) for record in records], float)
    longer = sides.max(axis=1)
    boxes = sum(len(record.boxes) for record in records)
    found = []
    for size in SIZES:
        scales = size / longer
        if np.median(scales) <= MOST_ENLARGED:
            seen = float((sides.prod(axis=1) * scales**2).mean())
            thin = count_thin(records, size)
            found.append(InputSize(f"--size {size}", float(np.median(scales)), thin, boxes, seen / 1e6))
    if np.median(longer) > TILE:
        shapes, counts = np.unique(sides.astype(int), axis=0, return_counts=True)
        area = [sum((b - t) * (r - le) for t, le, b, r in tiles((height, width), TILE)) for width, height in shapes]
        seen = float((np.array(area) * counts).sum() / len(records))
        found.append(InputSize(f"--tile {TILE}", 1.0, count_thin(records), boxes, seen / 1e6))
    return found


def count_thin(records: Sequence[Record], size: int = 0) -> int:
    """Boxes whose shorter side is below :data:`THIN` pixels of the input.

    Args:
        records: the images.
        size: the longer side of every image in the input; 0: images keep their pixels.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)])
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    if size:
        scales = [size / max(record.width, record.height) for record in records]
        sides = sides * np.repeat(scales, [len(record.boxes) for record in records])
    return int((sides < THIN).sum())
