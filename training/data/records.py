"""One labelled image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, ImageError


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One labelled image: where it is and what is on it. The image itself is read by :meth:`load_image`, lazily.

    Records hold plain values and arrays only, so they pickle into worker processes. Two records are equal only when
    they are the same object; compare :meth:`Dataset.fingerprint` instead.

    Attributes:
        key: the image's stable name within its data set: its path without suffix and without folders called
            ``images``. Packing into shards keeps it.
        path: the image file, or the shard (a path or URL) that holds it.
        split: ``"train"``, ``"val"``, ``"test"`` or whatever the data set calls it.
        width: of the image, in pixels, as ``load_image`` gives it.
        height: of the image, in pixels.
        boxes: float32 (n, 4), x1 y1 x2 y2 in pixels; x2 and y2 are exclusive, so the area is (x2-x1)*(y2-y1). Inside
            the image, and never empty.
        labels: int64 (n,), indices into the data set's ``class_names``.
        crowd: bool (n,), the box is around a group (COCO's ``iscrowd``): neither found nor missed when scoring.
        difficult: bool (n,), marked difficult (Pascal VOC).
        offset: where the encoded image begins in the shard, in bytes; -1 when ``path`` is an image file.
        size: of the encoded image in the shard, in bytes.
    """

    key: str
    path: str
    split: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    offset: int = -1
    size: int = 0

    def load_image(self) -> NDArray[np.uint8]:
        """Reads the image.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            ImageError: the image is corrupt, truncated or gone.
            DataError: the image is not of the size that the labels were made for, or a shard cannot be read.
        """
        return self.decode(self.path if self.offset < 0 else self.read_bytes())

    def decode(self, encoded: str | bytes) -> NDArray[np.uint8]:
        """The image of an encoded file, or of its bytes; checks and errors as for :meth:`load_image`."""
        from agssp_zoo.images import read_image

        try:
            image = read_image(encoded)
        except ImageError as error:
            if isinstance(encoded, str):
                raise  # it names the file
            raise ImageError(f"{self.path}: image {self.key!r}: {error}") from None
        if self.width and image.shape[:2] != (self.height, self.width):
            raise DataError(
                f"{self.path}: image {self.key!r} is now {image.shape[1]}x{image.shape[0]} pixels, but "
                f"{self.width}x{self.height} when the data set was read; read it again."
            )
        return image

    def scaled(self, width: int, height: int) -> Record:
        """The record for the image resized to a width and height in pixels."""
        boxes = self.boxes.astype(np.float64) * np.tile([width / self.width, height / self.height], 2)
        boxes = np.clip(boxes, 0.0, np.tile([float(width), float(height)], 2))
        return replace(self, width=width, height=height, boxes=boxes.astype(np.float32))

    def read_bytes(self) -> bytes:
        """The encoded image file.

        Raises:
            DataError: the file or shard cannot be read.
        """
        from .ranges import read_range

        return read_range(self.path, self.offset, self.size) if self.offset >= 0 else read_range(self.path)


def empty_labels() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Boxes, labels, crowd and difficult of an image without defects."""
    return np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.bool_)


def make_labels(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], crowd: Sequence[bool], difficult: Sequence[bool]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The arrays of a :class:`Record` from lists."""
    if not boxes:
        return empty_labels()
    return (
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(crowd, np.bool_),
        np.array(difficult, np.bool_),
    )
