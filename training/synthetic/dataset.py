"""A folder of drawn samples with COCO annotations."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from operator import index as as_index
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agssp_zoo.errors import DataError, InvalidArgumentError

from .noise import BoolArray
from .sample import Sample, check_arguments, draw_sample

SPLITS: Mapping[str, float] = {"train": 0.8, "val": 0.2}


def write_dataset(
    out: str | os.PathLike[str],
    n: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    splits: Mapping[str, float] | None = None,
    style: str = "metal",
    surface: str | None = None,
    defect_rate: float = 0.9,
) -> Path:
    """Write ``images/000000.png``, ... and, for every split, ``annotations/instances_<split>.json`` in COCO's format.

    The masks stand in the annotations as run lengths (``segmentation``), pixel for pixel; ``bbox`` is tight around
    them. Pictures of style ``neu`` are written with one channel. The folder is built under another name and renamed
    when whole.

    Args:
        out: the folder to make; it must not exist, or be empty.
        n: number of samples; they are those that :func:`.draw_sample` draws for index 0 to n - 1.
        seed: number of the set, 0 or more.
        size: height and width in pixels.
        splits: name and fraction of each split, which sum to 1 (default: train 0.8, val 0.2); the first samples go
            to the first split, and so on. Every split gets at least one sample.
        style: ``metal`` or ``neu``.
        surface: the only surface to draw; all of them if None.
        defect_rate: the part of the samples that get defects, 0 to 1; the rest are normal, without annotations.

    Returns:
        The folder.

    Raises:
        InvalidArgumentError: a number out of range, an unknown name, or an ``out`` that holds something already.
        DataError: the folder cannot be written.
    """
    check_arguments(0, seed, size, surface, None, defect_rate, style)
    counts = _split_counts(n, splits or SPLITS)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidArgumentError(f"{out} exists already; give a new folder, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be made ({error.strerror or error}); give another folder.") from error
    try:
        building.chmod(0o777 & ~_umask())
        (building / "images").mkdir()
        (building / "annotations").mkdir()
        progress = _Progress(sum(counts.values()))
        start = 0
        for split, count in counts.items():
            document = _empty_document(split, seed, style)
            for index in range(start, start + count):
                sample = draw_sample(index, seed=seed, size=size, style=style, surface=surface, defect_rate=defect_rate)
                _add(document, index, sample, building / "images", gray=style == "neu")
                progress.step()
            path = building / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
            start += count
        if out.exists():
            out.rmdir()
        building.replace(out)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}); make room, or give another folder."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def _split_counts(n: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Samples of each split, by largest remainders, at least one each."""
    try:
        n = as_index(n)
        fractions = {str(name): float(fraction) for name, fraction in splits.items()}
    except (TypeError, ValueError, AttributeError):
        raise InvalidArgumentError(
            f"n must be an integer and splits a mapping of name to fraction, not {n!r} and {splits!r}."
        ) from None
    if any(not f > 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InvalidArgumentError(f"splits must be positive fractions that sum to 1, not {dict(splits)!r}.")
    for name in fractions:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise InvalidArgumentError(f"a split's name is made of letters, digits, '-' and '_', not {name!r}.")
    if n < len(fractions):
        raise InvalidArgumentError(f"n must be at least {len(fractions)}, one sample for each split, not {n}.")
    counts = {name: max(1, int(n * f)) for name, f in fractions.items()}
    while (missing := n - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        open_names = [name for name in counts if counts[name] + step >= 1]
        counts[max(open_names, key=lambda name: step * (n * fractions[name] - counts[name]))] += step
    return counts


def _empty_document(split: str, seed: int, style: str) -> dict[str, Any]:
    info = {"description": "drawn metal surfaces", "split": split, "seed": int(seed), "style": style}
    return {"info": info, "images": [], "annotations": [], "categories": []}


def _add(document: dict[str, Any], index: int, sample: Sample, folder: Path, *, gray: bool) -> None:
    """Save one image and append its entries."""
    if not document["categories"]:
        document["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(sample.class_names)]
    name = f"{index:06d}.png"
    # Grain does not compress; more effort than 1 costs ten times the time for a few per cent.
    image = Image.fromarray(np.ascontiguousarray(sample.image[..., 0]) if gray else sample.image)
    image.save(folder / name, compress_level=1)
    height, width = sample.image.shape[:2]
    document["images"].append(
        {"id": index, "file_name": name, "width": width, "height": height, "surface": sample.surface}
    )
    for box, label, mask in zip(sample.boxes.tolist(), sample.labels.tolist(), sample.masks, strict=True):
        x1, y1, x2, y2 = box
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": index,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(np.count_nonzero(mask)),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
            }
        )


def run_lengths(mask: BoolArray) -> list[int]:
    """A mask (h, w) as COCO's uncompressed run lengths: column by column, beginning with the zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat[0] else runs


def _umask() -> int:
    """The process's umask, which :func:`tempfile.mkdtemp` does not heed."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Progress:
    """A line on a terminal that counts samples; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._shown = total, 0, time.monotonic()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self._shown > 0.5 or self._done == self._total):
            self._shown = now
            end = "\n" if self._done == self._total else ""
            sys.stderr.write(f"\rdrawing {self._done}/{self._total}{end}")
            sys.stderr.flush()
