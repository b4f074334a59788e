"""From records to batches: images kept in memory, samples drawn by worker processes, order fixed by the seed.

Position k of epoch e is the k-th place of that epoch's order, counted over the whole (global) batch sequence. Its
augmentation is drawn from (seed, e, k), so neither the number of workers nor that of processes changes a sample.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agssp_zoo.errors import AgsspZooError, TrainingError

from .augment import Sample, augment
from .data.records import Record
from .losses import Targets
from .settings import TrainSettings

Draw = tuple[int, int]
"""Epoch and position: what names a training sample."""
TRIES = 10
"""After so many unreadable images for one sample, the sample is empty."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Images and targets of one step.

    Attributes:
        images: (B, S, S, 3) uint8 RGB.
        targets: the labelled boxes in pixels of the images.
        keys: the records that the samples started from.
        problems: one line for every image that could not be read.
    """

    images: Tensor
    targets: Targets
    keys: tuple[str, ...]
    problems: tuple[str, ...]


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of the images in an epoch: a permutation of ``range(count)``."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class ImageStore:
    """Training images at the training size (longer side ``size``), decoded once where memory allows.

    Args:
        records: the images and their labels. Crowd boxes are left out.
        size: longer side in pixels; smaller images are enlarged.
        cache_bytes: images are kept up to this many bytes; 0 reads every image when it is needed.

    Attributes:
        problems: one line for every image that could not be read while memory was filled; those that do not fit into
            memory are known only when they are drawn.
    """

    def __init__(self, records: Sequence[Record], size: int, cache_bytes: int) -> None:
        self.records = records
        self.size = size
        self._kept: list[Sample | None] = [None] * len(records)
        self.problems = self._fill(cache_bytes)

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int) -> Sample:
        """The image of a record at the training size, with its boxes.

        Raises:
            ImageError: it cannot be read.
        """
        return self._kept[index] or self._read(index)

    def _read(self, index: int) -> Sample:
        record = self.records[index]
        image = record.load_image()
        height, width = image.shape[:2]
        factor = self.size / max(height, width)
        if factor != 1:
            shape = (max(1, round(width * factor)), max(1, round(height * factor)))
            image = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
        scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
        keep = ~np.asarray(record.crowd, bool)
        gray = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
        return Sample(image, (record.boxes[keep] * scale).astype(np.float32), record.labels[keep], gray)

    def _fill(self, limit: int) -> tuple[str, ...]:
        """Decodes until the limit is reached; returns what could not be read."""
        problems = []
        for index, sample in decode_until(self._read, range(len(self.records)), lambda s: s.image.nbytes, limit):
            if isinstance(sample, Sample):
                self._kept[index] = sample
            else:
                problems.append(str(sample))
        return tuple(problems)


def decode_until(
    read: Callable[[int], Item], indices: Iterable[int], size: Callable[[Item], int], limit: int
) -> Iterator[tuple[int, Item | Exception]]:
    """Reads one item after another, in two threads, until they fill the memory allowed.

    Args:
        read: reads the item of an index.
        indices: of the items.
        size: bytes that an item takes.
        limit: bytes allowed.

    Yields:
        Index and item, or the error that it could not be read for.
    """

    def attempt(index: int) -> Item | Exception:
        try:
            return read(index)
        except (AgsspZooError, OSError) as error:
            return error

    waiting = iter(indices)
    with ThreadPoolExecutor(2) as pool:
        while limit > 0 and (block := list(itertools.islice(waiting, 64))):
            for index, item in zip(block, pool.map(attempt, block), strict=True):
                limit -= 0 if isinstance(item, Exception) else size(item)
                yield index, item


Drawn = tuple[Sample, str, tuple[str, ...]]
"""A sample, the key of its own record, and a line for every image that could not be read for it."""


class TrainingSamples(Dataset[Drawn]):
    """Draws the sample that an (epoch, position) pair names.

    Args:
        store: the images.
        settings: of the run.
        pad_value: gray level where there is no image, 0-255.
        turning: labels of ``settings.turn_classes``; see :func:`~.augment.augment`.
    """

    def __init__(
        self, store: ImageStore, settings: TrainSettings, pad_value: int, turning: Set[int] | None = None
    ) -> None:
        self.store = store
        self.turning = turning
        self.settings = settings
        self.pad_value = pad_value
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, draw: Draw) -> Drawn:
        epoch, position = draw
        settings = self.settings
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(settings.seed, epoch, len(self.store)))
        index = int(self._order[1][position % len(self.store)])
        rng = np.random.default_rng([settings.seed, epoch, position, 1])
        mosaic = epoch < settings.epochs - settings.close_mosaic
        problems: list[str] = []
        while len(problems) < TRIES:
            try:
                sample = augment(
                    *(rng, index, len(self.store), self.store.load, settings),
                    mosaic=mosaic,
                    pad_value=self.pad_value,
                    turning=self.turning,
                )
                return sample, self.store.records[index].key, tuple(problems)
            except (AgsspZooError, OSError) as error:
                problems.append(str(error))
                # Another image in its place, drawn by the same generator so that a resumed run draws it again.
                index = int(rng.integers(len(self.store)))
        blank = np.full((settings.size, settings.size, 3), self.pad_value, np.uint8)
        none = np.zeros((0, 4), np.float32)
        return Sample(blank, none, np.zeros(0, np.int64)), self.store.records[index].key, tuple(problems)


class BatchPlan(Sampler[list[Draw]]):
    """The (epoch, position) pairs of one process's batches, from any step of an epoch on.

    Args:
        count: number of images.
        batch: images a step over all processes. The last batch of an epoch is filled up from its beginning.
        rank: this process.
        processes: how many there are.
    """

    def __init__(self, count: int, batch: int, rank: int = 0, processes: int = 1) -> None:
        if batch % processes:
            raise TrainingError(f"--batch {batch} cannot be divided among {processes} processes; give a multiple.")
        self.steps = -(-count // batch)
        self.batch = batch
        self.rank = rank
        self.processes = processes
        self.epoch = 0
        self.first_step = 0

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Chooses what the next iteration yields."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.batch // self.processes
        epoch = self.epoch
        for step in range(self.first_step, self.steps):
            first = step * self.batch + self.rank * share
            yield [(epoch, position) for position in range(first, first + share)]


def collate(samples: Sequence[Drawn]) -> Batch:
    """Stacks samples; boxes are filled up to the largest number in the batch."""
    most = max(len(sample.labels) for sample, _, _ in samples)
    labels = torch.zeros(len(samples), most, dtype=torch.int64)
    boxes = torch.zeros(len(samples), most, 4)
    mask = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, (sample, _, _) in enumerate(samples):
        count = len(sample.labels)
        labels[row, :count] = torch.from_numpy(sample.labels)
        boxes[row, :count] = torch.from_numpy(sample.boxes)
        mask[row, :count] = True
    images = torch.from_numpy(np.stack([sample.image for sample, _, _ in samples]))
    problems = tuple(problem for _, _, found in samples for problem in found)
    return Batch(images, Targets(labels, boxes, mask), tuple(key for _, key, _ in samples), problems)


def build_loader(samples: TrainingSamples, plan: BatchPlan, workers: int, *, pin: bool = False) -> DataLoader[Batch]:
    """Batches in the plan's order, prepared by ``workers`` processes (0: in line)."""
    loader: DataLoader[Batch] = load_batches(samples, plan, collate, workers, pin=pin)
    return loader


def load_batches(
    samples: Dataset[Any], plan: BatchPlan, stack: Callable[[Sequence[Any]], Any], workers: int, *, pin: bool
) -> DataLoader[Any]:
    """Batches of any samples, in the plan's order; nothing is drawn from torch's own generator.

    Args:
        samples: answers the sample of an (epoch, position) pair.
        plan: the pairs of each batch.
        stack: makes a batch of samples.
        workers: processes that prepare them; 0 prepares them in line.
        pin: whether batches are put into memory that a GPU copies quickly.
    """
    ending = multiprocessing.RawValue(ctypes.c_bool, False)
    if workers:
        atexit.register(setattr, ending, "value", True)
    return DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=stack,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=functools.partial(_leave_signals_to_the_trainer, ending) if workers else None,
        # Of its own: from torch's it would draw a number at every start, so that a run that goes on within an epoch, or
        # with other workers, would leave out other branches or add other noise than the run in one go.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_trainer(ending: Any, _: int) -> None:
    """A signal to the whole process group must not kill a worker before the trainer has saved its state.

    At its own end, though, Python waits for workers that it has sent SIGTERM; ``ending`` is true by then.
    """

    def ask(_number: int, _frame: FrameType | None) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # a terminal that is closed tells everybody
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
