"""Boxes and labels on a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

_GOLDEN_RATIO = 0.618034
"""Hues that far apart on the colour circle stay distinct however many there are."""
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "simhei.ttf", "PingFang.ttc", "wqy-zenhei.ttc", "DejaVuSans.ttf")
"""Fonts that know more scripts than Pillow's own; taken where they are installed and a name needs them."""


def class_color(label: int) -> Color:
    """The colour of a class, always the same one, bright enough to stand out on gray metal."""
    hue = (label * _GOLDEN_RATIO + 0.08) % 1.0  # class 0 is orange
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0 if label % 2 == 0 else 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    texts: Sequence[str] | None = None,
) -> Image.Image:
    """Draws boxes, coloured by class, and a text at each.

    Texts keep inside the image and, as far as there is room, off each other; better boxes come first.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (N, 4) xyxy in pixels, best first.
        labels: (N,), what the colours follow.
        texts: (N,); ``None`` draws boxes only.

    Returns:
        A picture of the image's size.
    """
    picture = Image.fromarray(image)  # a copy, since Pillow stores four bytes a pixel
    pen = ImageDraw.Draw(picture)
    # An area measure, so that strips get a readable size, too.
    side = (picture.width * picture.height) ** 0.5
    line = max(1, round(side / 300))
    for i in range(len(boxes) - 1, -1, -1):  # the best is drawn last, on top
        x1, y1, x2, y2 = (round(float(v)) for v in boxes[i])
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=class_color(int(labels[i])), width=line)
    if texts is None:
        return picture
    size = max(10, min(round(side / 36), picture.height // 4))
    taken: list[Rectangle] = []
    for box, label, wanted in zip(boxes, labels, texts, strict=True):
        font, text = font_for(wanted, size)
        _write(pen, picture.size, box, text, font, class_color(int(label)), taken)
    return picture


def _write(
    pen: ImageDraw.ImageDraw,
    canvas: tuple[int, int],
    box: NDArray[np.float32],
    text: str,
    font: FreeTypeFont | BitmapFont,
    color: Color,
    taken: list[Rectangle],
) -> None:
    """Writes one text on a plate of its colour, at the first free place around its box."""
    left, _, right, _ = (int(v) for v in pen.textbbox((0, 0), text, font=font))
    _, top, _, bottom = (int(v) for v in pen.textbbox((0, 0), "Ag" + text, font=font))  # plates of one height
    margin = max(1, (bottom - top) // 6)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    places = [
        (x1, y1 - height),  # above the box, the usual place
        (x1, y2),  # below it
        (x1, y1),  # inside, at the top
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x1, y2 - height),
    ]
    inside = [(max(0, min(x, canvas[0] - width)), y) for x, y in places if 0 <= y <= canvas[1] - height] or [
        (max(0, min(x1, canvas[0] - width)), max(0, min(y1, canvas[1] - height)))
    ]
    plates = [(x, y, x + width, y + height) for x, y in inside]
    plate = next((p for p in plates if not any(_overlap(p, other) for other in taken)), plates[0])
    taken.append(plate)
    pen.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=color)
    # Black or white, whichever has more contrast (Rec. 601 luma).
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    pen.text((plate[0] + margin - left, plate[1] + margin - top), text, fill=ink, font=font)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def font_for(text: str, size: int) -> tuple[FreeTypeFont | BitmapFont, str]:
    """A font that can draw the text, Pillow's own wherever it can; where none can, a text with question marks."""
    default = _default_font(size)
    if text.isascii():
        return default, text
    for font in (default, *_wide_fonts(size)):
        if all(_can_draw(font, character) for character in set(text)):
            return font, text
    return default, "".join(c if _can_draw(default, c) else "?" for c in text)


def _can_draw(font: Any, character: str) -> bool:
    """Whether a font has a glyph: what it lacks is drawn as the same box as a code point that no font has."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=32)
def _default_font(size: int) -> FreeTypeFont | BitmapFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=32)
def _wide_fonts(size: int) -> tuple[FreeTypeFont, ...]:
    """The fonts for other scripts that are installed here."""
    found = []
    for name in _WIDE_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)
