"""Starts the workers and lets them take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .process import Worker, WorkerFailed
from .results import STAGES, Row, Skipped, Spread

Size = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A model in an engine.

    Attributes:
        model: what it is called in the answers.
        path: its folder or ONNX file.
        engine: ``"onnx"``, or with a precision, ``"onnx:int8"``.
    """

    model: str
    path: str
    engine: str


@dataclass(frozen=True)
class BenchmarkSettings:
    """How to measure.

    Attributes:
        rounds: how often every candidate predicts at every size; the candidates take turns.
        warmup: rounds before that do not count.
        starts: cold starts of every candidate at every size; one more comes before and does not count, since it brings
            the files into the system's cache.
        batch: images a prediction.
        threads: of every process; ``None`` leaves it to the engine.
        device: as for ``load_detector``.
    """

    rounds: int = 20
    warmup: int = 3
    starts: int = 3
    batch: int = 1
    threads: int | None = None
    device: str = "cpu"


@dataclass
class _Taken:
    """What has been measured of a candidate at a size."""

    detections: int = 0
    starts: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)
    memory: float | None = None


class Benchmark:
    """A benchmark under way; whoever stops it finds in ``rows`` what was measured.

    Attributes:
        rows: one for every candidate and size, in the order in which they came.
        skipped: the candidates that could not be run.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        images: Mapping[Size, Path],
        settings: BenchmarkSettings,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    ) -> None:
        """Nothing is run yet.

        Args:
            candidates: what to measure.
            images: size of the network's canvas, (width, height), -> the image file that is predicted.
            settings: how.
            progress: is told the steps done, their number, and what comes.
        """
        self.settings = settings
        self.rows: list[Row] = []
        self.skipped: list[Skipped] = []
        self._left = list(candidates)
        self._images = images
        self._progress = progress
        self._done = 0
        self._total = len(candidates) * len(images) * (1 + settings.starts + settings.warmup + settings.rounds)

    def run(self) -> Iterator[None]:
        """Measures; stops for a moment after every size, for the caller to keep what there is.

        Raises:
            KeyboardInterrupt: somebody has interrupted it; what was measured before is in ``rows``.
        """
        for size in self._images:
            taken = {one: _Taken() for one in self._left}
            try:
                with ExitStack() as stack:
                    self._start_and_run(size, taken, stack)
            finally:
                self.rows += [_row(one, size, values) for one, values in taken.items() if values.starts]
            yield

    def _start_and_run(self, size: Size, taken: dict[Candidate, _Taken], stack: ExitStack) -> None:
        """Cold starts of all candidates in turn; the last started processes then predict in turn."""
        settings, running = self.settings, dict[Candidate, Worker]()
        for number in range(settings.starts + 1):
            for one in [*taken]:
                self._step(f"{_name(one, size)}: start {number}/{settings.starts}")
                task = {"model": one.path, "engine": one.engine, "device": settings.device, "batch": settings.batch}
                task |= {"image": str(self._images[size]), "size": [size[1], size[0]]}
                try:
                    worker = Worker(task, settings.threads)
                except WorkerFailed as failure:
                    self._give_up(one, taken, failure)
                    continue
                if number == settings.starts:
                    running[one] = stack.enter_context(worker)
                else:
                    worker.close()
                if number:
                    seconds = worker.started["seconds"]
                    row = {**seconds, "total": worker.started["total"], "cpu": worker.started["cpu"]}
                    taken[one].starts.append(row)
                    taken[one].detections = int(worker.started["detections"])
        for number in range(settings.warmup + settings.rounds):
            for one, worker in [*running.items()]:
                self._step(f"{_name(one, size)}: round {max(0, number + 1 - settings.warmup)}/{settings.rounds}")
                try:
                    spent = worker.run()
                except WorkerFailed as failure:
                    self._give_up(one, taken, failure)
                    del running[one]
                    continue
                if number >= settings.warmup:
                    taken[one].rounds.append(spent)
        for one, worker in running.items():
            try:
                taken[one].memory = worker.finish()
            except WorkerFailed as failure:
                self._give_up(one, taken, failure)

    def _give_up(self, one: Candidate, taken: dict[Candidate, _Taken], failure: WorkerFailed) -> None:
        """Leaves a candidate out from here on."""
        self.skipped.append(Skipped(one.model, one.engine, str(failure)))
        self._left.remove(one)
        if not taken[one].starts:
            del taken[one]

    def _step(self, text: str) -> None:
        self._progress(self._done, self._total, text)
        self._done += 1


def _name(one: Candidate, size: Size) -> str:
    return f"{one.model} {one.engine} {size[0]}x{size[1]}"


def _row(one: Candidate, size: Size, taken: _Taken) -> Row:
    """The medians of what was measured."""

    def start(key: str) -> Spread:
        return Spread.of([values[key] for values in taken.starts])

    def spent(key: str) -> Spread:
        return Spread.of([values[key] for values in taken.rounds])

    measured = bool(taken.rounds)
    return Row(
        model=one.model,
        engine=one.engine,
        size=size,
        detections=taken.detections,
        cold_start=start("total"),
        cold_start_cpu=start("cpu"),
        start_stages={key: start(key) for key in ("import", "load", "first_prediction")},
        milliseconds={key: spent(key) for key in (*STAGES, "end_to_end")} if measured else {},
        cpu=spent("cpu") if measured else None,
        peak_memory_mb=taken.memory,
    )
