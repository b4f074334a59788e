"""The images of a pretraining and their anomaly maps: read, labelled by where they come from, kept in memory.

The view of image k of epoch e is drawn from (seed, e, k), k being a place in that epoch's order over all processes, so
neither the number of workers nor that of processes changes a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as Samples

from agssp_zoo.errors import AgsspZooError, DataError, TrainingError

from ..anomaly.store import MapStore
from ..data.dataset import Dataset
from ..data.problems import some
from ..data.unlabelled import read_images, sources
from ..loader import TRIES, Draw, decode_until, epoch_order
from .settings import PretrainSettings
from .views import MAP_STRIDE, View, draw_view


@dataclass(frozen=True)
class Pool:
    """Images to learn from, each with its map and its class.

    Attributes:
        images: the images, unlabelled or with labels that do not matter.
        maps: where their anomaly maps are.
        sources: the data set that each image comes from.
        class_names: names of the classes of task ``cls``.
        labels: the class of each image, int64 (N,).
    """

    images: Dataset
    maps: MapStore
    sources: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each data set."""
        return {name: self.sources.count(name) for name in sorted(set(self.sources))}


class PoolSettings(Protocol):
    """What both stages say of their images."""

    @property
    def images(self) -> tuple[str, ...]:
        """Folders of images, or of shards."""

    @property
    def exclude(self) -> str:
        """File of the names of images to leave out."""

    @property
    def split(self) -> str:
        """Which images."""

    @property
    def format(self) -> str:
        """Of the data."""

    @property
    def maps(self) -> str:
        """Folder of the anomaly maps."""

    @property
    def tolerance(self) -> float:
        """Share of the images that may be unreadable, 0-1."""


def read_mapped(settings: PoolSettings) -> tuple[Dataset, MapStore]:
    """The images that have anomaly maps, and those.

    Images that cannot be read now, and those that could not when the maps were made, are left out within the
    tolerance, which counts as in `anomaly-maps`: both kinds together, as a share of all image files.

    Raises:
        DataError: images or maps cannot be read, more images are lost than tolerated, or the maps are of other images.
    """
    images = read_images(
        settings.images, split=settings.split, format=settings.format, exclude=settings.exclude or None
    ).require_clean(settings.tolerance, labels=False)
    store = MapStore.open(settings.maps, images=images)
    without = [record.key for record in images if record.key not in store]
    lost, total = len(without) + len(images.unreadable), len(images) + len(images.unreadable)
    if without and lost > settings.tolerance * total:
        more = f", and {len(images.unreadable)} cannot be read now" if images.unreadable else ""
        raise DataError(
            f"{settings.maps}: {len(without)} of {total} images have no map, as they could not be read when the "
            f"maps were made: {some(without)}{more}. Repair them and make the maps anew, or raise --tolerance."
        )
    return replace(images, records=tuple(record for record in images if record.key in store)), store


