"""Resizing uint8 images: OpenCV's arithmetic in numpy, and Pillow's antialiased filter.

The authors' models were trained behind OpenCV's resizing, and its INTER_AREA and INTER_LINEAR differ from every other
library's by a gray level here and there, which moves logits. So both are reproduced here to the last bit, in the
order in which OpenCV adds: the float32 sums then fall on the same side of a tie. The facts (tables of weights,
rounding, fixed-point shifts) are those of OpenCV's documented CPU path; the tests compare with opencv-python.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import InvalidArgumentError

Image = NDArray[np.uint8]
ResizeMethod = Literal["opencv", "opencv_linear", "pillow"]

_ROWS = 16
"""Output rows worked on at a time by INTER_AREA, so that all of a block's arrays stay in the processor's cache."""


def resize(image: Image, size: tuple[int, int], method: ResizeMethod = "pillow") -> Image:
    """Resizes an image.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) of the answer, in pixels.
        method: ``"opencv"`` is INTER_AREA when no side grows, else INTER_LINEAR; ``"opencv_linear"`` is always
            INTER_LINEAR; ``"pillow"`` is Pillow's antialiased bilinear filter.

    Returns:
        (height, width, 3) uint8; the image itself when nothing is to be done.

    Raises:
        InvalidArgumentError: the image is not (H, W, 3) uint8, a side is below 1, or the method is unknown.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise InvalidArgumentError(
            f"resize() takes (H, W, C) uint8 images, not {image.dtype} of shape {image.shape}; "
            "agssp_zoo.images.read_image makes them from anything."
        )
    height, width = size
    if min(height, width) < 1:
        raise InvalidArgumentError(f"resize() to {height}x{width}: both sides must be at least 1 pixel.")
    if image.shape[:2] == (height, width):
        return image
    if method == "pillow":
        return resize_pillow(image, size)
    if method == "opencv_linear":
        return resize_linear(image, size)
    if method == "opencv":
        shrinks = height <= image.shape[0] and width <= image.shape[1]
        return resize_area(image, size) if shrinks else resize_linear(image, size)
    raise InvalidArgumentError(f"unknown resize method {method!r}; choose opencv, opencv_linear or pillow.")


def resize_pillow(image: Image, size: tuple[int, int]) -> Image:
    """Pillow's antialiased bilinear filter (a triangle as wide as the scale), for (H, W, 3) uint8."""
    from PIL import Image as PillowImage

    height, width = size
    # While a whole factor remains, plain averages shrink first and the filter does the rest: also antialiased, half
    # a gray level away on photographs, and a large image is read only once.
    resized = PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.BILINEAR, reducing_gap=1.0)
    return np.asarray(resized)


# --- INTER_AREA -------------------------------------------------------------------------------------------------


def resize_area(image: Image, size: tuple[int, int]) -> Image:
    """OpenCV's INTER_AREA for shrinking: every output pixel is the mean of the area that it covers.

    Args:
        image: (H, W, C) uint8.
        size: (height, width), neither larger than the image's.

    Returns:
        (height, width, C) uint8, equal to ``cv2.resize(..., interpolation=cv2.INTER_AREA)``.
    """
    height, width = size
    rows, columns, channels = image.shape
    if height > rows or width > columns:
        raise InvalidArgumentError(f"INTER_AREA shrinks; {rows}x{columns} to {height}x{width} grows.")
    if _scale(rows, height).is_integer() and _scale(columns, width).is_integer():
        return _area_integer(image, height, width)
    row_taps, row_weights = _area_table(rows, height)
    column_taps, column_weights = _area_table(columns, width)
    flat_taps = (column_taps[:, :, None] * channels + np.arange(channels)).reshape(len(column_taps), -1)
    flat_weights = np.repeat(column_weights, channels, axis=1)
    flat_image = image.reshape(rows, columns * channels)

    answer = np.empty((height, width * channels), np.uint8)
    for start in range(0, height, _ROWS):
        block = slice(start, min(height, start + _ROWS))
        taps = row_taps[:, block]
        first = int(taps.min())
        lines = flat_image[first : int(taps.max()) + 1].astype(np.float32)
        squeezed = _weighted_sum(lines, flat_taps, flat_weights, axis=1)
        mean = _weighted_sum(squeezed, taps - first, row_weights[:, block, None], axis=0)
        np.rint(mean, out=mean)  # half to even, as the processor's conversion does
        answer[block] = np.minimum(mean, 255, out=mean)
    return answer.reshape(height, width, channels)


def _weighted_sum(
    values: NDArray[np.float32], taps: NDArray[np.intp], weights: NDArray[np.float32], *, axis: int
) -> NDArray[np.float32]:
    """Sum over k of ``values[taps[k]] * weights[k]``, added in the order of k in float32."""
    total = np.take(values, taps[0], axis=axis, mode="clip")  # "clip" spares the bounds check of every element
    total *= weights[0]
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        term = np.take(values, tap, axis=axis, mode="clip")
        term *= weight
        total += term
    return cast(NDArray[np.float32], total)


def _scale(size: int, target: int) -> float:
    """Input pixels per output pixel as OpenCV computes them: rounded twice, so that of 49 to 1 it is a little less."""
    return 1.0 / (target / size)


