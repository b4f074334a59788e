"""Random fields that the surfaces and defects are made of, in plain numpy and Pillow.

All fields are float32 with zero mean and (about) unit variance. They are built from random bytes, averages over boxes
and Pillow's bicubic resizing: no FFT and no BLAS, which keeps them fast and equal from machine to machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Shape = tuple[int, int]

_BYTE_STD = float(np.arange(256).std())
# Standard deviation of bicubic interpolation of unit white noise, averaged over the positions between the grid points.
_BICUBIC_STD = 0.79


def white(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """White noise of shape (h, w), uniform over 256 levels: faster than normal deviates, alike once averaged."""
    data = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape)
    lut = ((np.arange(256) - 127.5) / _BYTE_STD).astype(np.float32)
    return np.take(lut, data)


def box_mean(field: FloatArray, size: int, axis: int) -> FloatArray:
    """Running mean of ``size`` elements along an axis; the result is shorter by ``size - 1`` (only whole boxes)."""
    if size <= 1:
        return field
    length = field.shape[axis] - size + 1
    if size <= 12:  # so few shifted copies are added faster than running sums are formed, down the columns above all
        shifted = [field[i : i + length] if axis == 0 else field[:, i : i + length] for i in range(size)]
        out = shifted[0] + shifted[1]
        for other in shifted[2:]:
            out += other
    else:
        sums = np.cumsum(field, axis=axis, dtype=np.float32)
        if axis == 0:
            out = sums[size - 1 :].copy()
            out[1:] -= sums[:-size]
        else:
            out = sums[:, size - 1 :].copy()
            out[:, 1:] -= sums[:, :-size]
    out *= np.float32(1 / size)
    return out


def grain(rng: np.random.Generator, shape: Shape, size: tuple[float, float] = (2, 2), passes: int = 2) -> FloatArray:
    """White noise of shape (h, w) averaged ``passes`` times over boxes of ``size`` (rows, columns), unit variance.

    A size of 1 leaves that axis alone; long boxes along one axis make the streaks of brushed metal. Long streaks are
    drawn with fewer columns and stretched, since nothing in them varies from one pixel to the next.
    """
    if size[0] > max(size[1], 12):
        return np.ascontiguousarray(grain(rng, (shape[1], shape[0]), (size[1], size[0]), passes).T)
    ky, kx = (max(1, round(s)) for s in size)
    step = max(1, kx // 8)
    kx = max(1, round(kx / step))
    columns = -(-shape[1] // step) + (3 if step > 1 else 0)
    field = white(rng, (shape[0] + passes * (ky - 1), columns + passes * (kx - 1)))
    for _ in range(passes):
        field = box_mean(box_mean(field, ky, 0), kx, 1)
    field *= np.float32(_box_gain(ky, passes) * _box_gain(kx, passes))
    if step > 1:
        start = 1 + rng.random()
        box = (start, 0, start + shape[1] / step, shape[0])
        field = np.array(Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box))
    return field


def _box_gain(size: int, passes: int) -> float:
    """What restores the unit variance of white noise after ``passes`` means of ``size`` elements."""
    kernel = np.ones(1)
    for _ in range(passes):
        kernel = np.convolve(kernel, np.full(size, 1 / size))
    return float(1 / np.sqrt((kernel**2).sum()))


def smooth(rng: np.random.Generator, shape: Shape, cell: tuple[float, float]) -> FloatArray:
    """Noise of shape (h, w) that varies over ``cell`` (rows, columns) pixels: a random grid resized bicubically."""
    cy, cx = (max(1.0, c) for c in cell)
    rows, cols = shape[0] / cy, shape[1] / cx
    grid = rng.standard_normal((int(rows) + 5, int(cols) + 5), dtype=np.float32)
    dy, dx = rng.random(2)
    box = (1.5 + dx, 1.5 + dy, 1.5 + dx + cols, 1.5 + dy + rows)
    image = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image) * np.float32(1 / _BICUBIC_STD)


def fractal(
    rng: np.random.Generator, shape: Shape, cell: tuple[float, float], octaves: int = 3, gain: float = 0.5
) -> FloatArray:
    """Sum of ``octaves`` of :func:`smooth`, each half as coarse and ``gain`` times as strong as the one before."""
    total = smooth(rng, shape, cell)
    weight, power = 1.0, 1.0
    for i in range(1, octaves):
        weight *= gain
        power += weight * weight
        total = total + np.float32(weight) * smooth(rng, shape, (cell[0] / 2**i, cell[1] / 2**i))
    return total * np.float32(1 / np.sqrt(power))


def lighting(rng: np.random.Generator, shape: Shape, strength: float = 0.2, bands: float = 0.0) -> FloatArray:
    """Illumination of shape (h, w) with mean about 1: a slope in a random direction, a fall-off, slow unevenness.

    ``bands`` adds brightness that varies along x only, as under a row of lamps.
    """
    n = 24
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = strength * rng.uniform(0.3, 1.0) * (np.cos(angle) * x + np.sin(angle) * y)
    cy, cx = rng.uniform(-0.5, 0.5, 2)
    fall = strength * rng.uniform(0.0, 0.6) * ((x - cx) ** 2 + (y - cy) ** 2 - 0.7)
    field = 1 + slope - fall + 0.25 * strength * smooth(rng, (n, n), (n / 2, n / 2))
    if bands:
        field += bands * smooth(rng, (1, n), (1, n / 5))
    coarse = Image.fromarray(np.maximum(field, 0.15).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def smoothstep(x: FloatArray) -> FloatArray:
    """0 below 0, 1 above 1, the cubic between them; works on a copy."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
