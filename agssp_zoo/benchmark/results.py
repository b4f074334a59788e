"""Figures of a benchmark: medians with quartiles, a row for every model, engine and size, and their JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import worker

STAGES = tuple(worker.STAGES)
"""What a prediction consists of, in order."""
SCHEMA = 1
"""Version of benchmark.json's layout."""
ABOUT = {
    "spread": "low and high are the quartiles (25 % and 75 %) of the rounds",
    "cold_start": "seconds from starting a process to its first detections (wall clock); the files were read before",
    "milliseconds": "an image (of a batch: its share), wall clock, after the warm-up rounds",
    "decode": "image file -> uint8 RGB",
    "preprocess": "uint8 RGB -> the network's canvas",
    "inference": "the network, with normalising, decoding of boxes and suppression",
    "postprocess": "boxes to pixels of the original image",
    "end_to_end": "predict() on the file; with batches, decoding and inference may overlap",
    "cpu": "CPU time of all threads for the same",
    "peak_memory_mb": "the most that the process held at once, in MB of 1024 * 1024 bytes",
}
"""What the figures are; goes into benchmark.json."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Attributes:
        median: of all values.
        low: a quarter of the values lie at or below.
        high: a quarter of the values lie at or above.
        count: number of values.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class Row:
    """What one model costs in one engine at one size.

    Attributes:
        model: its name.
        engine: ``"onnx"`` ...
        size: (width, height) of the network's canvas in pixels.
        detections: how many were found in the image.
        cold_start: seconds from the start of a process to its first detections.
        cold_start_cpu: CPU seconds of the same.
        start_stages: seconds of importing, loading and the first prediction; Python's own start comes before them.
        milliseconds: an image, per stage and ``"end_to_end"``; empty where it was stopped before the first round.
        cpu: CPU milliseconds of an image, all threads.
        peak_memory_mb: ``None`` where the system does not say, or it was stopped before.
    """

    model: str
    engine: str
    size: tuple[int, int]
    detections: int
    cold_start: Spread
    cold_start_cpu: Spread
    start_stages: Mapping[str, Spread]
    milliseconds: Mapping[str, Spread] = field(default_factory=dict)
    cpu: Spread | None = None
    peak_memory_mb: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """After the start."""
        whole = self.milliseconds.get("end_to_end")
        return 1e3 / whole.median if whole and whole.median > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to what they are worth."""
        plain: dict[str, Any] = _rounded({**asdict(self), "images_per_second": self.images_per_second})
        return plain


@dataclass(frozen=True)
class Skipped:
    """What was asked for and not measured, and why."""

    model: str
    engine: str
    reason: str


@dataclass(frozen=True)
class Results:
    """A benchmark.

    Attributes:
        rows: what was measured.
        skipped: what was not.
        about: command, date, settings, machine, versions.
        complete: whether all that was asked for is there.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    about: Mapping[str, Any]
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The content of benchmark.json."""
        return {
            "schema_version": SCHEMA,
            **self.about,
            "what_the_figures_are": ABOUT,
            "complete": self.complete,
            "results": [row.to_dict() for row in self.rows],
            "skipped": [asdict(one) for one in self.skipped],
        }


def _rounded(value: Any) -> Any:
    """Numbers with five significant digits, also inside lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value
