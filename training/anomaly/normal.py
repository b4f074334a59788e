"""The normal images that a method remembers: found by folder or split, and drawn by a seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError, InvalidArgumentError

from ..data.dataset import ALL, Dataset
from ..data.problems import some
from ..data.recognise import read_dataset
from ..data.shards import is_url
from ..data.unlabelled import read_images
from .layout import describe_images, fingerprint
from .settings import MapSettings


def normal_images(settings: MapSettings, method: str) -> Dataset:
    """The images that ``--normal`` and ``--shots`` name.

    ``--normal`` is a folder, also one within the data or their ``images``: all of its images are normal. Or it is a
    split: its images without a label are.

    Raises:
        InvalidArgumentError: no ``--normal``.
        DataError: there are no such images, or fewer than ``--shots``.
    """
    if not settings.normal:
        raise InvalidArgumentError(
            f"--method {method} needs normal images: give --normal FOLDER, or --normal SPLIT for the images of a "
            "split that have no label."
        )
    found = _find(settings).require_clean(settings.tolerance, labels=False)
    if settings.shots > len(found):
        raise DataError(
            f"{found.path}: {len(found)} normal images, but --shots asks for {settings.shots}; give more images as "
            "--normal, or a smaller --shots."
        )
    return found.subset(settings.shots, settings.seed) if settings.shots else found


def _find(settings: MapSettings) -> Dataset:
    name = settings.normal
    places = [Path(name), *(Path(d, below, name) for d in settings.data if not is_url(d) for below in ("", "images"))]
    for place in places:
        if place.is_dir():
            return read_images(place)
    if is_url(name) or len(Path(name).parts) > 1:
        raise DataError(f"--normal {name}: there is no such folder.")
    splits, pools = set[str](), []
    for path in settings.data:
        try:
            dataset = read_dataset(path, format=settings.format)
        except DataError:
            dataset = read_images(path)  # no labels are recognised: a split's images are all without one
        splits |= set(dataset.splits)
        if name in (*dataset.splits, ALL):
            pools.append(dataset.split(name))
    if not pools:
        raise DataError(f"--normal {name}: is no folder, and no split of the data ({some(sorted(splits))}).")
    records = tuple(record for pool in pools for record in pool if not len(record.labels))
    if not records:
        raise DataError(f"--normal {name}: every image of that split has a label; give a folder of normal images.")
    return replace(pools[0], records=records, problems=())


def normal_settings(normal: Dataset, images: Dataset) -> dict[str, Any]:
    """What a store says of the normal images it was made with.

    Returns:
        Their number, their fingerprint, and the keys of those that are in the pool themselves, whose maps are
        therefore flattered.
    """
    places = {(record.path, record.offset): record.key for record in images}
    keys = [places.get((record.path, record.offset)) for record in normal]
    digest = fingerprint(describe_images(normal, [""] * len(normal)))
    return {"images": len(normal), "fingerprint": digest, "in_pool": sorted(key for key in keys if key is not None)}
