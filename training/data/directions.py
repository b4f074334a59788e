"""Which way the boxes of every class lie, and classes that lie another way in one split than in another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .records import Record

LONG = 2.0
"""A box whose height is more than this times its width is upright, the other way round lying."""
ENOUGH = 20
"""Classes with fewer boxes than this in one of two splits are not compared."""
SHIFT = 0.4
"""Classes whose share of lying or of upright boxes differs by more than this between two splits are reported."""


@dataclass(frozen=True)
class Directions:
    """How the boxes of a class lie.

    Attributes:
        boxes: all of them.
        upright: those more than :data:`LONG` times as high as wide.
        lying: those more than :data:`LONG` times as wide as high.
    """

    boxes: int
    upright: int
    lying: int

    def __str__(self) -> str:
        return f"{self.upright / self.boxes:.0%} upright, {self.lying / self.boxes:.0%} lying of {self.boxes} boxes"


@dataclass(frozen=True)
class Turned:
    """A class whose boxes lie another way in one split than in the one to train on.

    Attributes:
        name: of the class.
        split: the other split.
        train: in the split ``train``.
        other: in the other split.
    """

    name: str
    split: str
    train: Directions
    other: Directions

    def __str__(self) -> str:
        return f"{self.name!r} is {self.train} to train on, {self.other} in {self.split}"


def count_directions(records: Iterable[Record], classes: int) -> list[Directions]:
    """How the boxes of every class lie."""
    records = list(records)
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)])
    labels = np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    counts = [
        np.bincount(labels[chosen], minlength=classes).tolist()
        for chosen in (np.full(len(labels), True), height > LONG * width, width > LONG * height)
    ]
    return [Directions(*found) for found in zip(*counts, strict=True)]


def turned_classes(train: Sequence[Record], other: Sequence[Record], names: Sequence[str], split: str) -> list[Turned]:
    """The classes whose boxes lie another way in ``other`` than in ``train``: what a network has hardly ever seen.

    Args:
        train: the images to train on.
        other: the images of the other split.
        names: of the classes.
        split: the other split's name.
    """
    found = []
    pairs = (count_directions(records, len(names)) for records in (train, other))
    for name, one, two in zip(names, *pairs, strict=True):
        if min(one.boxes, two.boxes) < ENOUGH:
            continue
        upright, lying = (
            abs(getattr(one, key) / one.boxes - getattr(two, key) / two.boxes) for key in ("upright", "lying")
        )
        if max(upright, lying) > SHIFT:
            found.append(Turned(name, split, one, two))
    return found
