"""Where an image lies on the network's canvas, and boxes: numpy only.

A placement is planned from sizes alone (:meth:`Letterbox.place`), before any pixel is touched, so that images can be
grouped by canvas; :func:`prepare` then draws the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.config import Preprocess, Size
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.resize import resize

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]
MOST_PIXELS = 1 << 28
"""Of a canvas; the first maps of the smallest detector then take 4 GiB."""


@dataclass(frozen=True)
class Placement:
    """Where an image lies on its canvas. All sizes are (height, width) in pixels.

    Attributes:
        image_size: of the original image.
        resized: of the image on the canvas.
        canvas: of the canvas.
        offset: (top, left) of the image on the canvas.
    """

    image_size: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per original pixel, (vertical, horizontal); rounding the sides makes them differ a little."""
        return self.resized[0] / self.image_size[0], self.resized[1] / self.image_size[1]

    def to_original(self, boxes: Boxes, *, clip: bool = True) -> Boxes:
        """Boxes on the canvas -> boxes on the original image.

        Args:
            boxes: (N, 4) xyxy in canvas pixels.
            clip: whether what lies outside the image is cut off.

        Returns:
            (N, 4) float32 xyxy in pixels of the original image.
        """
        height, width = self.image_size
        moved = (np.asarray(boxes, np.float32).reshape(-1, 4) - self._shift()) / self._factors()
        if clip:
            moved = np.clip(moved, 0, np.array([width, height, width, height], np.float32))
        return moved.astype(np.float32, copy=False)

    def _shift(self) -> Boxes:
        top, left = self.offset
        return np.array([left, top, left, top], np.float32)

    def _factors(self) -> Boxes:
        vertical, horizontal = self.scale
        return np.array([horizontal, vertical, horizontal, vertical], np.float32)


@dataclass(frozen=True)
class Letterbox:
    """How images of any size are fitted into the network's canvas.

    Attributes:
        preprocess: the model's settings.
        size: overrides ``preprocess.size``; an int bounds the longer side, (height, width) is a fixed canvas.
    """

    preprocess: Preprocess
    size: Size | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_size(self.size, self.preprocess))

    def place(self, image_size: tuple[int, int]) -> Placement:
        """Plans where an image of (height, width) pixels lies.

        Raises:
            InvalidArgumentError: the canvas would have more than :data:`MOST_PIXELS` pixels.
        """
        size, settings = self.size, self.preprocess
        if size is None:  # __post_init__ has put one there
            raise InvalidArgumentError("Letterbox has no size.")
        bound = (size, size) if isinstance(size, int) else size
        if settings.fit == "stretch":
            canvas = (_ceil(bound[0], settings.stride), _ceil(bound[1], settings.stride))
            _check_canvas(canvas, size)
            return Placement(image_size, canvas, canvas)
        height, width = image_size
        ratio = min(bound[0] / height, bound[1] / width)
        if not settings.upscale:
            ratio = min(ratio, 1.0)
        half = 0.5 if settings.rounding == "nearest" else 0.0
        resized = (max(1, int(height * ratio + half)), max(1, int(width * ratio + half)))
        # A fixed canvas may have any sides that are multiples of the stride, a rectangular one grows to the next.
        canvas = (_ceil(resized[0], settings.stride), _ceil(resized[1], settings.stride))
        if not isinstance(size, int):
            canvas = size
        _check_canvas(canvas, size)
        if settings.pad_position == "top_left":
            return Placement(image_size, resized, canvas)
        # An odd row or column of padding goes below or to the right, as with the authors: round(pad // 2 - 0.1) above.
        offset = ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)
        return Placement(image_size, resized, canvas, offset)

    def draw(self, image: Image, placement: Placement) -> Image:
        """Resizes an image and puts it on its canvas.

        Args:
            image: (H, W, 3) uint8; not changed, and not shared with the answer.
            placement: what :meth:`place` has planned for its size.

        Returns:
            (*placement.canvas, 3) uint8, writable.
        """
        resized = resize(image, placement.resized, self.preprocess.resize)
        if placement.resized == placement.canvas:
            return np.array(resized, order="C")
        canvas = np.full((*placement.canvas, 3), self.preprocess.pad_value, np.uint8)
        (top, left), (height, width) = placement.offset, placement.resized
        canvas[top : top + height, left : left + width] = resized
        return canvas


