"""The best and the worst images as cards: what was labelled beside what was detected, inside the HTML file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

from .errors import ImageResult
from .inputs import GroundTruthLike, PredictionLike
from .svg import luminance, shorten

LoadImage = Callable[[int], NDArray[np.uint8]]
SHOWN = 300.0
"""Longer side of an image in the report, in CSS pixels."""
STORED = 640
"""Longer side at which an image is stored at most, in pixels."""
BOXES = 40
"""At most so many boxes are drawn in an image: of the labelled ones the missed first, of detections the best."""
TAG = 15.0
"""Height of a box's tag, in CSS pixels."""
IGNORED_COLOR = "#6b6b6b"


@dataclass(frozen=True)
class Look:
    """How classes look.

    Attributes:
        names: class names.
        colors: a CSS colour a class, ``#rrggbb``.
    """

    names: Sequence[str]
    colors: Sequence[str]


def choose(
    results: Sequence[ImageResult], ground_truth: Sequence[GroundTruthLike], classes: int, count: int
) -> tuple[list[ImageResult], list[ImageResult]]:
    """The best and the worst images, by F1 at the common threshold.

    Best: highest F1, then most boxes found, then highest scores. Worst: lowest F1, then most errors. Of the images of
    one class (its commonest box) not too many are taken while others are left, so that the cards show variety.

    Returns:
        Best and worst, at most ``count`` each; an image without errors is never among the worst, one without a
        found box never among the best. One that could stand in both, as there are few images, stands where it comes
        sooner.
    """
    best = sorted((r for r in results if r.found), key=lambda r: (-r.f1, -r.found, -r.certainty, r.index))
    worst = sorted((r for r in results if r.errors), key=lambda r: (r.f1, -r.errors, r.index))
    best, worst = (_varied(ranked, ground_truth, classes, count) for ranked in (best, worst))
    place, other = ({r.index: at for at, r in enumerate(picked)} for picked in (best, worst))
    return (
        [r for r in best if place[r.index] <= other.get(r.index, count)],
        [r for r in worst if other[r.index] < place.get(r.index, count)],
    )


def _varied(
    ranked: Sequence[ImageResult], ground_truth: Sequence[GroundTruthLike], classes: int, count: int
) -> list[ImageResult]:
    cap = max(1, math.ceil(count / classes))
    taken: dict[int, int] = {}
    first, rest = [], []
    for result in ranked:
        labels = ground_truth[result.index].labels
        label = int(np.bincount(labels).argmax()) if len(labels) else -1
        if taken.get(label, 0) < cap:
            taken[label] = taken.get(label, 0) + 1
            first.append(result)
            if len(first) == count:
                break
        else:
            rest.append(result)
    chosen = {r.index for r in [*first, *rest[: count - len(first)]]}
    return [r for r in ranked if r.index in chosen]


def card(
    result: ImageResult,
    image: NDArray[np.uint8],
    truth: GroundTruthLike,
    prediction: PredictionLike,
    look: Look,
    name: str,
) -> str:
    """One image as HTML: left its labels, right the detections above the common threshold.

    Args:
        result: what happened in it.
        image: uint8 (H, W, 3) RGB.
        truth: its labels.
        prediction: its detections.
        look: names and colours of the classes.
        name: the image's name, shown above.
    """
    height, width = image.shape[:2]
    scale = SHOWN / max(width, height)
    view = f"0 0 {width * scale:.1f} {height * scale:.1f}"
    ident = f"image-{result.index}"
    stored = (
        f'<image id="{ident}" width="{width * scale:.1f}" height="{height * scale:.1f}" '
        f'preserveAspectRatio="none" href="{data_url(image)}"/>'
    )
    missed, ignored = set(result.missed_boxes), set(result.ignored_boxes)
    labelled = Drawing(look, width * scale, height * scale)
    for row in sorted(sorted(range(len(truth.labels)), key=lambda row: row not in missed)[:BOXES]):
        label = int(truth.labels[row])
        state = "ignored" if row in ignored else "missed" if row in missed else ""
        labelled.box(truth.boxes[row] * scale, label, look.names[label], state)
    detected = Drawing(look, width * scale, height * scale)
    for row, hit, skipped in list(zip(result.detections, result.hits, result.ignored_detections, strict=True))[:BOXES]:
        label = int(prediction.labels[row])
        text = f"{look.names[label]} {float(prediction.scores[row]):.2f}"
        detected.box(prediction.boxes[row] * scale, label, text, "" if hit else "ignored" if skipped else "false")
    verdict = f"{result.found} of {result.boxes} found" if result.boxes else "nothing labelled"
    if result.false_alarms:
        verdict += f", {result.false_alarms} false alarm{'s' if result.false_alarms > 1 else ''}"
    if max(len(truth.labels), len(result.detections)) > BOXES:
        numbers = f"{len(truth.labels)} labelled and {len(result.detections)} detected boxes"
        verdict += f"; of {numbers} at most {BOXES} each are drawn"
    return (
        f'<figure class="card"><figcaption><b>{escape(shorten(name, 44))}</b> {verdict}</figcaption>'
        f'<div class="pair"><div><span>labelled</span><svg viewBox="{view}">{stored}{labelled.render()}</svg></div>'
        f'<div><span>detected</span><svg viewBox="{view}"><use href="#{ident}"/>{detected.render()}</svg></div>'
        "</div></figure>"
    )


