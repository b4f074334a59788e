"""One drawn sample: a surface, its defects, their exact masks and boxes.

A sample depends on nothing but its arguments. Its surface, each of its defects and its sensor noise draw from
generators of their own, seeded by (seed, index, purpose): the same surface can be had with and without defects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index as as_index

import numpy as np
import numpy.typing as npt

from agssp_zoo.errors import InvalidArgumentError

from . import defects as metal_defects
from . import neu
from . import surfaces as metal_surfaces
from .marks import Mark
from .noise import BoolArray, FloatArray, Shape, box_mean, white
from .surfaces import Surface

MIN_SIDE, MAX_SIDE = 32, 16384
MIN_PIXELS = 4
"""The fewest pixels of a defect's mask, as far as the image's border does not cut it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A drawn image with its ground truth; n is the number of defects, 0 for a normal sample."""

    image: npt.NDArray[np.uint8]
    """(h, w, 3) RGB."""
    boxes: npt.NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2 in pixels, tight around the masks: x2 and y2 lie behind the last pixel."""
    labels: npt.NDArray[np.int64]
    """(n,) indices into ``class_names``."""
    masks: BoolArray
    """(n, h, w) the pixels of each defect, those that it covers by at least one half."""
    class_names: tuple[str, ...]
    surface: str
    """Name of the surface drawn."""


@dataclass(frozen=True)
class Style:
    """What can be drawn in one style, and how many defects of a kind an image has."""

    surfaces: Mapping[str, metal_surfaces.SurfacePainter]
    defects: Mapping[str, Callable[[np.random.Generator, Surface], Mark]]
    habitat: Mapping[str, str] | None
    """The surface that each defect appears on, or None where every surface takes every defect."""
    counts: Mapping[str, tuple[int, int]] | None
    """Least and greatest number of defects in an image whose defects are all of one kind; None: 1 to 4 of any kinds."""


STYLES: Mapping[str, Style] = {
    "metal": Style(metal_surfaces.PAINTERS, metal_defects.PAINTERS, None, None),
    "neu": Style(neu.SURFACE_PAINTERS, neu.PAINTERS, neu.HABITAT, neu.COUNTS),
}
_SURFACE, _DEFECT, _SENSOR, _PLAN = range(4)


def draw_sample(
    index: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    surface: str | None = None,
    defects: Sequence[str] | None = None,
    defect_rate: float = 1.0,
    style: str = "metal",
) -> Sample:
    """Draw sample number ``index`` of the endless set that ``seed`` stands for.

    Args:
        index: number of the sample, 0 or more.
        seed: number of the set, 0 or more.
        size: height and width in pixels, each 32 to 16384.
        surface: name of the surface (:data:`SURFACES`, or :data:`NEU_SURFACES` in style ``neu``); drawn by lot if None.
        defects: names of the defects to draw, one entry a defect (:data:`DEFECTS` or :data:`NEU_CLASSES`); empty for
            a normal sample; drawn by lot if None.
        defect_rate: the part of the samples that get defects, 0 to 1, where ``defects`` is None.
        style: ``metal``: varied surfaces and defects; ``neu``: hot-rolled steel in gray with the six classes of
            NEU-DET (K. Song and Y. Yan, A noise robust method based on completed local binary patterns for hot-rolled
            steel strip surface defects, 2013), meant for 200x200; larger sizes show the same view in more pixels.

    Returns:
        The sample; equal arguments give equal bytes.

    Raises:
        InvalidArgumentError: an unknown name, or a number out of range.
    """
    index, seed, shape, looks = check_arguments(index, seed, size, surface, defects, defect_rate, style)
    plan = np.random.default_rng([seed, index, _PLAN])
    kinds, habitat = _choose(plan, looks, defects, defect_rate)
    name = surface if surface is not None else habitat
    bare = looks.surfaces[name](np.random.default_rng([seed, index, _SURFACE]), shape)
    gray = bare.gray
    names = tuple(looks.defects)
    masks = np.zeros((len(kinds), *shape), np.bool_)
    boxes = np.zeros((len(kinds), 4), np.float32)
    tints: list[tuple[tuple[slice, slice], FloatArray, tuple[float, float, float]]] = []
    for i, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, index, _DEFECT, i])
        mark = _draw_mark(rng, looks.defects[kind], bare)
        target, source = _place(rng, mark, shape, boxes[:i])
        alpha = mark.alpha[source]
        tone, glow = _cut(mark.tone, source), _cut(mark.glow, source)
        gray[target] += alpha * (gray[target] * (tone - 1) + glow)
        masks[i][target] = mark.mask[source]
        boxes[i] = _tight_box(mark.mask[source], target)
        if mark.tint is not None:
            tints.append((target, alpha, mark.tint))
    image = _expose(np.random.default_rng([seed, index, _SENSOR]), bare, gray, tints)
    labels = np.array([names.index(kind) for kind in kinds], np.int64)
    return Sample(image, boxes, labels, masks, names, name)


