"""Making the anomaly maps of a pool: by one method or several, in one process or several, once and for all.

The data sets of a pool are worked on one after the other, each by what was learnt of it alone (:mod:`.preparing`).
Several processes, started by ``accelerate launch``, do not talk to each other: each prepares the method for some of the
data sets, the first one makes the store, and all wait until they see the files that they need; each one then makes the
maps of its own blocks of rows, and the first one finishes the store when every row is there. So a process may take
hours longer than another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agssp_zoo.errors import InvalidArgumentError, MissingDependencyError, TrainingError

from ..data.dataset import Dataset
from ..data.places import check_out
from ..data.progress import progress
from ..data.unlabelled import read_images, sources
from ..devices import build_accelerator, is_main, settle_precision, settle_threads, settle_workers
from .combine import combine
from .grid import enlarge_all
from .layout import PARTS_FOLDER, UNREADABLE, WAITING, read_store_file
from .methods import build_method, method_names, refuse_unused
from .normal import normal_images, normal_settings
from .preparing import Group, Preparation, group_images, mean_aspect, wait_for
from .reading import Tolerance, gray_input, read_batches
from .settings import MapSettings
from .store import MapStore
from .writer import MapWriter

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor

    from .method import AnomalyMethod


@dataclass(frozen=True)
class Outcome:
    """How making maps ended.

    Attributes:
        store: the finished store; ``None`` in processes other than the first.
        images: what it was made of.
        made: number of maps that were made now; in processes other than the first, by this process.
        seconds: that it took to make them, without preparing.
        notes: what the methods say about what they chose.
    """

    store: MapStore | None
    images: Dataset
    made: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Keys of the images that have no map since they cannot be read, as listing the pool or making maps told."""
        found = self.store.unreadable if self.store is not None else frozenset()
        return tuple(sorted({*found, *self.images.unreadable}))


def make_maps(settings: MapSettings, images: Dataset | None = None) -> Outcome:
    """Makes the maps of a pool, or goes on where a killed run stopped.

    Args:
        settings: what of, and how.
        images: the pool, where it has been read already; left out: what ``settings.data`` names.

    Returns:
        The store in ``settings.out``, and how it came about.

    Raises:
        InvalidArgumentError: a setting is wrong, or is of no use to the method.
        DataError: images or normal images cannot be read.
        TrainingError: the folder holds other maps, more images are unreadable than tolerated, or disk or memory ends.
        MissingDependencyError: the ``train`` extra is not installed.
    """
    names = method_names(settings.method)
    refuse_unused(settings)
    try:
        import accelerate  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"Anomaly maps need {error.name}; pip install 'agssp-zoo[train]'.") from None
    settings = dataclasses.replace(settings, precision=settle_precision(settings))
    images = read_pool(settings) if images is None else images
    out = Path(settings.out)
    _refuse_place(out, settings)
    if not out.exists():
        check_out(out)  # before an encoder is asked for, which may have to come from far away
    if len(names) > 1:
        _refuse_other_store(out, "+".join(names))
    accelerator = build_accelerator(settings)
    before = torch.get_num_threads()
    torch.set_num_threads(settle_threads(settings))
    try:
        if len(names) == 1:
            return _Part(names[0], out, images, settings, accelerator).run()
        outcomes = [_Part(n, out / PARTS_FOLDER / n, images, settings, accelerator).run() for n in names]
        stores = [outcome.store for outcome in outcomes if outcome.store is not None]
        store = combine(stores, out, images) if is_main() else None
    finally:
        torch.set_num_threads(before)
    made, seconds = sum(o.made for o in outcomes), sum(o.seconds for o in outcomes)
    return Outcome(store, images, made, seconds, tuple(note for o in outcomes for note in o.notes))


def read_pool(settings: MapSettings) -> Dataset:
    """The images that get maps.

    Raises:
        InvalidArgumentError: no folder was given.
        DataError: they cannot be read, or more of them are unreadable than tolerated.
    """
    if not settings.data:
        raise InvalidArgumentError("Give the folder of the images.")
    images = read_images(settings.data, split=settings.split, format=settings.format, exclude=settings.exclude or None)
    return images.require_clean(settings.tolerance, labels=False)


def _refuse_place(out: Path, settings: MapSettings) -> None:
    """A store among the images would be read as images (its pictures) when they are read again."""
    for path in settings.data:
        folder = Path(path).absolute()
        if folder.is_dir() and out.absolute().is_relative_to(folder):
            raise InvalidArgumentError(f"--out {out} lies in the folder of the images, {path}; give another.")


def _refuse_other_store(out: Path, method: str) -> None:
    """A combination comes last; that its folder is another store's is to be known before its parts are made."""
    stored = (read_store_file(out) or {}).get("settings", {}).get("method", method)
    if stored != method:
        raise TrainingError(f"{out}: holds maps of --method {stored}, not {method}; give another --out, or remove it.")