def data_url(image: NDArray[np.uint8]) -> str:
    """The image as a JPEG data URL, no larger than :data:`STORED`."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((STORED, STORED))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass
class Drawing:
    """Boxes over an image; their tags stand above all boxes and beside one another.

    Attributes:
        look: names and colours of the classes.
        width: of the image as shown.
        height: of the image as shown.
    """

    look: Look
    width: float
    height: float
    _boxes: list[str] = field(default_factory=list)
    _tags: list[str] = field(default_factory=list)
    _taken: list[tuple[float, float, float]] = field(default_factory=list)

    def box(self, box: NDArray[np.float32], label: int, text: str, state: str) -> None:
        """Draws a box with its tag; errors are dashed and named, so that they need no colour to be seen.

        Args:
            box: x1, y1, x2, y2 as shown.
            label: its class.
            text: the tag.
            state: ``""``, ``"missed"``, ``"false"`` or ``"ignored"``.
        """
        x1, y1, x2, y2 = (float(v) for v in box)
        color = IGNORED_COLOR if state == "ignored" else self.look.colors[label]
        stroke, dash = {"": (2.0, ""), "ignored": (1.5, "2 3")}.get(state, (2.8, "7 4"))
        # Half a line inside the image, or the edge would cut a line that runs along it.
        left, top = (max(low, stroke / 2) for low in (x1, y1))
        right, bottom = (min(high, side - stroke / 2) for high, side in ((x2, self.width), (y2, self.height)))
        place = (
            f'x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0):.1f}" height="{max(bottom - top, 0):.1f}" '
            'fill="none"'
        )
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        # The line beneath keeps a light colour visible on light metal and a dark one on dark metal.
        self._boxes.append(
            f'<rect {place} stroke="{ink_on(color)}" stroke-opacity=".5" stroke-width="{stroke + 1.6}"{dashes}/>'
            f'<rect {place} stroke="{color}" stroke-width="{stroke}"{dashes}/>'
        )
        words = shorten(text, 24)
        words = f"{state}: {words}" if state else words
        wide = 5.9 * len(words) + 7
        left, top = self._room((x1 - 1, y1, x2, y2), wide)
        self._tags.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{TAG}" fill="{color}"/>'
            f'<text x="{left + 3.5:.1f}" y="{top + 11.3:.1f}" font-size="11" textLength="{wide - 7:.1f}" '
            f'lengthAdjust="spacingAndGlyphs" fill="{ink_on(color)}">{escape(words)}</text>'
        )
        self._taken.append((left, top, wide))

    def render(self) -> str:
        """The boxes, the first on top, and all tags above them."""
        return "".join(reversed(self._boxes)) + "".join(reversed(self._tags))

    def _room(self, box: tuple[float, float, float, float], wide: float) -> tuple[float, float]:
        """The first place at the box that lies in the image and on no other tag, else the usual one."""
        x1, y1, x2, y2 = box
        places = [(x, y) for y in (y1 - TAG, y2, y1, y2 - TAG) for x in (x1, x2 - wide)]
        inside = [(max(0.0, min(x, self.width - wide)), y) for x, y in places if 0 <= y <= self.height - TAG]
        for x, y in inside:
            if all(x + wide <= tx or tx + tw <= x or y + TAG <= ty or ty + TAG <= y for tx, ty, tw in self._taken):
                return x, y
        return inside[0] if inside else (max(0.0, x1), max(0.0, y1))


def ink_on(color: str) -> str:
    """Black or white, whichever reads better on a ``#rrggbb`` colour (WCAG's relative luminance)."""
    return "#000" if luminance(color) > 0.18 else "#fff"
