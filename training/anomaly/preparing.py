"""What a method learns of a pool before maps are made: once, of each data set by itself, and kept beside the store.

A pool may hold several data sets, which show different products: an image of one must not be judged by those of
another. So each data set is a group of its own with a file of what was learnt of it, and only one group's is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, TrainingError

from ..data.dataset import Dataset
from ..data.progress import progress
from .layout import STATE_FILE, describe_images, fingerprint, writing
from .reading import Tolerance, make_loader

if TYPE_CHECKING:
    from torch import Tensor

    from .method import AnomalyMethod

_WAIT = 0.2
"""Seconds between two looks for a file of another process."""


@dataclass(frozen=True, eq=False)
class Group:
    """Images that a method learns of together.

    Attributes:
        name: of the data set; empty where all images are one group.
        rows: indices of the images in the pool, ascending, int64.
    """

    name: str
    rows: NDArray[np.int64]


def group_images(sources: Sequence[str], *, apart: bool) -> list[Group]:
    """The groups of a pool: its data sets, ordered by name, where they are kept ``apart``; else all images as one."""
    names = sorted(set(sources))
    if not apart or len(names) == 1:
        return [Group("", np.arange(len(sources)))]
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([place[name] for name in sources])
    return [Group(name, np.flatnonzero(numbers == number)) for number, name in enumerate(names)]


def mean_aspect(images: Dataset, rows: NDArray[np.int64]) -> float:
    """Height / width of some images, their geometric mean; 1 where no size is known."""
    known = [images[row] for row in rows.tolist()]
    ratios = [record.height / record.width for record in known if record.height > 0 and record.width > 0]
    return float(np.exp(np.log(ratios).mean())) if ratios else 1.0


class Preparation:
    """Lets a method look at each group once, in one of several processes.

    Args:
        method: on its device.
        groups: of ``images``.
        aspects: height / width of the images of each group, on average.
        images: what the method looks at.
        folder: of the store.
        described: all that defines the result.
        processes: how many there are.
        rank: number of this one.
        batch: images at a time.
        workers: threads that read them.
        tolerance: share of the images that may be unreadable, 0-1.
        computing: what the method computes in: precision, and errors when memory ends.
    """

    def __init__(
        self,
        method: AnomalyMethod,
        groups: Sequence[Group],
        aspects: Sequence[float],
        images: Dataset,
        folder: Path,
        described: dict[str, Any],
        *,
        processes: int,
        rank: int,
        batch: int,
        workers: int,
        tolerance: float,
        computing: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.method, self.groups, self.images, self.folder = method, groups, images, folder
        self._aspects = aspects
        self._described, self._processes, self._rank = described, processes, rank
        self._batch, self._workers, self._tolerance, self._computing = batch, workers, tolerance, computing
        self._held = -1
        """The group that the method knows."""
        self._digests: dict[int, str] = {}

    def learn(self) -> None:
        """Learns of this process's groups what is not known from an earlier run.

        Raises:
            DataError: a method cannot do with the images of a data set.
            TrainingError: more images are unreadable than tolerated, or disk or memory ends.
        """
        if self.method.prepares_on == "nothing":
            return
        tolerance = Tolerance(self.images, self._tolerance)
        for place in range(self._rank, len(self.groups), self._processes):
            if _digest_of(self._file(place)) != self._digest(place):
                self.fit(place)
                load = make_loader(self.images, self.method.preprocess, self._batch, self._workers, tolerance)
                self._learn(place, load)

    def fit(self, place: int) -> None:
        """Gives the method's input the proportions of a group's images."""
        self.method.fit(self._aspects[place])

    def load(self, place: int) -> tuple[str, ...]:
        """Gives the method the shape and what was learnt of a group; waits for the process that learns it.

        Returns:
            What the method says of it.
        """
        self.fit(place)
        if self._held != place and self.method.prepares_on != "nothing":
            from safetensors.torch import load_file

            file, digest = self._file(place), self._digest(place)
            if place % self._processes != self._rank:
                wait_for(lambda: _digest_of(file) == digest)
            self.method.load_state(load_file(file))
            self._held = place
        name = self.groups[place].name
        return tuple(f"{name}: {note}" if name else note for note in self.method.notes())

    def _learn(self, place: int, load: Callable[[Sequence[int]], Iterator[Tensor]]) -> None:
        from safetensors.torch import save_file

        group, file = self.groups[place], self._file(place)
        text = f"looking at {group.name or 'the images'} ({self.method.name})"

        def loader(indices: Sequence[int]) -> Iterator[Tensor]:
            batches = load([int(group.rows[index]) for index in indices])
            return progress(batches, -(-len(indices) // self._batch), text) if self._rank == 0 else batches

        try:
            with self._computing():
                self.method.prepare(loader, self._images_of(place))
        except DataError as error:
            if not group.name:
                raise
            raise DataError(f"Data set {group.name}: {error}") from None
        self._held = place
        state = {name: value.detach().cpu().contiguous() for name, value in self.method.state().items()}
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with writing(file):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(state, temporary, {"digest": self._digest(place)})
            temporary.replace(file)

    def _file(self, place: int) -> Path:
        if len(self.groups) == 1:
            return self.folder / STATE_FILE
        name = Path(STATE_FILE)
        return self.folder / f"{name.stem}-{place}{name.suffix}"

    def _digest(self, place: int) -> str:
        """What the file of a group belongs to: these settings, and these images."""
        if place not in self._digests:
            name, images = self.groups[place].name, self._images_of(place)
            # What was learnt has the shape of the images that get maps, which are not always those looked at.
            aspect = round(self._aspects[place], 6)
            known = fingerprint(describe_images(images, [""] * len(images)))
            of = [self._described, *([name] if name else []), aspect, known]
            self._digests[place] = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
        return self._digests[place]

    def _images_of(self, place: int) -> Dataset:
        records = tuple(self.images[row] for row in self.groups[place].rows.tolist())
        return self.images if len(self.groups) == 1 else replace(self.images, records=records)


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits for what another process does; when that fails, whoever started the processes ends this one too."""
    while not condition():
        time.sleep(_WAIT)


def _digest_of(file: Path) -> str:
    """What a file of learnt tensors belongs to; empty where there is none."""
    from safetensors import safe_open

    if not file.is_file():
        return ""
    try:
        with safe_open(file, "pt") as opened:
            return str((opened.metadata() or {}).get("digest", ""))
    except Exception as error:  # safetensors has errors of its own
        raise TrainingError(f"{file}: is damaged ({error}); remove it and run the same command again.") from None
