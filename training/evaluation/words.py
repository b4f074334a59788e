"""Figures in plain language: what a threshold buys, what it costs, and how sure one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..data.problems import some
from .curves import ThresholdAdvice
from .metrics import ClassMetrics, Metrics


def number(value: float | None, digits: int = 3) -> str:
    """A figure with fixed digits; a dash where it has no meaning."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash where it has no meaning."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{100 * value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + " %"


def threshold(value: float | None) -> str:
    """A score threshold with the digits it needs."""
    return "–" if value is None else f"{value:.4g}"


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", "\u202f")


def summary(metrics: Metrics) -> str:
    """The result in two or three sentences."""
    with_boxes = len(metrics.classes) - len(metrics.classes_without_boxes)
    start = (
        f"Measured on {count(metrics.images, 'image')} with "
        f"{count(metrics.boxes, 'labelled box', 'labelled boxes')} of {count(with_boxes, 'class', 'classes')}"
    )
    if metrics.clean_images:
        start += f"; {count(metrics.clean_images, 'image')} of these without any label"
    parts = [start + "."]
    if not metrics.boxes:
        parts.append("Without labelled boxes there is nothing to find, so average precision has no meaning here.")
    elif not metrics.detections:
        parts.append("The model detected nothing at all, so every figure is zero.")
    else:
        point = metrics.best_f1
        parts.append(
            ("With one score threshold for all classes, " if len(metrics.classes) > 1 else "A score threshold of ")
            + f"{threshold(point.threshold)} balances best: the model then finds {percent(point.recall)} of the "
            f"labelled boxes and {percent(point.precision)} of its detections are right"
            + (" (means over the classes)." if with_boxes > 1 else ".")
        )
    return " ".join(parts)


def left_out(keys: Sequence[str], limit: int = 8) -> str:
    """Which images could not be read; empty where all could be."""
    if not keys:
        return ""
    verb = "is" if len(keys) == 1 else "are"
    return f"{count(len(keys), 'image')} cannot be read and {verb} left out: {some(keys, limit)}."


def caveats(metrics: Metrics) -> list[str]:
    """What a reader must know before trusting the figures; often nothing."""
    notes = []
    if metrics.classes_without_boxes:
        names = ", ".join(metrics.classes_without_boxes)
        plural = len(metrics.classes_without_boxes) > 1
        notes.append(
            f"This split has no labelled box of {names}: {'these classes are' if plural else 'this class is'} left out "
            f"of every mean, and nothing can be said about finding {'them' if plural else 'it'}."
        )
    if metrics.ignored_boxes:
        notes.append(
            f"{count(metrics.ignored_boxes, 'box', 'boxes')} left out (marked as crowd or difficult): neither missing "
            "one nor detecting something on it changes a figure."
        )
    if metrics.difficult_boxes:
        notes.append(
            f"{count(metrics.difficult_boxes, 'box is', 'boxes are')} marked difficult. Counted like all others, map50 "
            f"is {number(metrics.map50_counting_difficult)}; left out as Pascal VOC does (--ignore-difficult), it is "
            f"{number(metrics.map50_ignoring_difficult)}."
        )
    few = [c.name for c in metrics.classes if 0 < c.boxes < 20]
    if few:
        notes.append(
            f"Fewer than 20 labelled boxes: {', '.join(few)}. Take the figures of such a class as a rough guess."
        )
    return notes


def advice(entry: ClassMetrics, metrics: Metrics) -> str:
    """What the advised threshold of a class means, as sentences without the class's name."""
    given = entry.advice
    if not entry.boxes:
        return "no labelled box in this split, so no threshold can be advised."
    if given.threshold is None or given.missed is None:
        return f"not one detection, so all {count(entry.boxes, 'box', 'boxes')} are missed at any threshold."
    share = given.missed / entry.boxes
    costs = _costs(given, metrics)
    if not given.reachable:
        text = (
            f"a miss rate of {percent(given.miss_rate)} is out of reach. Even at the lowest threshold, "
            f"{threshold(given.threshold)}, {given.missed} of {count(entry.boxes, 'box', 'boxes')} are missed "
            f"({percent(share)}), with {costs}."
        )
        best = entry.best_f1
        if best.threshold is not None:
            text += (
                f" The best balance is at {threshold(best.threshold)}: {entry.boxes - best.found} missed, "
                f"{_rate(best.false_alarms / max(metrics.images, 1))}."
            )
        return text
    sure = (
        f"with this many boxes the true rate may lie anywhere from {percent(given.missed_low)} to "
        f"{percent(given.missed_high)}"
    )
    text = (
        f"set the threshold to {threshold(given.threshold)}. This misses {given.missed} of "
        f"{count(entry.boxes, 'box', 'boxes')} ({percent(share)}; {sure}) and costs {costs}."
    )
    if given.miss_rate > 0 and entry.boxes * given.miss_rate < 1:
        text += (
            f" {count(entry.boxes, 'box is', 'boxes are')} too few to check a rate of {percent(given.miss_rate)}: "
            f"label at least {math.ceil(1 / given.miss_rate - 1e-9)}."
        )
    return text


def _costs(given: ThresholdAdvice, metrics: Metrics) -> str:
    """False alarms of an advised threshold."""
    alarms = given.false_alarms_per_image
    if not alarms:
        return "no false alarms on these images"
    rate = _rate(alarms)
    if given.unprovoked_per_image:
        rate += f", of which {given.unprovoked_per_image:.2g} where no defect is labelled"
    else:
        rate += ", all of them on or beside labelled defects"
    if metrics.clean_images:
        clean = count(metrics.clean_images, "defect-free image")
        rate += f"; {given.clean_images_flagged} of {clean} would be stopped by it"
    return rate


def _rate(alarms: float) -> str:
    """False alarms an image."""
    if alarms == 0:
        return "no false alarms"
    text = f"{alarms:.3g} false alarms an image" if alarms >= 1 else f"{alarms:.2g} false alarms an image"
    return text if alarms > 0.5 else f"{text} (about one in {1 / alarms:,.0f} images)"
