"""From a source to detections: reading ahead, batching by canvas, tiling; constant memory, order kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.detections import Detections
from agssp_zoo.engines.base import Engine, RawDetections
from agssp_zoo.errors import SourceError
from agssp_zoo.geometry import Letterbox, Placement
from agssp_zoo.images import ChannelOrder
from agssp_zoo.kept_images import KeptImages
from agssp_zoo.seams import Found, Window
from agssp_zoo.sources import Item, iter_sources, may_read_ahead
from agssp_zoo.tiling import Tiling

OnError = Callable[[str | None, SourceError], None]
"""Is told the path (if there is one) and what is wrong with it."""

WINDOW = 4
"""With batch > 1, an image waits for others of its canvas until this many batches of images wait."""

T = TypeVar("T")
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """The checked arguments of one call of ``predict`` or ``stream``; ``None`` is the model's own."""

    letterbox: Letterbox
    conf: float | None
    iou: float | None
    max_det: int | None
    batch: int
    tiling: Tiling | None
    keep_images: bool = False


@dataclass
class _Job:
    """An image on its way.

    Attributes:
        item: where it comes from; without its pixels, but where its answer keeps them.
        image: the network's input once it is drawn. ``None`` when it is done, or cut into tiles.
        placement: where the image lies on the canvas.
        timing: milliseconds a stage.
        answer: the detections, when they are there.
    """

    item: Item
    image: Image | None
    placement: Placement
    timing: dict[str, float]
    answer: Detections | None = None


@dataclass
class _Chunk:
    """Some tiles of an image, drawn on canvases of one size.

    Attributes:
        job: the image.
        windows: where the tiles lie on it.
        canvases: the tiles as the network takes them.
        placements: where each tile lies on its canvas.
        last: whether these are the image's last.
    """

    job: _Job
    windows: Sequence[Window]
    canvases: Sequence[Image]
    placements: Sequence[Placement]
    last: bool