def read_pool(settings: PretrainSettings) -> Pool:
    """Reads the images and opens their maps.

    Raises:
        DataError: images or maps cannot be read, or the maps are of other images.
        TrainingError: the pool is too small, or has one class where several are needed.
    """
    images, store = read_mapped(settings)
    if len(images) < 2:
        raise TrainingError(f"{images.path}: {len(images)} image to learn from; a pool needs two at least.")
    names = sources(images)
    classes = names if settings.labels == "source" else [_folder(record.key) for record in images]
    class_names = tuple(sorted(set(classes)))
    if settings.active_task == "cls" and len(class_names) < 2:
        raise TrainingError(
            f"{images.path}: task cls learns the names of {settings.labels}s, and all images have the same "
            f"({class_names[0]!r}); give --images several, or --labels folder, or --task none."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    return Pool(images, store, tuple(names), class_names, np.array([numbers[name] for name in classes], np.int64))


def _folder(key: str) -> str:
    return str(PurePosixPath(key).parent)


def pool_order(pool: Pool, settings: PretrainSettings, epoch: int) -> NDArray[np.int64]:
    """The order of the images in an epoch, int64 (N,).

    Natural: every image once. Balanced: as many images of every data set (up to one), each set's images all taken
    before one is taken again.
    """
    count = len(pool)
    if settings.sampling == "natural":
        return epoch_order(settings.seed, epoch, count)
    rng = np.random.default_rng([settings.seed, epoch])
    names = np.array(pool.sources)
    sets = [np.flatnonzero(names == name) for name in sorted(set(pool.sources))]
    share = -(-count // len(sets))
    drawn = [np.concatenate([rng.permutation(rows) for _ in range(-(-share // len(rows)))])[:share] for rows in sets]
    order: NDArray[np.int64] = rng.permutation(np.concatenate(drawn))[:count]
    return order


class ImageCache:
    """Decoded images, kept up to a number of bytes; gray ones with one channel, none larger than any view needs.

    Args:
        images: the images.
        settings: of the views; an image is kept no larger than the largest that they are cropped from.
        limit: bytes that may be kept; 0 reads every image when it is needed.

    Attributes:
        problems: one line for every image that could not be read while memory was filled.
    """

    def __init__(self, images: Dataset, settings: PretrainSettings, limit: int) -> None:
        self.images = images
        self.settings = settings
        self._kept: list[NDArray[np.uint8] | None] = [None] * len(images)
        problems, left = [], limit
        for index, image in decode_until(self._read, range(len(images)), lambda i: i.nbytes, limit):
            if isinstance(image, Exception):
                problems.append(str(image))
            elif image.nbytes <= left:
                self._kept[index] = image
                left -= image.nbytes
        self.problems = tuple(problems)

    def load(self, index: int) -> NDArray[np.uint8]:
        """The image of an index, (H, W, 3), or (H, W) where it is gray; uint8.

        Raises:
            ImageError: it cannot be read.
        """
        kept = self._kept[index]
        return self._read(index) if kept is None else kept

    def _read(self, index: int) -> NDArray[np.uint8]:
        image = self.images[index].load_image()
        if (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all():
            image = np.ascontiguousarray(image[..., 0])
        height, width = image.shape[:2]
        most = self.settings.resized(height, width, self.settings.scale_max)
        shape = (min(width, round(most[1])), min(height, round(most[0])))
        if shape != (width, height):
            image = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
        return image


@dataclass(frozen=True)
class ViewBatch:
    """Views of one step. With V views an image, the first views of all images come first, then the second ones.

    Attributes:
        images: (V * B, S, S, 3) uint8 RGB.
        maps: (V * B, 1, S / 4, S / 4) float32, 0-1.
        labels: (B,) int64.
        hidden: (B, P, P) bool, the patches that are hidden; P is 0 where none are.
        keys: of the images.
        problems: one line for every image that could not be read.
    """

    images: Tensor
    maps: Tensor
    labels: Tensor
    hidden: Tensor
    keys: tuple[str, ...]
    problems: tuple[str, ...]

    def pin_memory(self) -> ViewBatch:
        """The same in memory that a GPU copies quickly."""
        moved = {name: getattr(self, name).pin_memory() for name in ("images", "maps", "labels", "hidden")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Drawn:
    """The sample of one image: its views, class and hidden patches; fields as for :class:`ViewBatch`."""

    views: tuple[View, ...]
    label: int
    hidden: NDArray[np.bool_]
    key: str
    problems: tuple[str, ...]


class PoolSamples(Samples[Drawn]):
    """Draws the sample that an (epoch, position) pair names.

    Args:
        pool: images, maps and classes.
        cache: the decoded images.
        settings: of the views.
    """

    def __init__(self, pool: Pool, cache: ImageCache, settings: PretrainSettings) -> None:
        self.pool = pool
        self.cache = cache
        self.settings = settings
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, draw: Draw) -> Drawn:
        epoch, position = draw
        settings = self.settings
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, pool_order(self.pool, settings, epoch))
        index = int(self._order[1][position % len(self.pool)])
        key = self.pool.images[index].key
        rng = np.random.default_rng([settings.seed, epoch, position, 1])
        problems: list[str] = []
        while len(problems) < TRIES:
            try:
                image = self.cache.load(index)
            except (AgsspZooError, OSError) as error:
                problems.append(str(error))
                # Another image in its place, drawn by the same generator so that a resumed run draws it again.
                index = int(rng.integers(len(self.pool)))
                continue
            grid = self.pool.maps.probability(self.pool.images[index].key)
            if settings.map_power != 1:
                grid = grid**settings.map_power
            count = 2 if settings.active_task == "mocov3" else 1
            views = tuple(draw_view(rng, image, grid, settings) for _ in range(count))
            return Drawn(views, int(self.pool.labels[index]), self._hide(rng), key, tuple(problems))
        raise TrainingError(f"{self.pool.images.path}: {TRIES} images in a row cannot be read: {problems[0]}")

    def _hide(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """The patches that simmim hides, (P, P); (0, 0) for other tasks."""
        settings = self.settings
        side = settings.size // settings.mask_patch if settings.active_task == "simmim" else 0
        hidden = np.zeros(side * side, np.bool_)
        hidden[rng.permutation(side * side)[: round(settings.mask_ratio * side * side)]] = True
        return hidden.reshape(side, side)


def stack_views(samples: Sequence[Drawn]) -> ViewBatch:
    """Makes a batch of samples."""
    views: list[Any] = [view for row in zip(*(sample.views for sample in samples), strict=True) for view in row]
    return ViewBatch(
        images=torch.from_numpy(np.stack([view.image for view in views])),
        maps=torch.from_numpy(np.stack([view.map for view in views]))[:, None],
        labels=torch.tensor([sample.label for sample in samples]),
        hidden=torch.from_numpy(np.stack([sample.hidden for sample in samples])),
        keys=tuple(sample.key for sample in samples),
        problems=tuple(problem for sample in samples for problem in sample.problems),
    )


__all__ = ["MAP_STRIDE", "ImageCache", "Pool", "PoolSamples", "ViewBatch", "pool_order", "read_pool", "stack_views"]
