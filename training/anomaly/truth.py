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
        files: the masks of an image, each as its data set's folder and the path below, by the image's key.
    """

    files: Mapping[str, tuple[tuple[Path, str], ...]]

    @classmethod
    def find(cls, dataset: Dataset) -> Masks:
        """The masks of one or several folders, found as the data reader finds them (:mod:`..data.masks`).

        A data set that was not read from folders (shards) has none.
        """
        paths = [dataset.path] if Path(dataset.path).is_dir() else dataset.path.split(", ")
        keys = {record.path: record.key for record in dataset}
        known = set(keys.values())
        found: dict[str, tuple[tuple[Path, str], ...]] = {}
        for root in [Path(path) for path in paths if path and Path(path).is_dir()]:
            rels = walk(root)
            masks = [rel for rel in rels if is_image(rel) and in_folder(rel, MASK_FOLDERS)]
            matcher = Matcher(list_images(root, rels)) if masks else None
            for rel in masks:
                image = matcher.match(rel, mask=True) if matcher else None
                key = "" if image is None else keys.get(image.path, image.key)
                if key in known:
                    found[key] = (*found.get(key, ()), (root, rel))
        return cls(found)

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
        for root, rel in self.files.get(record.key, ()):
            mask = read_mask(root, rel)
            if mask is None:
                raise DataError(f"{root / rel}: is not a readable mask; correct or remove it.")
            if mask.shape != (record.height, record.width):
                raise DataError(
                    f"{root / rel}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {record.key!r} "
                    f"{record.width}x{record.height}; correct or remove it."
                )
            joined = mask if joined is None else joined | mask
        return joined
