"""What values a network's activations take on a user's images, and the ranges that 8 bits are spread over."""

from __future__ import annotations

import copy
import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import DataError, SourceError
from agssp_zoo.file_names import user_path
from agssp_zoo.geometry import prepare
from agssp_zoo.sources import SUFFIXES, iter_sources

if TYPE_CHECKING:
    import onnx

    from agssp_zoo.config import Preprocess

    from .int8_graph import Plan
    from .rounding import Inputs

Array = NDArray[Any]
Ranges = dict[str, tuple[float, float]]
Progress = Callable[[Iterable[Any], int, str], Iterator[Any]]
"""Passes items on, and shows how many of how many there were."""

METHODS = ("minmax", "percentile 99.999", "percentile 99.99", "entropy")
"""Ways from a histogram to a range, in the order in which they are tried."""
BINS = 2048
SAMPLE = 1 << 14
"""Values of one tensor and image that go into its histogram, evenly spread; the lowest and highest always count."""
LEVELS = 128
"""Of the quantised distribution that the entropy method compares with."""
FITTED = 64
"""Images that weights are rounded by."""
SEED = 0


class CalibrationImages(Sequence[Array]):
    """Images as the network will get them, drawn through the model's own letterbox, each when it is asked for.

    Args:
        source: a folder (the images directly in it), a pattern or a file; files that are no images are left out.
        preprocess: the model's own.
        limit: at most so many; of a folder or a pattern, those are drawn with a fixed seed.

    Raises:
        DataError: there is no image, or all are alike.
    """

    def __init__(self, source: str | os.PathLike[str], preprocess: Preprocess, limit: int) -> None:
        self._preprocess = preprocess
        self._load: list[Callable[[], Array]] = []
        first: Array | None = None
        differ, bad = False, ""
        for item in iter_sources(_drawn(user_path(source))):
            if len(self._load) == limit:
                break
            if isinstance(item.image, SourceError) or item.reload is None:
                bad = bad or str(item.image)
                continue
            canvas = prepare(item.image, preprocess)[0]
            first = canvas if first is None else first
            differ = differ or not np.array_equal(canvas, first)
            self._load.append(item.reload)
        if not self._load:
            raise DataError(
                f"There is no image to calibrate with in {source}{f' ({bad})' if bad else ''}; give a folder of images "
                "from your line."
            )
        if not differ:
            raise DataError(
                f"All {len(self._load)} calibration images in {source} are alike; give about a hundred different ones "
                "that show what the camera sees."
            )

    def __len__(self) -> int:
        return len(self._load)

    def __getitem__(self, index: Any) -> Any:
        """The canvas uint8 (H, W, 3) of a number; of a slice, another sequence of them."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._load = self._load[index]
            return part
        return prepare(self._load[index](), self._preprocess)[0]


def _drawn(source: Path) -> Any:
    """The image files of a folder or a pattern in an order drawn with a fixed seed; anything else as it is."""
    found: Iterable[Path]
    if source.is_dir():
        found = source.iterdir()
    elif not source.exists():  # a pattern, else there is nothing
        found = map(Path, glob.iglob(os.fspath(source), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute ones
    else:
        return os.fspath(source)
    files = sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not files:
        return os.fspath(source)  # which says why there are none
    return [files[index] for index in np.random.default_rng(SEED).permutation(len(files))]


@dataclass
class Histogram:
    """The distribution of a tensor's values, over a range that grows by doubling.

    Attributes:
        counts: (BINS,) how many values fell into each bin of [-limit, limit].
        limit: half the width of what the bins cover; 0 before the first value.
        low: the lowest value; high: the highest.
    """

    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def add(self, values: Array) -> None:
        """Counts the values of a float array."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high)
        if reach > self.limit:
            if self.limit == 0:
                self.limit = reach
            while self.limit < reach:
                self.limit *= 2
                inner = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.pad(inner, BINS // 4)
        if self.limit == 0:
            return
        flat = values.reshape(-1)
        flat = flat[:: -(-flat.size // SAMPLE)]
        places = ((flat + self.limit) * (BINS / 2 / self.limit)).astype(np.int64)
        self.counts = self.counts + np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def copy(self) -> Histogram:
        """The state as it is now."""
        return dataclasses.replace(self)

    def range(self, method: str) -> tuple[float, float]:
        """The range that a method of :data:`METHODS` finds; it includes 0 and no more than all values."""
        if method == "minmax" or not self.counts.any():
            return self.low, self.high
        if method == "entropy":
            reach = self._least_divergence() * 2 * self.limit / BINS
            low, high = -reach, reach
        else:
            outside = (1 - float(method.split()[1]) / 100) / 2
            share = np.cumsum(self.counts) / self.counts.sum()
            width = 2 * self.limit / BINS
            low = int(np.searchsorted(share, outside, side="right")) * width - self.limit
            high = (int(np.searchsorted(share, 1 - outside)) + 1) * width - self.limit
        return min(max(low, self.low), 0.0), max(min(high, self.high), 0.0)

    def _least_divergence(self) -> int:
        """How many bins on either side of zero to keep.

        The distribution, clipped there and quantised to :data:`LEVELS` levels, then has the least Kullback-Leibler
        divergence from the whole one (S. Migacz, 8-bit Inference with TensorRT, GTC 2017).
        """
        centre = BINS // 2
        best, least = centre, np.inf
        for half in range(LEVELS // 2, centre + 1, LEVELS // 4):
            inside = self.counts[centre - half : centre + half].astype(np.float64)
            clipped = inside.copy()
            clipped[0] += self.counts[: centre - half].sum()
            clipped[-1] += self.counts[centre + half :].sum()
            starts = np.arange(LEVELS) * (2 * half) // LEVELS
            filled = clipped > 0
            number = np.add.reduceat(filled.astype(np.float64), starts)
            mean = np.add.reduceat(inside, starts) / np.maximum(number, 1)
            spread = np.where(filled, np.repeat(mean, np.diff([*starts, 2 * half])), 0)
            p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1)
            both = filled & (q > 0)
            # What is left out where q is 0 stands for a likelihood of nearly nothing.
            divergence = float((p[both] * np.log(p[both] / q[both])).sum() - np.log(1e-4) * p[filled & ~both].sum())
            if divergence < least:
                best, least = half, divergence
        return best


def collect(
    model: onnx.ModelProto,
    plan: Plan,
    images: Sequence[Array],
    snapshots: Sequence[int],
    progress: Progress,
    inputs: Inputs | None = None,
) -> dict[int, dict[str, Histogram]]:
    """Runs the float graph on images and counts what its activations are.

    Args:
        model: the float graph, as prepared.
        plan: which tensors.
        images: canvases (H, W, 3), uint8.
        snapshots: after how many images the histograms are wanted.
        progress: shows how far the work is.
        inputs: looks at the activations of the first :data:`FITTED` images, too.

    Returns:
        Number of images -> name of the tensor -> its histogram.
    """
    import onnx
    import onnxruntime

    from agssp_zoo.engines.onnx import session_options

    wanted = list(plan.tensors)
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    del graph.graph.output[:]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    found: dict[int, dict[str, Histogram]] = {}
    histograms = {name: Histogram() for name in wanted}
    for number, image in enumerate(progress(images, len(images), "calibrating (images)"), 1):
        activations = dict(zip(wanted, session.run(wanted, {"images": image[None]}), strict=True))
        for name, values in activations.items():
            histograms[name].add(values)
        if inputs is not None and number <= FITTED:
            inputs.add(activations)
        if number in snapshots:
            found[number] = {name: histogram.copy() for name, histogram in histograms.items()}
    return found


def choose_ranges(histograms: Mapping[str, Histogram], plan: Plan, method: str) -> Ranges:
    """Every tensor's range; tensors of a group get the widest of theirs."""
    ranges = {name: histogram.range(method) for name, histogram in histograms.items()} | plan.fixed
    for group in [*plan.groups, *((name,) for name in plan.floors)]:
        low = min(ranges[name][0] for name in group)
        low = max(low, *(plan.floors.get(name, low) for name in group))
        high = max(ranges[name][1] for name in group)
        ranges.update(dict.fromkeys(group, (low, high)))
    return ranges
