"""Curves and pictures inside an HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from ..evaluation.plots import line_color, line_style
from ..evaluation.report import class_colors
from ..evaluation.svg import UNIT, Plot, Scale

Row = Mapping[str, float]


def figures(plots: Sequence[tuple[str, str, str]]) -> str:
    """Plots beside each other; each has a name, SVG and a line of text."""
    cells = "".join(
        f'<figure><h3>{name}</h3>{svg}<p class="soft">{escape(text)}</p></figure>' for name, svg, text in plots
    )
    return f'<div class="plots">{cells}</div>'


def curves(title: str, label: str, rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Columns over the epochs, as SVG.

    Args:
        title: read by screen readers.
        label: of the vertical axis.
        rows: a row an epoch.
        columns: what is drawn; all but the epoch if left out.
    """
    columns = columns or [name for name in rows[0] if name != "epoch"]
    values = [row[name] for row in rows for name in columns if math.isfinite(row.get(name, math.nan))]
    y = Scale(0.0, *_axis(max([*values, 0.0])))
    plot = Plot(title, "epoch", label, Scale(0.0, *_axis(max(row["epoch"] for row in rows), whole=True)), y)
    colors = class_colors(len(columns))
    for number, name in enumerate(columns):
        points = [(row["epoch"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        color = line_color(colors[number])
        plot.line(points, color, name=name.replace("_loss", ""), dash=line_style(number))
        if len(points) == 1:
            plot.dot(*points[0], color, f"{name} {points[0][1]:.4g}")
    return plot.render()


def _axis(highest: float, *, whole: bool = False) -> tuple[float, tuple[float, ...]]:
    """End and ticks of an axis from 0 that holds a value; steps are 1, 2 or 5 times a power of ten."""
    if not highest > 0:
        return UNIT.high, UNIT.ticks
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= highest)
    step = max(1.0, step) if whole else step
    count = math.ceil(round(highest / step, 6))
    return step * count, tuple(round(step * number, 9) for number in range(count + 1))


def picture(image: Image.Image, text: str) -> str:
    """A picture inside the page, as JPEG; ``text`` is what screen readers say."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{encoded}" width="{image.width}" height="{image.height}" '
        f'style="max-width:100%;height:auto" alt="{escape(text)}">'
    )