class Pipeline:
    """One call of ``predict`` or ``stream``.

    Args:
        engine: runs the network.
        settings: the checked arguments.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings

    def run(self, source: Any, channel_order: ChannelOrder, on_error: OnError | None) -> Iterator[Detections]:
        """All images of a source, in order; errors as for ``Detector.predict``."""
        prepared = self._prepare(iter_sources(source, channel_order=channel_order))
        tiling, ahead = self.settings.tiling, may_read_ahead(source)
        if tiling is None:
            jobs = _read_ahead(prepared, self.settings.batch) if ahead else prepared
            return self._run_batches(_good(jobs, on_error))
        # Reading a large image takes as long as several runs of the network: while the tiles of one are looked at,
        # one thread reads the next, and another draws the tiles of the first.
        chunks = self._cut(_read_ahead(prepared, 1) if ahead else prepared, tiling)
        return self._run_tiled(_good(_read_ahead(chunks, 2) if ahead else chunks, on_error), tiling)

    def _prepare(self, items: Iterator[Item]) -> Iterator[_Job | Item]:
        """Reads images and draws their canvases; an image that cannot be read stays an item with its error."""
        kept = KeptImages() if self.settings.keep_images else None
        while True:
            started = perf_counter()
            item = next(items, None)
            if item is None:
                return
            image = item.image
            if isinstance(image, SourceError):
                yield item
                continue
            read = perf_counter()
            timing = {"read": (read - started) * 1e3, "preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}
            placement = self.settings.letterbox.place((image.shape[0], image.shape[1]))
            reload = item.reload if kept is None else kept.keep(image, item.reload)
            if self.settings.tiling is None:
                image = self.settings.letterbox.draw(image, placement)
                timing["preprocess"] = (perf_counter() - read) * 1e3
            yield _Job(item._replace(image=_NO_PIXELS, reload=reload), image, placement, timing)

    def _run_batches(self, jobs: Iterator[_Job]) -> Iterator[Detections]:
        """Runs images in batches of one canvas size, and answers in order.

        When too many images wait, those of the oldest one's canvas go as they are.
        """
        waiting: list[_Job] = []
        batch = self.settings.batch
        failure: Exception | None = None
        while True:
            try:
                job = next(jobs, None)
            except Exception as error:  # raised once the images before it are answered
                failure = error
                break
            if job is None:
                break
            waiting.append(job)
            group = _same_canvas(waiting, job)
            if len(group) == batch:
                self._run_group(group)
            elif len(waiting) >= WINDOW * batch:
                self._run_group(_same_canvas(waiting))
            yield from _take_answered(waiting)
        while waiting:
            self._run_group(_same_canvas(waiting))
            yield from _take_answered(waiting)
        if failure is not None:
            raise failure

    def _run_group(self, group: Sequence[_Job]) -> None:
        """Runs images of one canvas size together, and writes their answers."""
        started = perf_counter()
        raw = self._infer([job.image for job in group if job.image is not None], [job.placement for job in group])
        spent = (perf_counter() - started) * 1e3 / len(group)
        for i, job in enumerate(group):
            started = perf_counter()
            boxes, scores, labels = self._pick(raw, i)
            boxes = job.placement.to_original(boxes)
            job.image = None
            job.timing["inference"] = spent
            job.timing["postprocess"] = (perf_counter() - started) * 1e3
            job.answer = self._answer(job, (boxes, scores, labels))

    def _cut(self, prepared: Iterator[_Job | Item], tiling: Tiling) -> Iterator[_Chunk | Item]:
        """Cuts images into tiles and draws them, as many at a time as run together."""
        letterbox = self.settings.letterbox
        for job in prepared:
            if isinstance(job, Item):
                yield job
                continue
            image, job.image = job.image, None
            if image is None:
                continue
            groups = list(self._groups(tiling.windows(job.placement.image_size)))
            for number, group in enumerate(groups):
                started = perf_counter()
                places = [letterbox.place((bottom - top, right - left)) for top, left, bottom, right in group]
                canvases = [
                    letterbox.draw(np.ascontiguousarray(image[top:bottom, left:right]), place)
                    for (top, left, bottom, right), place in zip(group, places, strict=True)
                ]
                job.timing["preprocess"] += (perf_counter() - started) * 1e3
                yield _Chunk(job, group, canvases, places, number == len(groups) - 1)

    def _groups(self, windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
        """Tiles that run together: neighbours of one size."""
        waiting: list[Window] = []
        for window in windows:
            if waiting and (len(waiting) == self.settings.batch or _size(window) != _size(waiting[0])):
                yield waiting
                waiting = []
            waiting.append(window)
        yield waiting

    def _run_tiled(self, chunks: Iterator[_Chunk], tiling: Tiling) -> Iterator[Detections]:
        """Runs every image tile by tile, and merges what the tiles have found."""
        post = self.engine.config.postprocess
        iou = self.settings.iou if self.settings.iou is not None else post.iou if post else 1.0
        found: list[Found] = []
        for chunk in chunks:
            job = chunk.job
            started = perf_counter()
            raw = self._infer(chunk.canvases, chunk.placements)
            job.timing["inference"] += (perf_counter() - started) * 1e3
            started = perf_counter()
            for i, ((top, left, _, _), place) in enumerate(zip(chunk.windows, chunk.placements, strict=True)):
                boxes, scores, labels = self._pick(raw, i)
                found.append((place.to_original(boxes) + np.array([left, top, left, top], np.float32), scores, labels))
            if chunk.last:
                merged, found = tiling.merge(found, job.placement.image_size, iou), []
                most = self.settings.max_det
                job.timing["postprocess"] = (perf_counter() - started) * 1e3
                yield self._answer(job, (merged[0][:most], merged[1][:most], merged[2][:most]))

    def _infer(self, canvases: Sequence[Image], placements: Sequence[Placement]) -> RawDetections:
        """One run of the engine on canvases of one size."""
        images = canvases[0][None] if len(canvases) == 1 else np.stack(canvases)
        settings, sizes = self.settings, None
        if self.engine.config.preprocess.pad_after_normalize:
            sizes = np.array([placement.resized for placement in placements], np.int64)
        return self.engine.run(images, conf=settings.conf, iou=settings.iou, max_det=settings.max_det, sizes=sizes)

    def _pick(self, raw: RawDetections, index: int) -> Found:
        """The detections of one image of a batch, copied, so that the batch's arrays are freed."""
        count = int(raw.count[index])
        if self.settings.max_det is not None:
            count = min(count, self.settings.max_det)
        return raw.boxes[index, :count].copy(), raw.scores[index, :count].copy(), raw.labels[index, :count].copy()

    def _answer(self, job: _Job, found: Found) -> Detections:
        names, item = self.engine.config.class_names, job.item
        return Detections(*found, names, job.placement.image_size, item.path, item.page, job.timing, item.reload)


_NO_PIXELS: Image = np.zeros((0, 0, 3), np.uint8)


def _read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Makes items in a thread of their own, which is started with the second."""
    from agssp_zoo.prefetch import prefetch

    return prefetch(items, depth=depth)


def _size(window: Window) -> tuple[int, int]:
    top, left, bottom, right = window
    return bottom - top, right - left


def _good(prepared: Iterator[T | Item], on_error: OnError | None) -> Iterator[T]:
    """The images that could be read; what becomes of the others is said at ``Detector.predict``."""
    left_out: list[str] = []
    count = 0
    for one in prepared:
        if not isinstance(one, Item):
            yield one
        elif isinstance(one.image, SourceError):
            if on_error is not None:
                on_error(one.path, one.image)
            elif one.listed:
                count += 1
                left_out += [str(one.image)] if count <= 5 else []
            else:
                raise one.image
    if count:
        more = f" And {count - len(left_out)} more." if count > len(left_out) else ""
        warnings.warn(f"{count} files were left out. {' '.join(left_out)}{more}", UserWarning, stacklevel=2)


def _same_canvas(waiting: Sequence[_Job], like: _Job | None = None) -> list[_Job]:
    """The jobs without an answer on a canvas as large as that of ``like``, or of the oldest of them."""
    todo = [job for job in waiting if job.answer is None]
    canvas = (like or todo[0]).placement.canvas
    return [job for job in todo if job.placement.canvas == canvas]


def _take_answered(waiting: list[_Job]) -> Iterator[Detections]:
    """Takes the jobs with an answer off the front."""
    while waiting and waiting[0].answer is not None:
        answer = waiting.pop(0).answer
        if answer is not None:
            yield answer
