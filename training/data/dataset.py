"""A data set: records, class names and problems, and the few things one does with them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, InvalidArgumentError

from .problems import Problem, some
from .records import Record
from .stratify import stratified_choice

ALL = "all"
"""The name that stands for every split."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, as :func:`read_dataset` reads them.

    Attributes:
        class_names: names of the classes in label order.
        records: the images, in a stable order (by split and key).
        problems: what was wrong, as found while reading; :meth:`require_clean` judges them.
        path: the folder, file or URL it was read from.
        format: ``"coco"``, ``"yolo"``, ``"voc"``, ``"labelme"``, ``"masks"``, ``"images"`` or ``"shards"``.
    """

    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    path: str = ""
    format: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        return f"Dataset({self.path!r}, {self.format}, {len(self.class_names)} classes, images: {splits or 'none'})"

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split; ``train``, ``val`` and ``test`` first."""
        counts: dict[str, int] = {}
        for record in self.records:
            counts[record.split] = counts.get(record.split, 0) + 1
        usual = {"train": 0, "val": 1, "test": 2}
        return {name: counts[name] for name in sorted(counts, key=lambda name: (usual.get(name, 3), name))}

    @property
    def unlabelled(self) -> bool:
        """Whether it was read, or packed, as images without labels."""
        return not self.class_names and self.format in ("images", "shards")

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems by which images or labels were lost."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Keys of the image files that could not be read, and are therefore no records."""
        return tuple(problem.key for problem in self.errors if problem.code == "corrupt-image")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that were repaired, or are unusual."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def split(self, name: str) -> Dataset:
        """The images of one split, ``"all"`` for every image.

        Problems that are about another split, or an image of one, are left out.

        Raises:
            DataError: there is no such split; the message says how to make one.
        """
        if name == ALL:
            return self
        if name not in self.splits:
            raise DataError(self._no_split(name))
        elsewhere = {record.key for record in self.records if record.split != name}
        return replace(
            self,
            records=tuple(record for record in self.records if record.split == name),
            problems=tuple(p for p in self.problems if (p.split == name if p.split else p.key not in elsewhere)),
        )

    def _no_split(self, name: str) -> str:
        found = ", ".join(f"{split} ({count} images)" for split, count in self.splits.items()) or "no images"
        how = f"list their names in {name}.txt in the data folder, or put them in a folder {name}/"
        if self.format == "shards":
            how = f"pack a data set that has one: {how}"
        if name == "val":
            how += ", or split at random: dataset.random_split(0.2, seed=0)"
        return f"{self.path or 'the data set'} has no split {name!r}, only {found}. To make one, {how}."

    def random_split(self, fraction: float = 0.2, seed: int = 0) -> Dataset:
        """Divides the images into ``train`` and ``val`` at random, anew; images of ``test`` stay there.

        Every class has about the same share in both where that is possible (iterative stratification over the
        classes of an image, see :mod:`.stratify`). The same data, fraction and seed give the same split, whatever the
        order of the files.

        Args:
            fraction: share of the images that goes to ``val``, above 0 and below 1; kept within a few percent, since
                the shares of the classes come first.
            seed: of the choice.

        Returns:
            The same data set with other splits.

        Raises:
            InvalidArgumentError: fraction out of range.
            DataError: fewer than two images to divide.
        """
        if not 0.0 < fraction < 1.0:
            raise InvalidArgumentError(f"random_split: fraction is {fraction}; it must lie between 0 and 1.")
        places = [index for index, record in enumerate(self.records) if record.split != "test"]
        if len(places) < 2:
            raise DataError(f"{self.path}: {len(places)} images cannot be divided into train and val.")
        places.sort(key=lambda index: self.records[index].key)
        groups = [np.unique(self.records[index].labels) for index in places]
        chosen = stratified_choice(groups, fraction, seed)
        names = {index: "val" if is_val else "train" for index, is_val in zip(places, chosen, strict=True)}
        # Of what was lost with another split nobody can say which of the new ones it would be in.
        problems = tuple(p if p.split == "test" else replace(p, split="") for p in self.problems)
        divided = self._with_splits(lambda index, record: names.get(index, record.split))
        return replace(divided, problems=problems)

    def with_val(self, fraction: float, seed: int = 0) -> Dataset:
        """The data set itself where it has a split ``val``, else as :meth:`random_split` divides it.

        What ``--val-fraction`` and ``--seed`` mean, in training and in measuring: the same images.

        Raises:
            InvalidArgumentError: fraction out of range, also where it is not needed.
            DataError: fewer than two images to divide.
        """
        if not 0.0 < fraction < 1.0:
            raise InvalidArgumentError(f"val_fraction is {fraction}; it must lie between 0 and 1.")
        return self if "val" in self.splits else self.random_split(fraction, seed)

    def _with_splits(self, name_of: Callable[[int, Record], str]) -> Dataset:
        records = [replace(record, split=name_of(index, record)) for index, record in enumerate(self.records)]
        return replace(self, records=sort_records(records))

    def subset(self, n: int, seed: int = 0, *, split: str | None = None) -> Dataset:
        """Draws n images at random, without replacement, in the order of the data set.

        Subsets of one seed are nested: the images of ``subset(50)`` are among those of ``subset(100)``.

        Args:
            n: how many images, from 1.
            seed: of the choice.
            split: thin out this split only and keep the others whole; ``None`` draws from all images.

        Raises:
            InvalidArgumentError: n is below 1 or above the number of images.
            DataError: there is no such split.
        """
        if split is not None and split not in self.splits:
            raise DataError(self._no_split(split))
        places = [index for index, record in enumerate(self.records) if split is None or record.split == split]
        if not 1 <= n <= len(places):
            raise InvalidArgumentError(f"subset: n is {n}; there are {len(places)} images to draw from.")
        places.sort(key=lambda index: self.records[index].key)
        order = np.random.default_rng(seed).permutation(len(places))
        left_out = {places[index] for index in order[n:]}
        return replace(self, records=tuple(r for index, r in enumerate(self.records) if index not in left_out))

    def class_counts(self) -> NDArray[np.int64]:
        """Number of boxes of each class, int64 (classes,)."""
        counts = np.zeros(len(self.class_names), np.int64)
        for record in self.records:
            np.add.at(counts, record.labels, 1)
        return counts

    def fingerprint(self) -> str:
        """A sha256 over class names, keys, splits, image sizes and labels, in hex; pixels do not enter.

        It does not depend on where the data lie, on the format they are read from, or on the order of files and boxes.
        """
        digest = hashlib.sha256(b"agssp-zoo data 1\n")
        for name in self.class_names:
            digest.update(_text(name))
        for record in sorted(self.records, key=lambda record: record.key):
            digest.update(_text(record.key) + _text(record.split))
            digest.update(struct.pack("<3q", record.width, record.height, len(record.labels)))
            order = np.lexsort((*record.boxes.T[::-1], record.labels))
            digest.update(record.boxes[order].astype("<f4").tobytes() + record.labels[order].astype("<i8").tobytes())
            digest.update(record.crowd[order].astype("u1").tobytes() + record.difficult[order].astype("u1").tobytes())
        return digest.hexdigest()

    def require_clean(self, tolerance: float = 0.0, *, labels: bool = True, whole: int = 0) -> Dataset:
        """Refuses a data set that lost images or labels, instead of going on without them silently.

        Args:
            tolerance: accepted number of errors as a share of the number of images, 0-1. Warnings never count. Without
                labels the images that cannot be read are among that number: it is that of all files.
            labels: there must be at least one label.
            whole: of one split, the number of images of the data set that it was taken from: errors that may be about
                any split are judged against these.

        Returns:
            The data set itself.

        Raises:
            InvalidArgumentError: tolerance out of range.
            DataError: more errors than that, no image, or not one label where ``labels`` asks for them.
        """
        if not 0.0 <= tolerance <= 1.0:
            raise InvalidArgumentError(f"require_clean: tolerance is {tolerance}; it must lie in 0-1.")
        errors = self.errors
        total = len(self.records) + (0 if labels else len(self.unreadable))
        keys = {record.key for record in self.records}
        own = [problem for problem in errors if problem.split or problem.key in keys]
        if len(own) <= tolerance * total:
            total = max(total, whole)
        if len(errors) > tolerance * total:
            listed = "\n  ".join(str(problem) for problem in errors[:5])
            more = f"\n  ... and {len(errors) - 5} more" if len(errors) > 5 else ""
            raise DataError(
                f"{self.path}: {len(errors)} errors in {total} images, more than the tolerance of "
                f"{tolerance:.2%}:\n  {listed}{more}\nCorrect them (`agssp-zoo check-data` lists them all), or raise "
                "the tolerance to go on without these images and labels."
            )
        if not self.records:
            raise DataError(f"{self.path}: holds no images.")
        if labels and not any(len(record.labels) for record in self.records):
            kind = f" as {self.format}" if self.format else ""
            raise DataError(
                f"{self.path}: not one of the {len(self.records)} images has a label (read{kind}; splits: "
                f"{some(list(self.splits))}). Check that the label files lie where `format=` expects them."
            )
        return self


def sort_records(records: list[Record]) -> tuple[Record, ...]:
    """Records in the order of a data set: train, val, test, others; by key within each."""
    usual = {"train": 0, "val": 1, "test": 2}
    return tuple(sorted(records, key=lambda record: (usual.get(record.split, 3), record.split, record.key)))


def _text(value: str) -> bytes:
    """A text with its length before it, so that neighbours cannot run into each other."""
    encoded = value.encode()
    return struct.pack("<q", len(encoded)) + encoded
