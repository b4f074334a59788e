"""Building blocks of defects: a mark, and the shapes that marks are cut from.

A mark is drawn in a window of its own, at no place in particular; :mod:`.sample` puts it somewhere on a surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .noise import BoolArray, FloatArray, Shape, fractal, smooth

Points = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mark:
    """One defect in its own window of shape (h, w).

    Painting turns gray level g into ``g * (1 + alpha * (tone - 1)) + alpha * glow``.
    """

    alpha: FloatArray
    """Coverage, 0 to 1; the defect's mask is where it reaches one half."""
    tone: FloatArray | float = 1.0
    """Factor on the surface's gray level where alpha is 1: an array of the window's shape or one number."""
    glow: FloatArray | float = 0.0
    """Gray levels added where alpha is 1."""
    tint: tuple[float, float, float] | None = None
    """Factors of red, green and blue where alpha is 1."""

    @property
    def mask(self) -> BoolArray:
        """(h, w) the pixels that count as the defect."""
        mask: BoolArray = self.alpha >= 0.5
        return mask


def trim(alpha: FloatArray, *fields: FloatArray) -> list[FloatArray]:
    """Cut empty margins off a window and off the fields that go with it."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return [alpha, *fields]
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [field[window] for field in (alpha, *fields)]


def blob(
    rng: np.random.Generator, radii: tuple[float, float], roughness: float = 0.3, cell: float = 0.5, octaves: int = 2
) -> FloatArray:
    """A rugged ellipse as a field: positive inside, zero on the outline, 1 about the centre, falling with the radius.

    Args:
        rng: source of randomness.
        radii: half axes (y, x) in pixels.
        roughness: how far the outline strays, in radii.
        cell: size of the outline's bays in radii.
        octaves: how many sizes of bays.

    Returns:
        The field in a window large enough that it is negative along the border.
    """
    ry, rx = radii
    reach = 1 + 1.6 * roughness
    h, w = (2 * int(np.ceil(r * reach)) + 3 for r in radii)
    y = (np.arange(h, dtype=np.float32) - (h - 1) / 2)[:, None] / ry
    x = (np.arange(w, dtype=np.float32) - (w - 1) / 2)[None] / rx
    field = 1 - np.sqrt(x * x + y * y)
    field += roughness * np.clip(fractal(rng, (h, w), (max(2.0, ry * cell), max(2.0, rx * cell)), octaves), -1.6, 1.6)
    outline: FloatArray = field.astype(np.float32, copy=False)
    return outline


def relief(height: FloatArray, light: tuple[float, float]) -> FloatArray:
    """Brightness of a height field (h, w) under a grazing light: positive on flanks that face the lamp.

    A surface z lit from direction l brightens by -(grad z).l (Lambert's law to first order).
    """
    padded = np.pad(height, 1, mode="edge")
    dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) * np.float32(0.5)
    dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) * np.float32(0.5)
    lit: FloatArray = -(dy * np.float32(light[0]) + dx * np.float32(light[1]))
    return lit


def wander(
    rng: np.random.Generator, length: float, steps: int, angle: float, jitter: float, bow: float = 0.0
) -> Points:
    """A path of ``steps`` + 1 points (y, x) that starts at the origin and heads along ``angle`` (radians).

    ``jitter`` is the standard deviation of each step's heading, ``bow`` the change of heading from end to end, both
    in radians.
    """
    headings = angle + bow * np.linspace(-0.5, 0.5, steps) + rng.normal(0, jitter, steps)
    lengths = rng.uniform(0.6, 1.4, steps)
    lengths *= length / lengths.sum()
    steps_yx = np.stack([np.sin(headings) * lengths, np.cos(headings) * lengths], 1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps_yx, 0)]).astype(np.float32)


def drawn_lines(paths: Sequence[tuple[Points, npt.ArrayLike]], oversample: int = 4) -> FloatArray:
    """Paths of varying width as coverage in a tight window, drawn larger and averaged down.

    Args:
        paths: (points (k, 2) as y, x; widths in pixels (k - 1,) or (k,)) of each path.
        oversample: how many times larger.
    """
    low = np.min([p.min(0) for p, _ in paths], 0)
    high = np.max([p.max(0) for p, _ in paths], 0)
    margin = 2 + max(float(np.max(widths)) for _, widths in paths)
    h, w = (int(n) for n in np.ceil(high - low + 2 * margin))
    canvas = Image.new("L", (w * oversample, h * oversample))
    pen = ImageDraw.Draw(canvas)
    for points, widths in paths:
        scaled = (points - low + margin) * oversample
        for (y0, x0), (y1, x1), width in zip(
            scaled[:-1].tolist(), scaled[1:].tolist(), np.asarray(widths).tolist(), strict=False
        ):
            pen.line([x0, y0, x1, y1], fill=255, width=max(1, round(width * oversample)))
            r = width * oversample / 2
            if r >= 2:
                pen.ellipse([x1 - r, y1 - r, x1 + r, y1 + r], fill=255)
    return np.asarray(canvas.reduce(oversample), np.float32) * np.float32(1 / 255)


def ribbon(points: Points, halves: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A curved band of varying width, with coordinates across and along it.

    Args:
        points: (k, 2) centre line as y, x.
        halves: (k,) half widths in pixels.

    Returns:
        depth: (h, w) distance in pixels from the pixel to the band's edge, positive inside.
        side: (h, w) signed offset from the centre line in half widths, positive on the right of the heading.
        along: (h, w) position along the band, 0 to 1.
    """
    margin = float(halves.max()) + 2
    points = points - points.min(0) + margin
    h, w = (int(n) for n in np.ceil(points.max(0) + margin))
    depth = np.full((h, w), -1e3, np.float32)
    side, along = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    lengths = np.sqrt((np.diff(points, axis=0) ** 2).sum(1))
    ends = np.concatenate([[0], np.cumsum(lengths)]) / max(float(lengths.sum()), 1e-6)
    for i, length in enumerate(lengths.tolist()):
        (ay, ax), (by, bx) = points[i].tolist(), points[i + 1].tolist()
        if length < 1e-3:
            continue
        y0, y1 = max(0, int(min(ay, by) - margin)), min(h, int(max(ay, by) + margin) + 2)
        x0, x1 = max(0, int(min(ax, bx) - margin)), min(w, int(max(ax, bx) + margin) + 2)
        window = np.s_[y0:y1, x0:x1]
        y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(ay)
        x = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(ax)
        uy, ux = np.float32((by - ay) / length), np.float32((bx - ax) / length)
        t = y * uy + x * ux
        across = y * ux - x * uy
        inside = np.clip(t, 0, np.float32(length))
        beyond = t - inside
        fraction = inside * np.float32(1 / length)
        half = np.float32(halves[i]) + fraction * np.float32(halves[i + 1] - halves[i])
        d = half - np.sqrt(across * across + beyond * beyond)
        nearer = d > depth[window]
        np.copyto(depth[window], d, where=nearer)
        np.copyto(side[window], across / half, where=nearer)
        np.copyto(along[window], np.float32(ends[i]) + fraction * np.float32(ends[i + 1] - ends[i]), where=nearer)
    return depth, side, along


def profile(rng: np.random.Generator, along: FloatArray, cells: float, low: float, high: float) -> FloatArray:
    """A strength that varies along a ribbon between ``low`` and ``high``, over ``cells`` bays from end to end."""
    table = smooth(rng, (1, 512), (1, 512 / max(cells, 1)))[0]
    table = np.clip(low + (high - low) * (0.5 + 0.45 * table), low, high).astype(np.float32)
    strength: FloatArray = table[np.clip(along * 511, 0, 511).astype(np.intp)]
    return strength


def union(window: Shape, parts: Sequence[tuple[FloatArray, float, float]]) -> FloatArray:
    """The maximum of several shapes in one window of shape (h, w).

    Each part is a field and the (y, x) of its centre; what lies beyond the window is cut off.
    """
    total = np.zeros(window, np.float32)
    for alpha, y, x in parts:
        top, left = round(y - alpha.shape[0] / 2), round(x - alpha.shape[1] / 2)
        y0, x0 = max(0, top), max(0, left)
        y1, x1 = min(window[0], top + alpha.shape[0]), min(window[1], left + alpha.shape[1])
        if y1 > y0 and x1 > x0:
            target = total[y0:y1, x0:x1]
            np.maximum(target, alpha[y0 - top : y1 - top, x0 - left : x1 - left], out=target)
    return total
