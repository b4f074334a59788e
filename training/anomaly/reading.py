"""Images in, batches of the network's input out: read ahead by threads, in memory that does not grow with the pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import AgsspZooError, TrainingError

from ..data.dataset import Dataset

if TYPE_CHECKING:
    from torch import Tensor

Preprocess = Callable[[NDArray[np.uint8]], "Tensor"]


@dataclass(frozen=True)
class Read:
    """A batch of images that could be read, and those that could not.

    Attributes:
        indices: of the images in ``inputs``.
        inputs: float32 (B, 3, H, W); ``None`` where none could be read.
        unreadable: index -> why not.
        even: bool (B,), for each image in ``inputs`` whether all of its pixels have one colour.
    """

    indices: tuple[int, ...]
    inputs: Tensor | None
    unreadable: dict[int, str]
    even: NDArray[np.bool_]


def read_batches(
    images: Dataset, batches: Iterable[Sequence[int]], preprocess: Preprocess, workers: int, *, pin: bool = False
) -> Iterator[Read]:
    """Reads batches of images, the next two while the one before is worked on.

    Args:
        images: the pool.
        batches: indices of the images of each batch.
        preprocess: makes the network's input of an image; runs in several threads.
        workers: threads that read; 0 reads in line.
        pin: put batches into page-locked memory, from where a GPU takes them faster.

    Yields:
        the batches, in order.
    """

    def one(index: int) -> tuple[Tensor, bool] | str:
        try:
            image = images[index].load_image()
            return preprocess(image), _is_even(image)
        except (AgsspZooError, OSError) as error:
            return str(error)

    if workers == 0:
        for batch in batches:
            yield _collate(batch, [one(index) for index in batch], pin)
        return
    ahead: deque[tuple[Sequence[int], list[Future[tuple[Tensor, bool] | str]]]] = deque()
    with ThreadPoolExecutor(workers, "agssp-zoo-images") as pool:
        try:
            for batch in batches:
                ahead.append((batch, [pool.submit(one, index) for index in batch]))
                if len(ahead) > 2:
                    first, futures = ahead.popleft()
                    yield _collate(first, [future.result() for future in futures], pin)
            while ahead:
                first, futures = ahead.popleft()
                yield _collate(first, [future.result() for future in futures], pin)
        finally:
            for _, futures in ahead:
                for future in futures:
                    future.cancel()


def _collate(batch: Sequence[int], results: Sequence[tuple[Tensor, bool] | str], pin: bool) -> Read:
    import torch

    unreadable = {index: result for index, result in zip(batch, results, strict=True) if isinstance(result, str)}
    indices = tuple(index for index in batch if index not in unreadable)
    read = [result for result in results if not isinstance(result, str)]
    inputs = torch.stack([tensor for tensor, _ in read]) if read else None
    even = np.array([flag for _, flag in read], np.bool_)
    return Read(indices, inputs.pin_memory() if pin and inputs is not None else inputs, unreadable, even)


def _is_even(image: NDArray[np.uint8]) -> bool:
    """Whether all pixels have one colour; most images show by their first row that they do not."""
    first = image[0, 0]
    return bool((image[0] == first).all() and (image == first).all())


class Tolerance:
    """Counts the images of a pool that cannot be read: those that listing it has lost, and those found later.

    Args:
        images: the pool.
        share: how many of all files may be unreadable, 0-1.
    """

    def __init__(self, images: Dataset, share: float) -> None:
        self.images = images
        self.share = share
        self._found: set[int] = set()

    def check(self, read: Read) -> None:
        """Notes the unreadable images of a batch.

        Raises:
            TrainingError: there are more than tolerated.
        """
        self._found.update(read.unreadable)
        if said := self.exceeded(len(self._found)):
            index, why = next(iter(read.unreadable.items()))
            raise TrainingError(
                f"{said}: {self.images[index].key!r}: {why} Restore it, or give a higher --tolerance to go on without "
                "it."
            )

    def exceeded(self, found: int) -> str:
        """Says that too many images cannot be read; empty where they are as few as tolerated.

        Args:
            found: how many of the images could not be read, beside those that listing has lost.
        """
        lost = found + len(self.images.unreadable)
        total = len(self.images) + len(self.images.unreadable)
        if not found or lost <= self.share * total:
            return ""
        what = "an image" if lost == 1 else f"{lost} images"
        return f"{what} of {total} cannot be read, more than --tolerance {self.share:g}"


def gray_input(preprocess: Preprocess) -> Tensor:
    """The network's input (3, H, W) for an even gray image, from which the size of all inputs is known."""
    return preprocess(np.full((64, 64, 3), 128, np.uint8))


def make_loader(
    images: Dataset, preprocess: Preprocess, batch: int, workers: int, tolerance: Tolerance
) -> Callable[[Sequence[int]], Iterator[Tensor]]:
    """What :meth:`.method.AnomalyMethod.prepare` reads images with; an unreadable image comes as zeros."""
    import torch

    shape = tuple(gray_input(preprocess).shape)

    def load(indices: Sequence[int]) -> Iterator[Tensor]:
        batches = [[int(index) for index in indices[at : at + batch]] for at in range(0, len(indices), batch)]
        for wanted, read in zip(batches, read_batches(images, batches, preprocess, workers), strict=True):
            tolerance.check(read)
            if read.inputs is not None and not read.unreadable:
                yield read.inputs
                continue
            inputs = torch.zeros((len(wanted), *shape))
            rows = [row for row, index in enumerate(wanted) if index not in read.unreadable]
            if read.inputs is not None:
                inputs[rows] = read.inputs
            yield inputs

    return load
