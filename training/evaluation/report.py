"""The report: one HTML file that opens by itself, without network, script or other files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from agssp_zoo.errors import InvalidArgumentError

from . import sections
from .about import About
from .gallery import LoadImage, Look
from .inputs import GroundTruthLike, PredictionLike
from .metrics import Metrics
from .style import CSS


def write_report(
    path: str | os.PathLike[str],
    metrics: Metrics,
    *,
    about: About | None = None,
    ground_truth: Sequence[GroundTruthLike] | None = None,
    predictions: Sequence[PredictionLike] | None = None,
    load_image: LoadImage | None = None,
    image_names: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    gallery: int = 6,
) -> Path:
    """Writes the HTML report, complete or not at all.

    Args:
        path: the file to write.
        metrics: from :func:`evaluate`.
        about: what the evaluation was made of.
        ground_truth: what was evaluated; with the next two, the best and worst images are drawn.
        predictions: the detections evaluated.
        load_image: index -> the image, uint8 (H, W, 3) RGB.
        image_names: what the images are called; their numbers if left out.
        colors: a colour ``#rrggbb`` a class; those of ``Detections.plot`` if left out.
        gallery: how many best and how many worst images to draw.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: too few colours, or the images do not fit the metrics.
    """
    if colors is None:
        colors = class_colors(len(metrics.classes))
    if len(colors) < len(metrics.classes):
        raise InvalidArgumentError(f"{len(colors)} colours for {len(metrics.classes)} classes; give one a class.")
    look = Look(metrics.class_names, colors)
    cards = ""
    if ground_truth is not None and predictions is not None and load_image is not None and gallery > 0:
        if not len(ground_truth) == len(predictions) == metrics.images:
            raise InvalidArgumentError("write_report: give the ground truth and predictions that were evaluated.")
        names = image_names or [f"image {index}" for index in range(metrics.images)]
        cards = sections.gallery(metrics, ground_truth, predictions, load_image, names, look, gallery)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".tmp")
    try:
        beside.write_text(render(metrics, about or About(), look, cards), encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def class_colors(count: int) -> list[str]:
    """The colours that ``Detections.plot`` gives the classes, as ``#rrggbb``."""
    from agssp_zoo.plotting import class_color

    return ["#" + "".join(f"{channel:02x}" for channel in class_color(label)) for label in range(count)]


def render(metrics: Metrics, about: About, look: Look, cards: str) -> str:
    """The whole document."""
    title = f"{about.model or 'Detector'} on {_data_name(about)}"
    parts = [
        ("result", "Result", sections.result(metrics, about)),
        ("classes", "Classes", sections.classes(metrics, look)),
        ("thresholds", "Which threshold?", sections.thresholds(metrics, look)),
        ("curves", "Curves", sections.curves(metrics, look)),
        ("errors", "Errors", sections.errors(metrics, look)),
        ("images", "Images", cards),
        ("made", "How this was made", sections.made(metrics, about)),
    ]
    created = f" · {about.created}" if about.created else ""
    return page(title, f"Detection report{created}", parts)


def page(title: str, subtitle: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """A document of sections, which needs nothing else to be shown.

    Args:
        title: plain text.
        subtitle: plain text below it.
        parts: name of the anchor, heading and HTML of each section; empty ones are left out, and the first one has no
            heading of its own.
    """
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{ident}">{heading}</a>' for ident, heading, _ in parts[1:])
    body = "".join(
        f'<section id="{ident}">{f"<h2>{heading}</h2>" if number else ""}{content}</section>'
        for number, (ident, heading, content) in enumerate(parts)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or the browser asks the server for one
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f'<p class="sub">{escape(subtitle)}</p>'
        f"<nav>{links}</nav>{body}</body></html>\n"
    )


def _data_name(about: About) -> str:
    name = Path(about.data).name if about.data else "a data set"
    return f"{name}, split {about.split}" if about.split else name
