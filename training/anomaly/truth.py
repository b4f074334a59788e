"""What is known about a data set's defects: masks beside the images, and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError

from ..data.dataset import Dataset
from ..data.listing import MASK_FOLDERS, Matcher, in_folder, is_image, list_images, walk
from ..data.masks import read_mask
from ..data.records import Record

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """The mask files of a data set.

    Attributes:
        root: its folder.
        files: the mask files of an image, relative to the folder, by the image's key.
    """

    root: Path
    files: Mapping[str, tuple[str, ...]]

    @classmethod
    def find(cls, dataset: Dataset) -> Masks:
        """The masks of a folder, found as the data reader finds them (see :mod:`agssp_zoo.training.data.masks`).

        A data set that was not read from a folder (shards, several folders) has none.
        """
        root = Path(dataset.path)
        if not dataset.path or not root.is_dir():
            return cls(root, {})
        rels = walk(root)
        masks = [rel for rel in rels if is_image(rel) and in_folder(rel, MASK_FOLDERS)]
        if not masks:
            return cls(root, {})
        matcher = Matcher(list_images(root, rels))
        found: dict[str, tuple[str, ...]] = {}
        for rel in masks:
            image = matcher.match(rel, mask=True)
            if image is not None:
                found[image.key] = (*found.get(image.key, ()), rel)
        return cls(root, found)

    def __contains__(self, key: object) -> bool:
        return key in self.files

    def __len__(self) -> int:
        return len(self.files)

    def load(self, record: Record) -> Mask | None:
        """Where an image is defective, bool (H, W); ``None`` when it has no mask. Several masks are joined.

        Raises:
            DataError: a mask cannot be read, or is of another size than its image.
        """
        joined: Mask | None = None
        for rel in self.files.get(record.key, ()):
            mask = read_mask(self.root, rel)
            if mask is None:
                raise DataError(f"{self.root / rel}: is not a readable mask; correct or remove it.")
            if mask.shape != (record.height, record.width):
                raise DataError(
                    f"{self.root / rel}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {record.key!r} "
                    f"{record.width}x{record.height}; correct or remove it."
                )
            joined = mask if joined is None else joined | mask
        return joined
