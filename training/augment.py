"""Augmentation of one training sample: mosaic, affine, flips, quarter turns and photometric changes.

Everything is drawn from one numpy generator, so a sample is a function of its seed and its images alone. Boxes are
float32 xyxy in pixels; coordinates are continuous (a pixel's centre lies at 0.5), as Pillow's transforms have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agssp_zoo.errors import SettingError

from .settings import TrainSettings


class Light(Protocol):
    """The settings of photometric changes, as :class:`TrainSettings` explains them."""

    @property
    def brightness(self) -> float:
        """Of the factor on all values."""

    @property
    def contrast(self) -> float:
        """Of the factor on the distance from the mean."""

    @property
    def saturation(self) -> float:
        """Of the factor on the colours' strength."""

    @property
    def hue(self) -> float:
        """Of the colours' turn."""


MIN_SIDE = 2.0
"""Boxes that are narrower or lower than this after cropping, in pixels, are dropped."""
MIN_VISIBLE = 0.15
"""Boxes of which less than this share of the area is left after cropping are dropped."""


@dataclass(frozen=True)
class Sample:
    """An image and its labelled boxes.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) float32 xyxy in pixels.
        labels: (n,) int64.
        gray: whether the three channels are equal.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    gray: bool = False


def turning_labels(settings: TrainSettings, class_names: Sequence[str]) -> frozenset[int] | None:
    """The labels of ``settings.turn_classes``; ``None`` where none are named, so that every image may turn.

    Raises:
        SettingError: the data have no such class.
    """
    unknown = [name for name in settings.turn_classes if name not in class_names]
    if unknown:
        raise SettingError(
            f"--turn-classes {' '.join(unknown)}: the data have no such class; theirs are {', '.join(class_names)}."
        )
    return frozenset(map(list(class_names).index, settings.turn_classes)) or None


def augment(
    rng: np.random.Generator,
    first: int,
    count: int,
    load: Callable[[int], Sample],
    settings: TrainSettings,
    *,
    mosaic: bool,
    pad_value: int = 114,
    turning: Set[int] | None = None,
) -> Sample:
    """Draws one training sample of ``settings.size`` squared.

    Args:
        rng: source of every random number.
        first: index of the sample's own image.
        count: number of images; the mosaic's other three are drawn from them.
        load: image of an index, its longer side at most ``settings.size``.
        settings: strengths and probabilities.
        mosaic: whether mosaic is on in this epoch.
        pad_value: gray level where there is no image, 0-255.
        turning: labels of ``settings.turn_classes``: only images that hold none but these are turned, each by itself.
            ``None`` turns the sample as a whole.
    """
    size = settings.size

    def show(index: int) -> Sample:
        sample = load(index)
        # Nothing is drawn where nothing is turned, so that runs without it stay the runs that they were.
        if turning is None or not len(sample.labels) or not turning >= set(sample.labels.tolist()):
            return sample
        return _turn_at_random(rng, sample, settings.quarter_turn)

    if mosaic and rng.random() < settings.mosaic:
        others = rng.integers(0, count, 3)
        canvas = compose_mosaic([show(first), *(show(int(i)) for i in others)], size, rng, pad_value)
    else:
        canvas = show(first)
    sample = affine(canvas, draw_matrix(rng, canvas.image.shape[:2], settings), size, pad_value)
    image, boxes = sample.image, sample.boxes
    if rng.random() < settings.flip_lr:
        image, boxes = image[:, ::-1], np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    if rng.random() < settings.flip_ud:
        image, boxes = image[::-1], np.stack([boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]], 1)
    sample = Sample(image, boxes, sample.labels, sample.gray)
    if settings.quarter_turn and turning is None:
        sample = _turn_at_random(rng, sample, settings.quarter_turn)
    image = change_light(np.ascontiguousarray(sample.image), rng, settings, gray=sample.gray)
    return dataclasses.replace(sample, image=image)


def _turn_at_random(rng: np.random.Generator, sample: Sample, probability: float) -> Sample:
    if rng.random() >= probability:
        return sample
    image, boxes = quarter_turn(sample.image, sample.boxes, clockwise=bool(rng.random() < 0.5))
    return Sample(image, boxes, sample.labels, sample.gray)


def quarter_turn(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], *, clockwise: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Turns an image (H, W, 3) and its boxes by 90 degrees: exactly, unlike :func:`affine`, which loosens boxes."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = boxes.T
    turned = (height - y1, x0, height - y0, x1) if clockwise else (y0, width - x1, y1, width - x0)
    return np.rot90(image, -1 if clockwise else 1), np.stack(turned, 1)


def compose_mosaic(samples: list[Sample], size: int, rng: np.random.Generator, pad_value: int) -> Sample:
    """Four images around a random point of a canvas of twice the size (Bochkovskiy et al., YOLOv4, section 3.4)."""
    cx, cy = (int(v) for v in rng.uniform(0.5 * size, 1.5 * size, 2))
    canvas = Image.new("RGB", (2 * size, 2 * size), (pad_value,) * 3)
    boxes = []
    for place, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        left = cx - width if place % 2 == 0 else cx
        top = cy - height if place < 2 else cy
        canvas.paste(Image.fromarray(sample.image), (left, top))
        boxes.append(sample.boxes + np.array([left, top, left, top], np.float32))
    return Sample(
        np.asarray(canvas),
        np.concatenate(boxes),
        np.concatenate([s.labels for s in samples]),
        all(s.gray for s in samples),
    )


def draw_matrix(rng: np.random.Generator, shape: tuple[int, ...], settings: TrainSettings) -> NDArray[np.float64]:
    """A random affine map, (2, 3), from a canvas of that (height, width) to the output, centre to centre."""
    height, width = shape
    turn = math.radians(rng.uniform(-settings.degrees, settings.degrees))
    factor = rng.uniform(1 - settings.scale, 1 + settings.scale)
    shear_x, shear_y = (math.tan(math.radians(v)) for v in rng.uniform(-settings.shear, settings.shear, 2))
    shift = rng.uniform(-settings.translate, settings.translate, 2) * settings.size
    rotation = factor * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    linear = np.array([[1.0, shear_x], [shear_y, 1.0]]) @ rotation
    offset = settings.size / 2 + shift - linear @ np.array([width / 2, height / 2])
    return np.column_stack([linear, offset])


def affine(sample: Sample, matrix: NDArray[np.float64], size: int, pad_value: int) -> Sample:
    """Maps image and boxes by ``matrix`` (2, 3) onto a square of ``size``; boxes that (nearly) leave it are dropped.

    So are boxes that nearly leave ``sample.image``, as those of a mosaic may: they end where the image does.
    """
    linear, offset = matrix[:, :2], matrix[:, 2]
    back = np.linalg.inv(linear)
    shift = -back @ offset
    image = Image.fromarray(sample.image).transform(
        (size, size),
        Image.Transform.AFFINE,
        (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1]),
        resample=Image.Resampling.BILINEAR,
        fillcolor=(pad_value,) * 3,
    )
    boxes, labels = sample.boxes, sample.labels
    if len(boxes):
        height, width = sample.image.shape[:2]
        whole = _around_mapped(boxes, linear, offset)
        there = _around_mapped(boxes.clip(0, np.array([width, height, width, height])), linear, offset)
        inside = there.clip(0, size)
        area = np.prod(whole[:, 2:] - whole[:, :2], 1)
        sides = inside[:, 2:] - inside[:, :2]
        keep = (sides.min(1) >= MIN_SIDE) & (np.prod(sides, 1) >= MIN_VISIBLE * area)
        boxes, labels = inside[keep].astype(np.float32), labels[keep]
    return Sample(np.asarray(image), boxes, labels, sample.gray)


def _around_mapped(
    boxes: NDArray[Any], linear: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The upright boxes (n, 4) around boxes whose corners an affine map moves."""
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2) @ linear.T + offset
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def change_light(
    image: NDArray[np.uint8], rng: np.random.Generator, settings: Light, *, gray: bool
) -> NDArray[np.uint8]:
    """Brightness, contrast and, for coloured images, saturation and hue. ``image``: (H, W, 3 or 1) uint8."""
    light = rng.uniform(1 - settings.brightness, 1 + settings.brightness)
    contrast = rng.uniform(1 - settings.contrast, 1 + settings.contrast)
    saturation = rng.uniform(1 - settings.saturation, 1 + settings.saturation)
    hue = rng.uniform(-settings.hue, settings.hue)
    if settings.brightness or settings.contrast:
        # A table of 256 entries does both at once.
        levels = np.arange(256) * light
        middle = float(image[::4, ::4, image.shape[2] // 2].mean()) * light
        image = ((levels - middle) * contrast + middle).round().clip(0, 255).astype(np.uint8)[image]
    if not gray and (settings.saturation or settings.hue):
        image = _change_color(image, saturation, hue)
    return image


def _change_color(image: NDArray[np.uint8], saturation: float, hue: float) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import functional

    tensor = torch.tensor(image).permute(2, 0, 1)
    tensor = functional.adjust_saturation(tensor, saturation)
    tensor = functional.adjust_hue(tensor, hue)
    changed: NDArray[np.uint8] = tensor.permute(1, 2, 0).contiguous().numpy()
    return changed
