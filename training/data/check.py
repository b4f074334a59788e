"""Looking a data set over before training: every image decoded, every class counted, splits compared."""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import AgsspZooError

from .dataset import Dataset
from .directions import turned_classes
from .input_sizes import compare_input_sizes
from .problems import Problem, Problems
from .progress import progress
from .records import Record
from .similar import Look, Pair, look_at, near_duplicates, same_images
from .text import readable

SIZE_EDGES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
"""Edges of the histogram of box sizes (square root of the area), in pixels; the last bin is open."""

RARE = 10
"""A class with fewer boxes than this to train on is reported."""

MOST_WITHIN = 30_000
"""Larger data sets without splits are not searched for near duplicates, which would take minutes."""

DARK = 64
"""16-bit images whose gray levels of 8 bits, the high bytes, all lie below this use 14 bits at most."""

SAME_BOX = 0.9
"""Two boxes of an image whose IoU is above this are reported."""


@dataclass(frozen=True)
class Duplicate:
    """Two images, by key, that are nearly (``same``: exactly) equal: of different splits, where there are several."""

    first: str
    second: str
    splits: tuple[str, str]
    correlation: float
    same: bool


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_dataset` found.

    Attributes:
        dataset: what was looked at.
        problems: those met while reading, then those met while looking.
        boxes: split -> int64 (classes,), number of boxes.
        images: split -> int64 (classes + 1,), number of images that show a class; last, those that show none.
        sizes: int64 (len(SIZE_EDGES),), the histogram of box sizes.
        duplicates: pairs of near duplicates across splits (within, when there is only one), the most similar first.
        decoded: whether the images were decoded.
    """

    dataset: Dataset
    problems: tuple[Problem, ...]
    boxes: dict[str, NDArray[np.int64]]
    images: dict[str, NDArray[np.int64]]
    sizes: NDArray[np.int64]
    duplicates: tuple[Duplicate, ...]
    decoded: bool

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems by which images or labels are lost."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """The plain dict that JSON holds."""
        names = self.dataset.class_names
        sides = [(r.width, r.height) for r in self.dataset.records]
        return {
            "path": readable(self.dataset.path),
            "format": self.dataset.format,
            "fingerprint": self.dataset.fingerprint(),
            "classes": list(names),
            "splits": {
                split: {
                    "images": count,
                    "images_without_boxes": int(self.images[split][-1]),
                    "boxes": int(self.boxes[split].sum()),
                    "boxes_per_class": dict(zip(names, self.boxes[split].tolist(), strict=True)),
                    "images_per_class": dict(zip(names, self.images[split][:-1].tolist(), strict=True)),
                }
                for split, count in self.dataset.splits.items()
            },
            "crowd_boxes": int(sum(r.crowd.sum() for r in self.dataset.records)),
            "difficult_boxes": int(sum(r.difficult.sum() for r in self.dataset.records)),
            "image_sizes": [[w, h, count] for (w, h), count in Counter(sides).most_common()],
            "box_sizes": [
                {"from": low, "to": high, "boxes": count}
                for low, high, count in zip(SIZE_EDGES, [*SIZE_EDGES[1:], None], self.sizes.tolist(), strict=True)
            ],
            "input_sizes": [asdict(entry) for entry in compare_input_sizes(self.dataset.records)],
            "decoded": self.decoded,
            "errors": len(self.errors),
            "warnings": len(self.problems) - len(self.errors),
            "problems": [problem.to_dict() for problem in self.problems],
            "duplicates": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "splits": list(pair.splits),
                    "correlation": round(pair.correlation, 4),
                    "same": pair.same,
                }
                for pair in self.duplicates
            ],
        }


def check_dataset(dataset: Dataset, *, decode: bool = True) -> CheckReport:
    """Looks a data set over.

    Args:
        dataset: what :func:`read_dataset` gave.
        decode: decode every image, which finds corrupt ones and duplicates; else only labels are looked at.
    """
    problems = Problems()
    looks = _look_at_all(dataset, problems) if decode else {}
    duplicates = _compare(dataset, looks, problems)
    for record in dataset.records:
        _overlaps(record, dataset.class_names, problems)
    boxes, images = _count(dataset)
    _judge_counts(dataset, boxes, problems)
    _judge_directions(dataset, problems)
    areas = [np.prod(r.boxes[:, 2:] - r.boxes[:, :2], axis=1) for r in dataset.records]
    sides = np.sqrt(np.concatenate(areas)) if areas else np.zeros(0)
    sizes = np.histogram(sides, bins=[*SIZE_EDGES, np.inf])[0].astype(np.int64)
    return CheckReport(dataset, (*dataset.problems, *problems), boxes, images, sizes, duplicates, decode)


def _look_at_all(dataset: Dataset, problems: Problems) -> dict[int, Look]:
    """Decodes every image; those that can be, by place."""
    records = dataset.records

    dark: list[int] = []

    def look(record: Record) -> Look | str:
        try:
            image = record.load_image()
            if image.max() < DARK and _has_16_bits(record):
                dark.append(int(image.max()))
            return look_at(image)
        except AgsspZooError as error:
            return str(error)

    looks: dict[int, Look] = {}
    with ThreadPoolExecutor(4) as pool:
        for place, found in enumerate(progress(_ahead(pool, look, records), len(records), "decoding images")):
            record = records[place]
            if isinstance(found, str):
                problems.error("corrupt-image", record.path, found, key=record.key)
                continue
            looks[place] = found
            if not found.thumb.any():
                problems.warning("flat-image", record.path, "hardly differs from one even gray.", key=record.key)
    if len(dark) > len(records) / 2:
        bits = 8 + max(dark).bit_length()
        problems.warning(
            "few-gray-levels",
            dataset.path,
            f"{len(dark)} of {len(records)} images have 16 bits, of which they use {bits}: only {max(dark) + 1} of 256 "
            f"gray levels are left, as the high byte is read. Multiply their values by {1 << 16 - bits} first.",
        )
    return looks


def _has_16_bits(record: Record) -> bool:
    """Whether an image is stored with 16 bits a value, which reading does not tell."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(record.read_bytes())) as image:
            modes = [image.mode, *(tile[3] for tile in image.tile)]
            return any("16" in str(mode) for mode in modes) or image.mode == "I"
    except Exception:  # it has just been read; whatever Pillow minds now, it is no 16-bit image that can be told
        return False


def _ahead(pool: ThreadPoolExecutor, work: Any, items: tuple[Record, ...]) -> Iterable[Any]:
    """``pool.map`` over slices, so that not every image of a large set is queued at once."""
    for start in range(0, len(items), 256):
        yield from pool.map(work, items[start : start + 256])


def _compare(dataset: Dataset, looks: dict[int, Look], problems: Problems) -> tuple[Duplicate, ...]:
    """Duplicates, across splits and within."""
    records = [dataset.records[place] for place in looks]
    seen, splits = list(looks.values()), [record.split for record in records]
    for first, second in same_images(seen, splits):
        one, other = records[first], records[second]
        alike = one.boxes.shape == other.boxes.shape and np.allclose(one.boxes, other.boxes)
        labels = "" if alike and (one.labels == other.labels).all() else ", but their labels differ"
        message = f"is the same image as {one.key!r}, in the same split{labels}."
        problems.warning("same-image", other.path, message, key=other.key)
    if len(set(splits)) < 2 and len(records) > MOST_WITHIN:
        return ()
    pairs = near_duplicates(seen, splits)
    if len(set(splits)) < 2:
        _warn_of_leak(dataset, records, pairs, problems)
        return tuple(_duplicate(records, pair) for pair in pairs)
    for pair in pairs:
        one, other = records[pair.first], records[pair.second]
        how = "is the same image as" if pair.same else f"looks much (correlation {pair.correlation:.2f}) like"
        message = f"of {other.split} {how} {one.key!r} of {one.split}; scores on {other.split} may flatter."
        problems.warning("near-duplicate", other.path, message, key=other.key)
    return tuple(_duplicate(records, pair) for pair in pairs)


def _warn_of_leak(dataset: Dataset, records: list[Record], pairs: list[Pair], problems: Problems) -> None:
    """Says of a data set without splits that a random one would put pictures of one thing on both sides."""
    if pairs:
        images = {place for pair in pairs for place in (pair.first, pair.second)}
        one, other = records[pairs[0].first].key, records[pairs[0].second].key
        problems.warning(
            "near-duplicates-inside",
            dataset.path,
            f"{len(images)} of {len(records)} images look much like another one, e.g. {one!r} like {other!r}; a random "
            "split would put some on both sides, and scores would flatter: list val.txt by part or by day instead.",
        )


def _duplicate(records: list[Record], pair: Pair) -> Duplicate:
    one, other = records[pair.first], records[pair.second]
    return Duplicate(one.key, other.key, (one.split, other.split), pair.correlation, pair.same)


def _overlaps(record: Record, names: tuple[str, ...], problems: Problems) -> None:
    """Boxes of one image that are almost the same."""
    boxes = record.boxes
    if len(boxes) < 2:
        return
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    iou = np.triu(shared / (area[:, None] + area[None] - shared), 1)
    for one, other in zip(*np.nonzero(iou > SAME_BOX), strict=True):
        a, b = names[record.labels[one]], names[record.labels[other]]
        code, what = ("box-twice", f"of class {a!r}") if a == b else ("box-of-two-classes", f"of {a!r} and {b!r}")
        place = ",".join(f"{value:.6g}" for value in boxes[one])
        message = f"two boxes {what} overlap by {iou[one, other]:.0%} (IoU) at {place}."
        problems.warning(code, record.path, message, key=record.key)


def _count(dataset: Dataset) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """Boxes and images of each class, by split."""
    classes = len(dataset.class_names)
    boxes = {split: np.zeros(classes, np.int64) for split in dataset.splits}
    images = {split: np.zeros(classes + 1, np.int64) for split in dataset.splits}
    for record in dataset.records:
        counts = np.bincount(record.labels, minlength=classes)
        boxes[record.split] += counts
        images[record.split][:-1] += counts > 0
        images[record.split][-1] += not len(record.labels)
    return boxes, images


def _judge_counts(dataset: Dataset, boxes: dict[str, NDArray[np.int64]], problems: Problems) -> None:
    """Classes that cannot be learnt, or not measured, and splits that are missing."""
    total = sum(boxes.values(), np.zeros(len(dataset.class_names), np.int64))
    train = boxes.get("train")
    for label, name in enumerate(dataset.class_names):
        if not total[label]:
            problems.warning("class-without-boxes", dataset.path, f"class {name!r} has no box.")
            continue
        if train is not None and train[label] < RARE:
            message = f"class {name!r} has {train[label]} boxes to train on; expect little of it."
            problems.warning("rare-class", dataset.path, message)
        for split in ("val", "test"):
            if split in boxes and not boxes[split][label]:
                problems.warning("class-not-in-split", dataset.path, f"class {name!r} has no box in {split}.")
    if "val" not in boxes and "train" in boxes and not dataset.unlabelled:
        message = "there is no split val; list its images in val.txt, or use dataset.random_split(0.2, seed=0)."
        problems.warning("no-val-split", dataset.path, message)


def _judge_directions(dataset: Dataset, problems: Problems) -> None:
    """Classes that stand upright where the network learns and lie where it is scored, or the other way round."""
    if "train" not in dataset.splits:
        return
    train = dataset.split("train").records
    for split in dataset.splits:
        if split != "train":
            for turned in turned_classes(train, dataset.split(split).records, dataset.class_names, split):
                message = (
                    f"class {turned}: it is scored on what it has hardly learned. Split the images otherwise, or try "
                    f"`finetune --quarter-turn 0.5 --turn-classes {shlex.quote(turned.name)}`."
                )
                problems.warning("class-turned", dataset.path, message)
