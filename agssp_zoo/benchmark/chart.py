"""A benchmark as a picture: stages of a prediction as stacked bars, beside them cold start and memory. By Pillow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .results import STAGES, Row

COLORS = {"decode": "#56B4E9", "preprocess": "#E69F00", "inference": "#0072B2", "postprocess": "#CC79A7"}
"""Colours that people with any colour vision tell apart (Okabe and Ito)."""
START, MEMORY, INK, SOFT, RULE = "#5a626b", "#5a626b", "#1a1d21", "#5a626b", "#d9dde2"
SCALE = 2
"""Pixels of the picture for a unit of the layout, so that it is sharp on any screen."""
MARGIN, ROW, BAR, GAP, NUMBER = 24, 26, 16, 36, 92
"""Units: around everything, of a row, of a bar in it, between panels, and for the number behind a bar."""
PANELS = ((380, "milliseconds an image"), (150, "cold start, s"), (150, "peak memory, MB"))
"""Width of the longest bar, and title, from left to right."""


def draw_chart(rows: Sequence[Row], about: Mapping[str, Any], path: Path) -> None:
    """Writes the picture.

    Args:
        rows: what was measured.
        about: title, and what stands below the picture: ``title`` and ``note``.
        path: a ``.png`` file; written under a temporary name and renamed.
    """
    names = [f"{row.model}  {row.engine}" for row in rows]
    pen = _Pen(Image.new("RGB", (1, 1)))
    left = MARGIN + max((pen.width(name) for name in names), default=0) + 16
    places = [left]
    for wide, _ in PANELS[:-1]:
        places.append(places[-1] + wide + NUMBER + GAP)
    wrapped = _wrap(pen, str(about["note"]), places[-1] + PANELS[-1][0] + NUMBER - MARGIN)
    sizes = list(dict.fromkeys(row.size for row in rows))
    height = MARGIN + 34 + 26 + 24 + len(sizes) * 30 + len(rows) * ROW + 16 + len(wrapped) * 18 + MARGIN
    picture = Image.new("RGB", ((places[-1] + PANELS[-1][0] + NUMBER + MARGIN) * SCALE, height * SCALE), "white")
    pen = _Pen(picture)
    pen.text((MARGIN, MARGIN - 4), str(about["title"]), size=19)
    y = MARGIN + 34
    _legend(pen, places[0], y)
    y += 26
    for place, (_, title) in zip(places, PANELS, strict=True):
        pen.text((place, y), title, color=SOFT)
    y += 24
    getters = (_whole, lambda row: row.cold_start.median, lambda row: row.peak_memory_mb or 0.0)
    longest = [max([getter(row) for row in rows] + [1e-9]) for getter in getters]
    for size in sizes:
        pen.line((MARGIN, y + 4), places[-1] + PANELS[-1][0] + NUMBER - MARGIN)
        pen.text((MARGIN, y + 9), f"{size[0]} x {size[1]} pixels", color=SOFT)
        y += 30
        for row, name in zip(rows, names, strict=True):
            if row.size == size:
                pen.text((MARGIN, y + 4), name)
                _bars(pen, places, y + (ROW - BAR) // 2, row, longest, getters)
                y += ROW
    y += 16
    for line in wrapped:
        pen.text((MARGIN, y), line, color=SOFT, size=12)
        y += 18
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _whole(row: Row) -> float:
    """The length of the stacked bar: the stages' sum, in milliseconds."""
    return sum(row.milliseconds[stage].median for stage in STAGES) if row.milliseconds else 0.0


def _bars(
    pen: _Pen,
    places: Sequence[int],
    y: int,
    row: Row,
    longest: Sequence[float],
    getters: Sequence[Callable[[Row], float]],
) -> None:
    """The bars of one row, with their numbers."""
    x = float(places[0])
    if row.milliseconds:
        for stage in STAGES:
            wide = row.milliseconds[stage].median / longest[0] * PANELS[0][0]
            pen.bar(x, y, wide, COLORS[stage])
            x += wide
        whole = row.milliseconds["end_to_end"]
        pen.text((x + 7, y - 1), f"{_figure(whole.median)} ({_figure(whole.low)}-{_figure(whole.high)})")
    else:
        pen.text((x, y - 1), "not measured", color=SOFT)
    for panel, color in ((1, START), (2, MEMORY)):
        value = getters[panel](row)
        wide = value / longest[panel] * PANELS[panel][0]
        pen.bar(places[panel], y, wide, color)
        if value:
            pen.text((places[panel] + wide + 7, y - 1), _figure(value))
        else:
            pen.text((places[panel], y - 1), "not measured", color=SOFT)


def _legend(pen: _Pen, x: int, y: int) -> None:
    for stage in STAGES:
        pen.bar(x, y + 2, 12, COLORS[stage], 12)
        pen.text((x + 18, y), stage, color=SOFT)
        x += 18 + pen.width(stage) + 22


def _figure(value: float) -> str:
    """Three digits, without a power of ten."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _wrap(pen: _Pen, text: str, room: int) -> list[str]:
    """Text in lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.width(longer, 12) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


class _Pen:
    """Draws in units of the layout."""

    def __init__(self, picture: Image.Image) -> None:
        self._draw = ImageDraw.Draw(picture)

    def text(self, at: tuple[float, float], text: str, *, color: str = INK, size: int = 13) -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill=color, font=font)

    def width(self, text: str, size: int = 13) -> int:
        return round(self._draw.textlength(text, font=ImageFont.load_default(size * SCALE)) / SCALE) + 1

    def bar(self, x: float, y: float, wide: float, color: str, high: int = BAR) -> None:
        if wide * SCALE >= 0.5:
            right = max(x * SCALE, (x + wide) * SCALE - 1)
            self._draw.rectangle((x * SCALE, y * SCALE, right, (y + high) * SCALE - 1), fill=color)

    def line(self, start: tuple[float, float], wide: float) -> None:
        x, y = start[0] * SCALE, start[1] * SCALE
        self._draw.line((x, y, x + wide * SCALE, y), fill=RULE, width=SCALE)
