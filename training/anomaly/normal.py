"""The normal images that a method remembers: found by folder or split, and drawn by a seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError, InvalidArgumentError

from ..data.dataset import ALL, Dataset
from ..data.problems import some
from ..data.recognise import read_dataset, recognise
from ..data.shards import is_url
from ..data.unlabelled import read_images
from .layout import describe_images, fingerprint
from .settings import MapSettings

SPLIT = "split:"
"""What ``--normal`` begins with where it must mean a split."""


def normal_images(settings: MapSettings, method: str) -> Dataset:
    """The images that ``--normal`` and ``--shots`` name.

    ``--normal`` is a folder, also one within the data or their ``images``: all of its images are normal. Or it is a
    split: its images without a label are. Of a name without ``/`` that is both, a split of labelled data counts rather
    than a folder within the data, and neither where the working directory has such a folder. ``split:NAME`` is a split
    and nothing else.

    Raises:
        InvalidArgumentError: no ``--normal``, or a name that is a folder here and a split as well.
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
    if name.startswith(SPLIT):
        return _without_labels(name.removeprefix(SPLIT), _read_pools(settings), name)
    here = Path(name)
    within = [Path(path, below, name) for path in settings.data if not is_url(path) for below in ("", "images")]
    if "/" in name or os.sep in name:
        for folder in (here, *within):
            if folder.is_dir():
                return read_images(folder)
        raise DataError(f"--normal {name}: there is no such folder.")
    pools = _read_pools(settings)
    having = [pool for pool in pools if name in (*pool.splits, ALL)]
    if here.is_dir() and having:
        raise InvalidArgumentError(
            f"--normal {name}: is a folder of the working directory and a split of {having[0].path}; give --normal "
            f"./{name} for the folder, or --normal {SPLIT}{name} for the images of the split that have no label."
        )
    labelled = any(not pool.unlabelled for pool in having)
    for folder in (here, *(() if labelled else within)):
        if folder.is_dir():
            return read_images(folder)
    return _without_labels(name, pools, name)


def _read_pools(settings: MapSettings) -> list[Dataset]:
    """The data with their labels; where none are recognised, as images without."""
    pools = []
    for path in settings.data:
        try:
            found = settings.format if settings.format != "auto" else recognise(path)
        except DataError:
            found = "images"
        pools.append(read_images(path) if found == "images" else read_dataset(path, format=settings.format))
    return pools


def _without_labels(split: str, pools: Sequence[Dataset], given: str) -> Dataset:
    """The images of a split that have no label, and have lost none either."""
    found = [pool.split(split) for pool in pools if split in (*pool.splits, ALL)]
    if not found:
        known = some(sorted({name for pool in pools for name in pool.splits}))
        what = "is no split" if given.startswith(SPLIT) else "is no folder, and no split"
        raise DataError(f"--normal {given}: {what} of the data ({known}).")
    lost = {(pool.path, problem.key) for pool in found for problem in pool.errors}
    records = tuple(r for pool in found for r in pool if not len(r.labels) and (pool.path, r.key) not in lost)
    if not records:
        raise DataError(f"--normal {given}: every image of that split has a label; give a folder of normal images.")
    return replace(found[0], records=records, problems=())


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
