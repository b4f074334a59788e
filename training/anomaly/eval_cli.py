"""``agssp-zoo anomaly-eval DIR --data DATA``: measures anomaly maps against masks and boxes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from agssp_zoo.errors import InvalidArgumentError

from ..data.recognise import FORMATS

_ROWS = (
    ("pixels", ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro")),
    ("images", ("image_auroc", "image_ap", "image_f1")),
    ("boxes", ("box_recall_10", "box_recall_30", "box_recall_50", "box_mean_iou", "box_precision_10")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``anomaly-eval``."""
    parser.add_argument("maps", metavar="DIR", help="the maps, as `agssp-zoo anomaly-maps` wrote them")
    parser.add_argument("--data", required=True, help="the labelled images; masks are found beside them")
    formats = [name for name in FORMATS if name != "images"]  # without labels nothing can be measured
    parser.add_argument("--format", default="auto", choices=formats, help="format of the labels (default: auto)")
    parser.add_argument("--split", default="all", help="which images (default: all that there are maps of)")
    parser.add_argument("--exclude", metavar="FILE", help="names of images to leave out, one a line")
    parser.add_argument(
        "--quantile", type=float, metavar="Q", help="pseudo-boxes above this quantile of each image's own map"
    )
    parser.add_argument("--out", metavar="FILE", help="write the figures to this JSON file, too")
    parser.add_argument("--json", action="store_true", help="print JSON for a machine to read")


def run(args: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 0."""
    from agssp_zoo.folder import write_text

    from ..data.recognise import read_dataset
    from .boxes import BoxSettings
    from .evaluate import evaluate_maps
    from .layout import writing
    from .store import MapStore

    out = Path(args.out) if args.out else None
    if out is not None and out.is_dir():
        raise InvalidArgumentError(f"--out {out} is a folder; give a file.")
    settings = BoxSettings(quantile=args.quantile)
    store = MapStore.open(args.maps)
    dataset = read_dataset(args.data, format=args.format).split(args.split)
    if args.exclude:
        from ..data.unlabelled import read_images

        kept = {record.key for record in read_images(args.data, exclude=args.exclude)}
        dataset = replace(dataset, records=tuple(record for record in dataset if record.key in kept))
    figures = {
        "maps": str(store.path),
        "data": str(args.data),
        "split": args.split,
        "method": store.settings.get("method"),
        **evaluate_maps(store, dataset, boxes=settings),
    }
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, text)
    sys.stdout.write(text if args.json else to_text(figures))
    return 0


def to_text(figures: dict[str, Any]) -> str:
    """The figures as lines for a person."""
    lines = [
        f"{figures['images']} images with maps, {figures['left_out']} without; {figures['with_mask']} masks, "
        f"{figures['normal']} images free of defects"
    ]
    if figures["given_as_normal"]:
        lines.append(f"{figures['given_as_normal']} images that the method was given as normal are left out")
    for title, keys in _ROWS:
        known = [
            f"{key.removeprefix(title[:-1] + '_').removeprefix('box_')} {figures[key]:.4f}"
            for key in keys
            if key in figures
        ]
        if known:
            lines.append(f"{title}: " + ", ".join(known))
    if "pixel_auroc" not in figures:
        lines.append("pixels: not measured, there are no masks")
    if "image_auroc" not in figures:
        kind = "free of defects" if not figures["normal"] else "defective"
        lines.append(f"images: not measured, none of them is {kind}")
    if "true_boxes" in figures:
        lines.append(f"{figures['true_boxes']} true boxes; {figures['boxes_per_image']:.1f} pseudo-boxes an image")
    for source, part in figures.get("sources", {}).items():
        known = [f"{key} {part[key]:.4f}" for key in ("pixel_auroc", "pixel_ap", "aupro", "image_auroc") if key in part]
        lines.append(f"  {source}: {part['images']} images; " + (", ".join(known) or "not measured"))
    return "\n".join(lines) + "\n"