def check_arguments(
    index: int,
    seed: int,
    size: tuple[int, int],
    surface: str | None,
    defects: Sequence[str] | None,
    defect_rate: float,
    style: str,
) -> tuple[int, int, Shape, Style]:
    """Check the arguments of :func:`draw_sample`; returns index, seed, (h, w) and the style."""
    looks = STYLES.get(style) if isinstance(style, str) else None
    if looks is None:
        raise InvalidArgumentError(f"style must be one of {', '.join(STYLES)}, not {style!r}.")
    try:
        index, seed = as_index(index), as_index(seed)
        height, width = (as_index(n) for n in size)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"index and seed must be integers and size a pair (height, width), not {index!r}, {seed!r} and {size!r}."
        ) from None
    if index < 0 or seed < 0:
        raise InvalidArgumentError(f"index and seed must be 0 or more, not {index} and {seed}.")
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InvalidArgumentError(f"size must be from {MIN_SIDE} to {MAX_SIDE} pixels a side, not {height}x{width}.")
    if surface is not None and not (isinstance(surface, str) and surface in looks.surfaces):
        raise InvalidArgumentError(
            f"surface must be one of {', '.join(looks.surfaces)} in style {style!r}, not {surface!r}."
        )
    if isinstance(defects, str) or not isinstance(defects, (Sequence, type(None))):
        raise InvalidArgumentError(f"defects must be a sequence of names such as ['scratch'], not {defects!r}.")
    for kind in defects or ():
        if not isinstance(kind, str) or kind not in looks.defects:
            raise InvalidArgumentError(
                f"defects must be names out of {', '.join(looks.defects)} in style {style!r}, not {kind!r}."
            )
    if not isinstance(defect_rate, (int, float)) or not 0 <= defect_rate <= 1:
        raise InvalidArgumentError(f"defect_rate must be between 0 and 1, not {defect_rate!r}.")
    return index, seed, (height, width), looks


def _choose(
    rng: np.random.Generator, looks: Style, defects: Sequence[str] | None, defect_rate: float
) -> tuple[list[str], str]:
    """The defects to draw and the surface that goes with them."""
    names = list(looks.defects)
    theme = names[int(rng.integers(len(names)))]
    surface = list(looks.surfaces)[int(rng.integers(len(looks.surfaces)))]
    defective = bool(rng.random() < defect_rate)
    if defects is not None:
        kinds = list(defects)
    elif not defective:
        kinds = []
    elif looks.counts is not None:
        low, high = looks.counts[theme]
        kinds = [theme] * int(rng.integers(low, high + 1))
    else:
        kinds = [names[i] for i in rng.integers(len(names), size=int(rng.integers(1, 5))).tolist()]
    if looks.habitat is not None:
        surface = looks.habitat[kinds[0] if kinds else theme]
    return kinds, surface


def _draw_mark(
    rng: np.random.Generator, painter: Callable[[np.random.Generator, Surface], Mark], bare: Surface
) -> Mark:
    """A mark that has pixels: on images of few pixels a swarm of specks may come out empty, and is drawn again."""
    for _ in range(8):
        mark = painter(rng, bare)
        if np.count_nonzero(mark.mask) >= MIN_PIXELS:
            return mark
    alpha = mark.alpha.copy()
    strongest = np.argsort(alpha, axis=None)[-MIN_PIXELS:]
    alpha.flat[strongest] = np.maximum(alpha.flat[strongest], 0.6)
    return replace(mark, alpha=alpha)


def _cut(field: FloatArray | float, source: tuple[slice, slice]) -> FloatArray | np.float32:
    return field[source] if isinstance(field, np.ndarray) else np.float32(field)


