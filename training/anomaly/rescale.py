"""Putting maps that are no probabilities on the scale 0-1: robust quantiles of each data set.

The aim is that the paper's threshold for pseudo-boxes, "mean over images of the map's maximum, minus 0.1", keeps its
meaning. The 1 % quantile of a data set's map values becomes 0 and the 99.9 % quantile becomes 1: a single outlier moves
neither, and as one cell in a thousand lies above the upper one, the maxima of images with a defect reach about 1 and
those of images without one stay below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 0.01, 0.999
"""The quantiles of a data set's values that become 0 and 1."""

_CODES = 1 << 16
_CHUNK = 1 << 22
"""Values that are looked at at a time: bounds memory, whatever the size of the store."""

Range = tuple[float, float]


def map_range(maps: NDArray[np.float16], rows: NDArray[np.int64]) -> Range:
    """The range of one data set's maps, exact and in memory that does not grow with their number.

    There are only 65536 float16 values, so counting them gives the quantiles without sorting.

    Args:
        maps: float16 (N, gh, gw), finite; may be a memory map.
        rows: the maps to look at, at least one.

    Returns:
        Low and high; high is above low unless all values are the same.
    """
    counts = np.zeros(_CODES, np.int64)
    step = max(1, _CHUNK // max(1, int(np.prod(maps.shape[1:]))))
    for start in range(0, len(rows), step):
        counts += np.bincount(_codes(np.asarray(maps[rows[start : start + step]])), minlength=_CODES)
    seen = np.flatnonzero(counts)
    below = np.cumsum(counts[seen])
    values = _values(seen)
    low, high = (float(values[np.searchsorted(below, share * below[-1])]) for share in (LOW, HIGH))
    return _widened(low, high, float(values[0]), float(values[-1]))


def score_range(scores: NDArray[np.float32]) -> Range:
    """The range of one data set's image scores, by the same quantiles."""
    low, high = (float(value) for value in np.quantile(scores.astype(np.float64), (LOW, HIGH)))
    return _widened(low, high, float(scores.min()), float(scores.max()))


def rescale(values: NDArray[np.floating], span: Range) -> NDArray[np.float32]:
    """Values on the scale where the range is 0-1, not clipped. A range without width makes every value 0."""
    low, high = span
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def ranges_by_source(
    maps: NDArray[np.float16], scores: NDArray[np.float32], sources: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """``{source: {"map": [low, high], "score": [low, high]}}``, as store.json keeps it."""
    names = np.asarray(sources)
    found = {}
    for name in sorted(set(sources)):
        rows = np.flatnonzero(names == name)
        found[name] = {"map": list(map_range(maps, rows)), "score": list(score_range(scores[rows]))}
    return found


def _widened(low: float, high: float, least: float, most: float) -> Range:
    """Where the quantiles coincide (nearly all values are the same), the extremes take their places."""
    if high <= low:
        high = most
    if high <= low:
        low = least
    return low, high


def _codes(values: NDArray[np.float16]) -> NDArray[np.int64]:
    """Numbers 0-65535 in the order of the values; -0 counts as 0."""
    bits = (np.ascontiguousarray(values, np.float16).ravel() + np.float16(0.0)).view(np.uint16).astype(np.int64)
    return np.where(bits < 0x8000, bits + 0x8000, 0xFFFF - bits)


def _values(codes: NDArray[np.int64]) -> NDArray[np.float16]:
    """The reverse of :func:`_codes`."""
    bits = np.where(codes >= 0x8000, codes - 0x8000, 0xFFFF - codes).astype(np.uint16)
    return bits.view(np.float16)