@lru_cache(maxsize=64)
def _area_table(size: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Which input pixels an output pixel covers, and with what share.

    A pixel's share is the covered length over the cell's; a fraction below 1e-3 at either end is left out, as
    OpenCV leaves it out.

    Returns:
        ``taps`` and ``weights``, both (K, target): K is the most pixels that one output pixel covers, and what is
        not covered has the weight 0.
    """
    scale = _scale(size, target)
    left = np.arange(target) * scale
    right = left + scale
    cell = np.minimum(scale, size - left)
    last = np.minimum(np.floor(right).astype(np.intp), size - 1)
    first = np.minimum(np.ceil(left).astype(np.intp), last)
    head, tail = first - left, right - last
    # The pixel cut on the left (if any) is tap 0, then the whole ones, then the one cut on the right.
    has_head = head > 1e-3
    start = first - has_head
    whole_end = last - start
    count = whole_end + (tail > 1e-3)
    k = np.arange(int(count.max()))[:, None]
    weights = np.where(k < whole_end, 1.0 / cell, 0.0)
    weights = np.where((k == 0) & has_head, head / cell, weights)
    weights = np.where((k == whole_end) & (tail > 1e-3), np.minimum(np.minimum(tail, 1.0), cell) / cell, weights)
    taps = np.minimum(start + k, size - 1)
    return taps, weights.astype(np.float32)


def _area_integer(image: Image, height: int, width: int) -> Image:
    """INTER_AREA by whole factors: integer sums; by 2x2 with halves rounded up, else to even."""
    rows, columns, channels = image.shape
    down, across = rows // height, columns // width
    # 16 bits hold the sum of 257 pixels.
    wide: type[np.uint16] | type[np.uint32] = np.uint16 if down * across <= 257 else np.uint32
    lines = image.reshape(height, down, columns * channels)
    total: NDArray[Any] = lines[:, 0].astype(wide)
    for i in range(1, down):
        total += lines[:, i]
    cells = total.reshape(height, width, across, channels)
    summed = cells[:, :, 0].copy() if across == 1 else cells[:, :, 0] + cells[:, :, 1]
    for i in range(2, across):
        summed += cells[:, :, i]
    if down == across == 2:
        summed += wide(2)
        summed >>= wide(2)
        return cast(Image, summed.astype(np.uint8))
    mean = summed.astype(np.float32)
    mean *= np.float32(1.0 / (down * across))
    return cast(Image, np.rint(mean, out=mean).astype(np.uint8))


# --- INTER_LINEAR -----------------------------------------------------------------------------------------------


def resize_linear(image: Image, size: tuple[int, int]) -> Image:
    """OpenCV's INTER_LINEAR: bilinear in fixed point, not antialiased.

    Coefficients have 11 bits; the vertical pass drops 4 bits of each row's sum, 16 of each product and 2 of the
    total.

    Args:
        image: (H, W, C) uint8.
        size: (height, width).

    Returns:
        (height, width, C) uint8, equal to ``cv2.resize(..., interpolation=cv2.INTER_LINEAR)``.
    """
    height, width = size
    rows, columns, channels = image.shape
    left, right, left_weight, right_weight = _linear_table(columns, width, edges=True)
    top, bottom, top_weight, bottom_weight = _linear_table(rows, height, edges=False)

    spread = np.arange(channels)
    flat_image = image.reshape(rows, columns * channels)
    flat_left = (left[:, None] * channels + spread).ravel()
    flat_right = (right[:, None] * channels + spread).ravel()
    answer = np.empty((height, width * channels), np.uint8)
    for start in range(0, height, _ROWS):
        block = slice(start, min(height, start + _ROWS))
        first = int(top[start])
        lines = flat_image[first : int(bottom[block.stop - 1]) + 1]
        sums = np.take(lines, flat_left, axis=1, mode="clip").astype(np.int32)
        sums *= np.repeat(left_weight, channels)
        term = np.take(lines, flat_right, axis=1, mode="clip").astype(np.int32)
        term *= np.repeat(right_weight, channels)
        sums += term
        sums >>= 4
        mixed = sums[top[block] - first]
        mixed *= top_weight[block, None]
        mixed >>= 16
        other = sums[bottom[block] - first]
        other *= bottom_weight[block, None]
        other >>= 16
        mixed += other
        mixed += 2
        mixed >>= 2
        answer[block] = np.minimum(mixed, 255, out=mixed)
    return answer.reshape(height, width, channels)


@lru_cache(maxsize=64)
def _linear_table(
    size: int, target: int, *, edges: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """The two neighbours of every output pixel along one axis, and their weights in units of 1/2048.

    At the borders both neighbours are the border pixel. Horizontally (``edges``) the first then has all the weight,
    vertically the weights stay, and the truncation of two products instead of one shows in the last bit.
    """
    position = ((np.arange(target) + 0.5) * (size / target) - 0.5).astype(np.float32)
    floor = np.floor(position)
    fraction = position - floor
    near = floor.astype(np.intp)
    if edges:
        fraction[(near < 0) | (near >= size - 1)] = 0
    far = np.clip(near + 1, 0, size - 1)
    near = np.clip(near, 0, size - 1)
    unit = np.float32(2048)
    return (
        near,
        far,
        np.rint((np.float32(1) - fraction) * unit).astype(np.int32),
        np.rint(fraction * unit).astype(np.int32),
    )