def _place(
    rng: np.random.Generator, mark: Mark, shape: Shape, taken: npt.NDArray[np.float32]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a mark goes: its window in the image and the part of its own window that falls there.

    A mark may be cut by the image's border, but not by more than about half, and should keep clear of the boxes taken
    so far; after some tries it takes the place with the least overlap.
    """
    mask = mark.mask
    whole = np.count_nonzero(mask)
    best: tuple[float, tuple[slice, slice], tuple[slice, slice]] | None = None
    for _ in range(16):
        corner = [_corner(rng, m, s) for m, s in zip(mask.shape, shape, strict=True)]
        target, source = _overlap(corner, mask.shape, shape)
        seen = np.count_nonzero(mask[source])
        # Of a mark larger than the image no more than the image can be seen.
        share = float(seen) / min(float(whole), 2.0 * shape[0] * shape[1])
        if seen < MIN_PIXELS:
            continue
        box = _tight_box(mask[source], target)
        crowding = _crowding(box, taken) + max(0.0, 0.45 - share)
        if best is None or crowding < best[0]:
            best = crowding, target, source
        if crowding <= 0.05:
            break
    if best is None:  # a thin mark that the tries all missed: put one of its pixels into the middle
        y, x = np.argwhere(mask)[whole // 2].tolist()
        target, source = _overlap([shape[0] // 2 - y, shape[1] // 2 - x], mask.shape, shape)
        return target, source
    return best[1:]


def _corner(rng: np.random.Generator, extent: int, side: int) -> int:
    """One coordinate of a mark's upper left corner: up to a third of the mark may stick out."""
    out = extent // 3
    low, high = -out, side - extent + out
    return int(rng.integers(min(low, high), max(low, high) + 1))


def _overlap(corner: Sequence[int], extent: Shape, shape: Shape) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    starts = [max(0, c) for c in corner]
    stops = [min(s, c + e) for c, e, s in zip(corner, extent, shape, strict=True)]
    target = slice(starts[0], stops[0]), slice(starts[1], stops[1])
    source = slice(starts[0] - corner[0], stops[0] - corner[0]), slice(starts[1] - corner[1], stops[1] - corner[1])
    return target, source


def _tight_box(mask: BoolArray, target: tuple[slice, slice]) -> npt.NDArray[np.float32]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = target[0].start, target[1].start
    return np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float32)


def _crowding(box: npt.NDArray[np.float32], taken: npt.NDArray[np.float32]) -> float:
    """The greatest part of the smaller box that a box and one of the taken ones share."""
    if not len(taken):
        return 0.0
    sides = np.clip(np.minimum(box[2:], taken[:, 2:]) - np.maximum(box[:2], taken[:, :2]), 0, None)
    areas = np.prod(taken[:, 2:] - taken[:, :2], axis=1)
    return float((sides.prod(1) / np.minimum(areas, np.prod(box[2:] - box[:2]))).max())


def _expose(
    rng: np.random.Generator,
    bare: Surface,
    gray: FloatArray,
    tints: Sequence[tuple[tuple[slice, slice], FloatArray, tuple[float, float, float]]],
) -> npt.NDArray[np.uint8]:
    """What the camera makes of it: slight blur of the lens, noise of the sensor, eight bits, colour."""
    shape = gray.shape
    mixed = 0.7 * gray
    mixed[1:-1] += 0.15 * (gray[:-2] + gray[2:])
    mixed[0] += 0.15 * (gray[0] + gray[1])
    mixed[-1] += 0.15 * (gray[-1] + gray[-2])
    out = 0.7 * mixed
    out[:, 1:-1] += 0.15 * (mixed[:, :-2] + mixed[:, 2:])
    out[:, 0] += 0.15 * (mixed[:, 0] + mixed[:, 1])
    out[:, -1] += 0.15 * (mixed[:, -1] + mixed[:, -2])
    noise = box_mean(white(rng, (shape[0] + 1, shape[1])), 2, 0)
    out += noise * np.float32(bare.noise * 2**0.5)
    levels = np.clip(out + np.float32(0.5), 0, 255).astype(np.uint8)
    image = np.empty((*shape, 3), np.uint8)
    ramp = np.arange(256)
    for channel, factor in enumerate(bare.tint):
        image[..., channel] = np.clip(ramp * factor + 0.5, 0, 255).astype(np.uint8)[levels]
    for target, alpha, tint in tints:
        patch = image[target] * (1 + alpha[..., None] * (np.array(tint, np.float32) - 1))
        image[target] = np.clip(patch + 0.5, 0, 255)
    return image
