"""Views: an image and its anomaly map, cropped, mirrored and lit at random, both alike.

A view is drawn in one go. The image is thought of as resized by a drawn factor, and the input as cropped from that;
this is one resizing of a rectangle of the stored image, and the same rectangle of the map's grid gives the view's map.
So neither an enlarged image nor an enlarged map is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..augment import change_light
from .settings import PretrainSettings

MAP_STRIDE = 4
"""Pixels of the input to a cell of a view's map: the stride of the finest stage that can be tapped."""


@dataclass(frozen=True)
class View:
    """What the network sees of an image.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        map: (S / 4, S / 4) float32, 0-1.
    """

    image: NDArray[np.uint8]
    map: NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in shares of its width and height, and whether it is mirrored.

    Attributes:
        left: of the rectangle, 0-1.
        top: of the rectangle, 0-1.
        width: of the rectangle, above 0.
        height: of the rectangle, above 0.
        flip_lr: whether left and right change places.
        flip_ud: whether up and down change places.
    """

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0
    flip_lr: bool = False
    flip_ud: bool = False


def draw_window(rng: np.random.Generator, settings: PretrainSettings, shape: tuple[int, int]) -> Window:
    """Draws what a view shows: a square of ``size`` pixels from the image resized by a random factor.

    Args:
        rng: source of every random number.
        settings: sizes and probabilities.
        shape: height and width of the image in pixels.
    """
    height, width = settings.resized(*shape, rng.uniform(settings.scale_min, settings.scale_max))
    left, top = (int(rng.integers(0, round(side) - settings.size + 1)) for side in (width, height))
    flip_lr, flip_ud = (bool(v) for v in rng.random(2) < (settings.flip_lr, settings.flip_ud))
    return Window(left / width, top / height, settings.size / width, settings.size / height, flip_lr, flip_ud)


def draw_view(
    rng: np.random.Generator, image: NDArray[np.uint8], grid: NDArray[np.float32], settings: PretrainSettings
) -> View:
    """Draws a view.

    Args:
        rng: source of every random number.
        image: (H, W, 3), or (H, W) for a gray one, uint8.
        grid: the anomaly map of the whole image, (gh, gw), 0-1.
        settings: sizes, strengths and probabilities.
    """
    window = draw_window(rng, settings, (image.shape[0], image.shape[1]))
    shown = crop_image(image, window, (settings.size, settings.size))
    gray = shown.ndim == 2
    lit = change_light(shown[..., None] if gray else shown, rng, settings, gray=gray)
    side = settings.size // MAP_STRIDE
    return View(np.repeat(lit, 3, axis=2) if gray else lit, crop_map(grid, window, (side, side)))


def crop_image(image: NDArray[np.uint8], window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A window of an image, (H, W, 3) or (H, W) uint8, with that height and width in pixels; bilinear, antialiased."""
    height, width = image.shape[:2]
    box = (
        max(window.left * width, 0.0),
        max(window.top * height, 0.0),
        min((window.left + window.width) * width, width),
        min((window.top + window.height) * height, height),
    )
    shown = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR, box=box))
    if window.flip_lr:
        shown = shown[:, ::-1]
    if window.flip_ud:
        shown = shown[::-1]
    return np.ascontiguousarray(shown)


def crop_map(grid: NDArray[np.float32], window: Window, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A window of a map as it lies over the image, at the centres of the view's cells.

    The map's values stand at the centres of its own cells; between them they are interpolated linearly, beyond the
    outermost they stay as they are (bilinear resizing without ``align_corners``).

    Args:
        grid: (gh, gw).
        window: the rectangle.
        shape: rows and columns of the answer.

    Returns:
        float32 of that shape.
    """
    rows = _weights(grid.shape[0], window.top, window.height, shape[0], window.flip_ud)
    columns = _weights(grid.shape[1], window.left, window.width, shape[1], window.flip_lr)
    sampled: NDArray[np.float32] = rows @ np.asarray(grid, np.float32) @ columns.T
    return sampled


def _weights(cells: int, start: float, length: float, count: int, flip: bool) -> NDArray[np.float32]:
    """How much each cell counts at each of ``count`` places along one axis, float32 (count, cells)."""
    places = (start + (np.arange(count) + 0.5) * (length / count)) * cells - 0.5
    if flip:
        places = places[::-1]
    centres = np.arange(cells)
    weights: NDArray[np.float64] = 1.0 - np.abs(np.clip(places, 0.0, cells - 1.0)[:, None] - centres)
    return np.clip(weights, 0.0, None).astype(np.float32)
