"""Small line plots as SVG text: axes, lines, markers and a legend; no library, no script, sharp in print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

PLOT_WIDTH, PLOT_HEIGHT = 360, 300
LEFT, TOP, BOTTOM = 56, 14, 46
LEGEND_ROW = 16
DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Line styles; with more classes than clearly different colours the style tells neighbours apart."""


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        low: value at its start.
        high: value at its end.
        ticks: where it carries numbers.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the start, 1 at the end; values outside stop at the ends."""
        if self.log:
            value = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            value = (value - self.low) / (self.high - self.low)
        return min(max(value, 0.0), 1.0)


UNIT = Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


@dataclass
class Plot:
    """A plot being drawn; :meth:`render` gives the SVG.

    Attributes:
        title: read by screen readers.
        x_label: what the horizontal axis shows, with its unit.
        y_label: what the vertical axis shows.
        x: the horizontal axis.
        y: the vertical axis.
    """

    title: str
    x_label: str
    y_label: str
    x: Scale = UNIT
    y: Scale = UNIT
    _body: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str, float]] = field(default_factory=list)

    def line(
        self,
        points: Iterable[tuple[float, float]],
        color: str,
        *,
        name: str = "",
        width: float = 1.6,
        dash: str = "",
        steps: bool = False,
    ) -> None:
        """Draws a line through (x, y) values; with a name it appears in the legend."""
        placed = thin([self._at(x, y) for x, y in points])
        if placed:
            text = f"M{placed[0][0]:.1f},{placed[0][1]:.1f}"
            for x, y in placed[1:]:
                text += f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f},{y:.1f}"
            tip = f"<title>{escape(name)}</title>" if name else ""
            self._body.append(
                f'<path d="{text}" fill="none" stroke="{color}" stroke-width="{width}"{_dash(dash)} '
                f'stroke-linejoin="round">{tip}</path>'
            )
        if name:
            self._legend.append((name, color, dash, width))

    def vertical(self, x: float, label: str) -> None:
        """A thin dashed line at x, with its label at the top, on the side where there is room."""
        at = self._at(x, self.y.low)[0]
        left = self.x.place(x) > 0.6
        self._body.append(
            f'<path d="M{at:.1f},{TOP}V{TOP + PLOT_HEIGHT}" class="mark"/>'
            f'<text x="{at + (-5 if left else 5):.1f}" y="{TOP + 13}" class="note"'
            f' text-anchor="{"end" if left else "start"}">{escape(label)}</text>'
        )

    def horizontal(self, y: float, label: str) -> None:
        """A thin dashed line at y, with its label at the left."""
        at = self._at(self.x.low, y)[1]
        self._body.append(
            f'<path d="M{LEFT},{at:.1f}h{PLOT_WIDTH}" class="mark"/>'
            f'<text x="{LEFT + 6}" y="{at - 5:.1f}" class="note">{escape(label)}</text>'
        )

    def dot(self, x: float, y: float, color: str, tip: str) -> None:
        """A point with a tip that appears under the mouse."""
        px, py = self._at(x, y)
        self._body.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.6" fill="{color}" stroke="#fff" stroke-width="1">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def render(self) -> str:
        """The plot as an ``<svg>`` element; the legend stands below it in columns."""
        longest = max((len(name) for name, *_ in self._legend), default=0)
        columns = 1 if longest > 26 and len(self._legend) <= 8 else 2
        rows = math.ceil(len(self._legend) / columns)
        width = LEFT + PLOT_WIDTH + 14
        height = TOP + PLOT_HEIGHT + BOTTOM + rows * LEGEND_ROW + (8 if rows else 0)
        return (
            f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.title)}">'
            f"{self._axes()}{''.join(self._body)}{self._legend_rows(columns)}</svg>"
        )

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return LEFT + PLOT_WIDTH * self.x.place(x), TOP + PLOT_HEIGHT * (1 - self.y.place(y))

    def _axes(self) -> str:
        parts = []
        for tick in self.x.ticks:
            at = self._at(tick, self.y.low)[0]
            parts.append(
                f'<path d="M{at:.1f},{TOP}v{PLOT_HEIGHT}" class="grid"/>'
                f'<text x="{at:.1f}" y="{TOP + PLOT_HEIGHT + 16}" class="tick" text-anchor="middle">{tick:g}</text>'
            )
        for tick in self.y.ticks:
            at = self._at(self.x.low, tick)[1]
            parts.append(
                f'<path d="M{LEFT},{at:.1f}h{PLOT_WIDTH}" class="grid"/>'
                f'<text x="{LEFT - 7}" y="{at + 4:.1f}" class="tick" text-anchor="end">{tick:g}</text>'
            )
        middle = TOP + PLOT_HEIGHT / 2
        parts.append(
            f'<rect x="{LEFT}" y="{TOP}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" class="frame"/>'
            f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{TOP + PLOT_HEIGHT + 36}" class="axis" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text transform="translate(15 {middle}) rotate(-90)" class="axis" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join(parts)

    def _legend_rows(self, columns: int) -> str:
        rows = math.ceil(len(self._legend) / columns) or 1
        wide = (LEFT + PLOT_WIDTH) / columns
        parts = []
        for index, (name, color, dash, width) in enumerate(self._legend):
            x = 10 + (index // rows) * wide
            y = TOP + PLOT_HEIGHT + BOTTOM + 12 + (index % rows) * LEGEND_ROW
            room = int(wide / 6.2) - 5
            parts.append(
                f'<path d="M{x},{y - 4}h24" fill="none" stroke="{color}" stroke-width="{width + 0.6}"{_dash(dash)}/>'
                f'<text x="{x + 30}" y="{y}" class="tick">{escape(shorten(name, room))}</text>'
            )
        return "".join(parts)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leaves out points that lie within a third of a pixel of the last one kept (a curve of 50,000 scores)."""
    kept: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(points):
        last = index == len(points) - 1
        if not kept or last or abs(x - kept[-1][0]) > 0.35 or abs(y - kept[-1][1]) > 0.35:
            kept.append((x, y))
    return kept


def shorten(text: str, length: int) -> str:
    """The text, its middle left out where it is longer than ``length`` characters (a trailing figure stays)."""
    if len(text) <= length:
        return text
    tail = max(length // 3, 1)
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def luminance(color: str) -> float:
    """Relative luminance of a ``#rrggbb`` colour, 0 (black) to 1 (white), as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _dash(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""
