"""The report's plots: precision and recall, F1, misses against false alarms, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from .metrics import Metrics
from .quick import RECALL_POINTS
from .svg import DASHES, UNIT, Plot, Scale, luminance, shorten
from .words import percent

MEAN_COLOR = "#111"
CONFUSION_COLOR = (23, 92, 164)
FALSE_ALARM_COLOR = (190, 86, 20)


def line_color(color: str) -> str:
    """The colour, darkened until a line of it stands out on white (contrast of at least 2.6 to 1, WCAG)."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    while luminance(color) > 0.35:
        channels = [round(channel * 0.95) for channel in channels]
        color = "#" + "".join(f"{channel:02x}" for channel in channels)
    return color


def line_style(label: int, distinct: int = 10) -> str:
    """The dash pattern of a class: the colours' neighbours repeat after ``distinct`` classes."""
    return DASHES[(label // distinct) % len(DASHES)]


def precision_recall(metrics: Metrics, colors: Sequence[str]) -> str:
    """Precision over recall at IoU 0.50, one line a class with labelled boxes, and their mean."""
    plot = Plot(
        "Precision over recall", "recall (share of labelled boxes found)", "precision (share of detections right)"
    )
    rated = [label for label, c in enumerate(metrics.classes) if c.boxes]
    for label in rated:
        name = f"{metrics.classes[label].name}  {metrics.classes[label].ap50:.3f}"
        curve = zip(RECALL_POINTS.tolist(), metrics.precision[:, label].tolist(), strict=True)
        plot.line(curve, line_color(colors[label]), name=name, dash=line_style(label))
    if len(rated) > 1:
        mean = metrics.precision[:, rated].mean(axis=1)
        plot.line(
            zip(RECALL_POINTS.tolist(), mean.tolist(), strict=True),
            MEAN_COLOR,
            name=f"mean  {metrics.map50:.3f}",
            width=2.8,
        )
    return plot.render()


def score_scale(metrics: Metrics) -> Scale:
    """The axis of score thresholds: up to 1, or less when all scores are low (a model that has hardly learnt)."""
    highest = max((float(c.scores[0]) for c in metrics.curves if len(c.scores)), default=1.0)
    high = next(limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if highest <= limit or limit == 1.0)
    return Scale(0.0, high, tuple(round(high * share, 6) for share in UNIT.ticks))


def f1_over_threshold(metrics: Metrics, colors: Sequence[str]) -> str:
    """F1 over the score threshold, one line a class, their mean, and the common threshold."""
    x = score_scale(metrics)
    plot = Plot("F1 over the score threshold", "score threshold", f"F1 (at IoU {metrics.iou:g})", x)
    grid = np.linspace(0.0, x.high, 401)
    rated = [curve for curve in metrics.curves if curve.boxes]
    lines = [np.append(curve.f1, 0.0)[curve.above(grid)] for curve in rated]
    for curve, values in zip(rated, lines, strict=True):
        best = metrics.classes[curve.label].best_f1
        name = f"{metrics.classes[curve.label].name}  {best.f1 or 0.0:.2f}"
        plot.line(
            zip(grid.tolist(), values.tolist(), strict=True),
            line_color(colors[curve.label]),
            name=name,
            dash=line_style(curve.label),
        )
    if len(rated) > 1:
        mean = np.mean(lines, axis=0)
        plot.line(
            zip(grid.tolist(), mean.tolist(), strict=True),
            MEAN_COLOR,
            name=f"mean  {metrics.best_f1.f1 or 0.0:.2f}",
            width=2.8,
        )
    if metrics.best_f1.threshold is not None:
        plot.vertical(metrics.best_f1.threshold, f"best mean F1 at {metrics.best_f1.threshold:.3g}")
    return plot.render()


def precision_and_recall_over_threshold(metrics: Metrics) -> str:
    """Precision and recall of all classes together over the score threshold."""
    x = score_scale(metrics)
    plot = Plot("Precision and recall over the score threshold", "score threshold", "share", x)
    grid = np.linspace(0.0, x.high, 401)
    found, wrong = np.zeros(len(grid)), np.zeros(len(grid))
    for curve in metrics.curves:
        found += np.append(curve.found, 0)[curve.above(grid)]
        wrong += np.append(curve.false_alarms, 0)[curve.above(grid)]
    any_left = found + wrong > 0
    precision = found / np.maximum(found + wrong, 1)
    plot.line(
        zip(grid[any_left].tolist(), precision[any_left].tolist(), strict=True),
        "#175ca4",
        name="precision: share of the detections that are right",
        width=2.4,
    )
    plot.line(
        zip(grid.tolist(), (found / max(metrics.boxes, 1)).tolist(), strict=True),
        "#be5614",
        name="recall: share of the labelled boxes that are found",
        width=2.4,
    )
    if metrics.best_f1.threshold is not None:
        plot.vertical(metrics.best_f1.threshold, f"best mean F1 at {metrics.best_f1.threshold:.3g}")
    return plot.render()


def misses_over_false_alarms(metrics: Metrics, colors: Sequence[str]) -> str:
    """Share of missed boxes over false alarms an image, one line a class; a dot marks the advised threshold."""
    images = max(metrics.images, 1)
    highest = max((c.false_alarms[-1] / images for c in metrics.curves if c.boxes and len(c.found)), default=1.0)
    decades = range(-3, max(0, math.ceil(math.log10(max(highest, 1.0)))) + 1)
    x = Scale(10.0**-3, 10.0 ** decades[-1], tuple(10.0**d for d in decades), log=True)
    plot = Plot("Misses over false alarms", "false alarms an image", "share of labelled boxes missed", x, UNIT)
    for curve in metrics.curves:
        if not curve.boxes or not len(curve.found):
            continue
        points = zip((curve.false_alarms / images).tolist(), (1 - curve.recall).tolist(), strict=True)
        entry = metrics.classes[curve.label]
        # From everything missed at the left edge; a step, for between two scores nothing changes.
        start = (x.low, 1.0)
        color, dash = line_color(colors[curve.label]), line_style(curve.label)
        plot.line([start, *points], color, name=entry.name, dash=dash, steps=True)
    for curve in metrics.curves:
        advice = metrics.classes[curve.label].advice
        if advice.threshold is not None and advice.missed is not None:
            plot.dot(
                advice.false_alarms_per_image,
                advice.missed / advice.boxes,
                line_color(colors[curve.label]),
                f"{metrics.classes[curve.label].name}: threshold {advice.threshold:.3g}",
            )
    if metrics.classes:
        wanted = metrics.classes[0].advice.miss_rate
        plot.horizontal(wanted, f"wanted: at most {percent(wanted)} missed")
    return plot.render()


def false_alarms_over_threshold(metrics: Metrics, colors: Sequence[str]) -> str:
    """False alarms an image over the score threshold, one line a class; for images without defects."""
    images = max(metrics.images, 1)
    highest = max((c.false_alarms[-1] / images for c in metrics.curves if len(c.found)), default=1.0)
    decades = range(-3, max(0, math.ceil(math.log10(max(highest, 1.0)))) + 1)
    y = Scale(10.0**-3, 10.0 ** decades[-1], tuple(10.0**d for d in decades), log=True)
    x = score_scale(metrics)
    plot = Plot("False alarms over the score threshold", "score threshold", "false alarms an image", x, y)
    grid = np.linspace(0.0, x.high, 401)
    for curve in metrics.curves:
        rate = np.append(curve.false_alarms, 0)[curve.above(grid)] / images
        points = [(t, r) for t, r in zip(grid.tolist(), rate.tolist(), strict=True) if r > 0]
        name = metrics.classes[curve.label].name
        plot.line(points, line_color(colors[curve.label]), name=name, dash=line_style(curve.label))
    return plot.render()


def confusion(metrics: Metrics) -> str:
    """The confusion matrix: rows are labelled classes, columns detected ones; colour is the share of the row."""
    matrix, names = metrics.confusion.matrix, metrics.class_names
    size = len(names) + 1
    cell: float = 46 if size <= 9 else 34 if size <= 14 else 27
    font = 13 if size <= 9 else 11 if size <= 14 else 9.5
    limit = 20
    labels = [shorten(name, limit) for name in names]
    longest = max(len(text) for text in [*labels, "not detected"])
    left, top = 36 + int(longest * 6.6), 30 + int(longest * 5.2)
    width, height = left + size * cell + int(longest * 4.0) + 8, top + size * cell + 8
    parts = []
    rows = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share = matrix / rows
    for row in range(size):
        for column in range(size):
            if row == column == size - 1:
                continue
            count = int(matrix[row, column])
            value = float(share[row, column])
            alarm = row == size - 1
            x, y = left + column * cell, top + row * cell
            tip = _cell_tip(names, row, column, count, int(matrix[row].sum()))
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" class="cell" '
                f'fill="{_shade(value, FALSE_ALARM_COLOR if alarm else CONFUSION_COLOR)}"><title>{escape(tip)}</title>'
                "</rect>"
            )
            if count:
                ink = "#fff" if value > 0.55 else "#111"
                parts.append(
                    f'<text x="{x + cell / 2}" y="{y + cell / 2 + font * 0.36:.1f}" font-size="{font}" fill="{ink}" '
                    f'text-anchor="middle" pointer-events="none">{count}</text>'
                )
    for index, name in enumerate([*labels, "no label"]):
        y = top + index * cell + cell / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{y}" class="tick" text-anchor="end">{escape(name)}</text>')
    for index, name in enumerate([*labels, "not detected"]):
        x = left + index * cell + cell / 2 + 3
        parts.append(f'<text transform="translate({x} {top - 8}) rotate(-45)" class="tick">{escape(name)}</text>')
    parts.append(
        f'<rect x="{left}" y="{top}" width="{size * cell}" height="{size * cell}" class="frame"/>'
        f'<path d="M{left},{top + (size - 1) * cell}h{size * cell}M{left + (size - 1) * cell},{top}v{size * cell}" '
        'class="divide"/>'
        f'<text transform="translate(14 {top + size * cell / 2}) rotate(-90)" class="axis" text-anchor="middle">'
        "labelled as</text>"
        f'<text x="{left + size * cell / 2}" y="14" class="axis" text-anchor="middle">detected as</text>'
    )
    return (
        f'<svg class="confusion" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="Confusion matrix">{"".join(parts)}</svg>'
    )


def _cell_tip(names: Sequence[str], row: int, column: int, count: int, total: int) -> str:
    if row == len(names):
        return f"{count} of {total} false alarms were detected as {names[column]} where no box of any class was left"
    share = f" ({count / total:.1%})" if total else ""
    if column == len(names):
        return f"{count} of {total} boxes of {names[row]}{share} were not detected"
    return f"{count} of {total} boxes of {names[row]}{share} were detected as {names[column]}"


def _shade(value: float, color: tuple[int, int, int]) -> str:
    """From white to the colour."""
    mixed = [round(255 + (channel - 255) * min(max(value, 0.0), 1.0) ** 0.8) for channel in color]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