class _Part:
    """One method's store."""

    def __init__(self, name: str, out: Path, images: Dataset, settings: MapSettings, accelerator: Accelerator) -> None:
        self.name, self.out, self.images, self.settings = name, out, images, settings
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.workers = settle_workers(settings, self.device.type)
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes

    def run(self) -> Outcome:
        """Makes what is missing, and in the first process finishes the store."""
        method = build_method(self.name, self.settings)
        described: dict[str, Any] = {"method": self.name, **method.settings()}
        if self.settings.precision != "no":
            described["precision"] = self.settings.precision
        looked_at = self.images
        if method.prepares_on == "normal":
            looked_at = normal_images(self.settings, self.name)
            described["normal"] = normal_settings(looked_at, self.images)
        names = sources(self.images, one=self.settings.sources == "one")
        groups = group_images(names, apart=method.prepares_on == "images")
        if len(groups) > 1:
            described["prepared"] = "by data set"

        def join() -> MapWriter:
            return MapWriter(self.out, self.images, described, method.bounded, sources=names)

        writer = join() if self.rank == 0 else None
        missing = len(writer.todo) if writer is not None else 0
        if writer is not None and not missing:
            store = writer.finish()
            return Outcome(store, self.images, 0, 0.0, store.notes)
        if writer is None and (read_store_file(self.out) or {}).get("complete"):
            return Outcome(None, self.images, 0, 0.0, ())
        method.to(self.device)
        preparation = Preparation(
            method,
            groups if len(groups) > 1 else group_images([""] * len(looked_at), apart=False),
            [mean_aspect(self.images, group.rows) for group in groups],
            looked_at,
            self.out,
            described,
            processes=self.processes,
            rank=self.rank,
            batch=self.settings.batch,
            workers=self.workers,
            tolerance=self.settings.tolerance,
            computing=self._computing,
        )
        preparation.learn()
        if writer is None:
            wait_for(lambda: read_store_file(self.out) is not None)
            writer = join()
        elif writer.grid is None:
            writer.create(self._grid(method, len(groups), preparation))
        start = time.monotonic()
        notes = list[str]()
        made = self._make(method, writer, groups, preparation, notes)
        if self.rank != 0:
            writer.close()
            return Outcome(None, self.images, made, time.monotonic() - start, tuple(notes))
        wait_for(lambda: not len(writer.rows(WAITING)))
        lost = len(writer.rows(UNREADABLE))
        if said := Tolerance(self.images, self.settings.tolerance).exceeded(lost):  # of all processes together
            raise TrainingError(f"{said}; restore them, or give a higher --tolerance to go on without them.")
        seconds = time.monotonic() - start
        return Outcome(writer.finish(notes), self.images, missing - lost, seconds, tuple(notes))

    def _grid(self, method: AnomalyMethod, groups: int, preparation: Preparation) -> tuple[int, int]:
        """Rows and columns of the store: along each axis as many as the finest maps of any group have."""
        grids = dict[tuple[int, ...], tuple[int, int]]()
        for place in range(groups):
            preparation.fit(place)
            gray = gray_input(method.preprocess)
            if gray.shape not in grids:
                preparation.load(place)
                maps, _ = self._maps(method, gray[None])
                grids[gray.shape] = (maps.shape[1], maps.shape[2])
        return max(rows for rows, _ in grids.values()), max(columns for _, columns in grids.values())

    def _make(
        self,
        method: AnomalyMethod,
        writer: MapWriter,
        groups: Sequence[Group],
        preparation: Preparation,
        notes: list[str],
    ) -> int:
        """Makes the maps of this process's blocks, group after group; their number."""
        work = self._divide(writer, groups)
        tolerance = Tolerance(self.images, self.settings.tolerance)

        def make() -> Iterator[int]:
            pin = self.device.type == "cuda"
            for place, blocks in enumerate(work):
                if blocks or self.rank == 0:  # which is to know all notes
                    notes.extend(preparation.load(place))
                for read in read_batches(self.images, blocks, method.preprocess, self.workers, pin=pin):
                    tolerance.check(read)
                    if read.unreadable:
                        writer.mark_unreadable(list(read.unreadable))
                    if read.inputs is not None:
                        maps, scores = self._maps(method, read.inputs)
                        if maps.shape[1:] != writer.grid and writer.grid is not None:
                            maps = enlarge_all(maps.float(), writer.grid)
                        found = maps.float().cpu().numpy(), scores.float().cpu().numpy()
                        for values in found:
                            # Nothing stands out in an image of one colour: what a method finds there is where its
                            # patches lie, and how the network rounds. What is no number stays so, and is an error.
                            values[read.even] *= 0
                        writer.write(read.indices, *found)
                    yield from read.indices

        total = sum(len(block) for blocks in work for block in blocks)
        shown = progress(make(), total, f"anomaly maps ({self.name})") if self.rank == 0 else make()
        return sum(1 for _ in shown)

    def _divide(self, writer: MapWriter, groups: Sequence[Group]) -> list[list[list[int]]]:
        """This process's part of what is to be done: for each group, batches of rows.

        Blocks of rows go to the processes in turn, on from group to group, whether they are done or not: so which are
        whose does not depend on what an earlier run has left. Rows that it could not read are the first process's,
        since it must not finish the store before they have been tried again.
        """
        waiting, lost = np.zeros((2, len(self.images)), bool)
        waiting[writer.rows(WAITING)] = True
        lost[writer.rows(UNREADABLE)] = self.rank == 0
        size, number, work = self.settings.batch, 0, list[list[list[int]]]()
        for group in groups:
            work.append([])
            for at in range(0, len(group.rows), size):
                block = group.rows[at : at + size]
                mine = number % self.processes == self.rank
                left = block[(waiting[block] & mine) | lost[block]].tolist()
                if left:
                    work[-1].append(left)
                number += 1
        return work

    def _maps(self, method: AnomalyMethod, inputs: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.inference_mode(), self._computing():
            return method.maps(inputs.to(self.device, non_blocking=True))

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, in the precision that was asked for; tells when a GPU's memory ends."""
        import torch

        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"The GPU's memory is too small for --batch {self.settings.batch}; run the same command with a smaller "
                "one: it goes on where it stopped."
            ) from None