def prepare(image: Image, preprocess: Preprocess, size: Size | None = None) -> tuple[Image, Placement]:
    """Makes the network's input of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocess: the model's settings.
        size: overrides ``preprocess.size``.

    Returns:
        The canvas, (h, w, 3) uint8 with sides that are multiples of the stride, and where the image lies on it.

    Raises:
        InvalidArgumentError: a size that makes no sense.
    """
    letterbox = Letterbox(preprocess, size)
    placement = letterbox.place((image.shape[0], image.shape[1]))
    return letterbox.draw(image, placement), placement


def check_size(size: Size | None, preprocess: Preprocess) -> Size:
    """The size to use, checked.

    Raises:
        InvalidArgumentError: it is neither an int nor a pair, is below 1, or a fixed canvas is no multiple of the
            stride.
    """
    size = preprocess.size if size is None else size
    if isinstance(size, (list, tuple, np.ndarray)) and len(size) == 2:
        pair = (_side(size[0]), _side(size[1]))
        if any(side % preprocess.stride for side in pair):
            near = tuple(_ceil(side, preprocess.stride) for side in pair)
            raise InvalidArgumentError(
                f"size={pair}: the sides of a fixed canvas must be multiples of {preprocess.stride}, e.g. {near}; "
                "an int bounds the longer side instead."
            )
        return pair
    return _side(size)


def _check_canvas(canvas: tuple[int, int], size: Size) -> None:
    """Refuses what would only be ended by the system for its memory."""
    if canvas[0] * canvas[1] > MOST_PIXELS:
        raise InvalidArgumentError(
            f"size={size} makes a network input of {canvas[1]}x{canvas[0]} pixels; {MOST_PIXELS:,} are the most, so "
            "give a smaller size."
        )


def _side(value: object) -> int:
    """One side of a size."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InvalidArgumentError(f"size holds {value!r}; give a number of pixels, or (height, width).")
    return int(value)


def _ceil(side: int, stride: int) -> int:
    """The next multiple of the stride."""
    return -(-side // stride) * stride


# --- boxes ------------------------------------------------------------------------------------------------------


def box_iou(boxes: Boxes, others: Boxes) -> Boxes:
    """Intersection over union of every pair: (N, 4) and (M, 4) xyxy -> (N, M) float32; 0 for empty boxes."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0, None)
    shared = sides[..., 0] * sides[..., 1]  # a product over an axis of two takes twice as long
    union = _area(boxes)[:, None] + _area(others)[None, :] - shared
    iou: Boxes = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def _area(boxes: Boxes) -> Boxes:
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    area: Boxes = sides[:, 0] * sides[:, 1]
    return area


def nms(boxes: Boxes, scores: NDArray[np.float32], labels: NDArray[np.int64], iou: float) -> NDArray[np.intp]:
    """Class-wise non-maximum suppression.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,).
        iou: boxes of one class that overlap a better one by more than this are dropped.

    Returns:
        Indices of the kept boxes, best first; of equal scores the first comes first.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[NDArray[np.intp]] = []
    for label in np.unique(labels):
        rest = np.flatnonzero(labels[order] == label)  # places in the order
        while len(rest):
            best, rest = rest[0], rest[1:]
            kept.append(best)
            rest = rest[box_iou(boxes[order[best]][None], boxes[order[rest]])[0] <= iou]
    answer: NDArray[np.intp] = order[np.sort(np.array(kept, np.intp))]
    return answer
