"""``agssp-zoo pseudo-boxes DIR``: boxes where anomaly maps are high, as COCO and YOLO."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..data.recognise import FORMATS

_WRITTEN = ("coco", "yolo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``pseudo-boxes``."""
    parser.add_argument("maps", metavar="DIR", help="the maps, as `agssp-zoo anomaly-maps` wrote them")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="IMAGES",
        help="the images that the maps were made of, given as they were then (default: where they were then)",
    )
    parser.add_argument("--format", default="auto", choices=FORMATS, help="format of the data (default: auto)")
    parser.add_argument(
        "--quantile",
        type=float,
        metavar="Q",
        help="a threshold for each image, this quantile of its pixels, instead of one for each data set",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.1,
        help="a data set's threshold is the mean over its images of the map's maximum, minus this (default: 0.1)",
    )
    parser.add_argument("--most", type=int, default=10, help="boxes an image at most, the best (default: 10)")
    parser.add_argument("--iou", type=float, default=0.8, help="IoU above which a worse box is dropped (default: 0.8)")
    parser.add_argument("--out", metavar="FOLDER", help="where the boxes go (default: into DIR)")
    parser.add_argument("--write", nargs="+", default=_WRITTEN, choices=_WRITTEN, help="what to write (default: both)")
    parser.add_argument(
        "--visualize",
        type=int,
        nargs="?",
        const=24,
        default=0,
        metavar="N",
        help="draw this many images of each data set, too, and a sheet of them (default: 24)",
    )


def run(args: argparse.Namespace) -> int:
    """Makes, writes and prints the boxes; returns 0."""
    from .boxes import BoxSettings, box_statistics, pseudo_boxes
    from .boxes_files import write_coco, write_yolo
    from .store import MapStore

    settings = BoxSettings(quantile=args.quantile, margin=args.margin, most=args.most, iou=args.iou)
    store = MapStore.open(args.maps)
    images = pool_of(store, args.data, format=args.format)
    boxes = pseudo_boxes(store, images, settings)
    out = Path(args.out) if args.out else store.path
    written = []
    if "yolo" in args.write:
        written.append(write_yolo(boxes, out))
    if "coco" in args.write:
        written.append(write_coco(boxes, store, out))
    if args.visualize:
        from .visualize import write_pictures

        written += write_pictures(store, images, out / "pictures", boxes=boxes, limit=args.visualize)
    found = box_statistics(boxes)
    if args.json:
        summary = {"sources": found, "written": [str(path) for path in written]}
        sys.stdout.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(to_text(entry) for entry in found))
        shown = written if len(written) <= 4 else [*written[:3], f"and {len(written) - 3} more"]
        sys.stdout.write("\n".join(map(str, shown)) + "\n")
    return 0


def pool_of(store: Any, paths: list[str] | None, *, format: str = "auto") -> Any:
    """The images of a store: those below some paths, or below those that the maps were made of.

    Raises:
        DataError: they are not there, or none of them has a map.
        InvalidArgumentError: the store does not say where they are, and no path was given.
    """
    from dataclasses import replace

    from agssp_zoo.errors import DataError, InvalidArgumentError

    from ..data.problems import some
    from ..data.unlabelled import read_images

    paths = paths or store.settings.get("data")
    if not paths:
        raise InvalidArgumentError(f"{store.path} does not say where its images are; give them with --data.")
    images = read_images(paths, format=format)
    held = tuple(record for record in images if record.key in store)
    if not held:
        keys = some([record.key for record in images])
        raise DataError(
            f"{store.path}: has no maps of these {len(images)} images ({keys}); its keys are like "
            f"{some(list(store.keys))}. Give --data as it was given to anomaly-maps."
        )
    return replace(images, records=held)


def to_text(entry: dict[str, Any]) -> str:
    """The boxes of one data set in two lines."""
    limit = "one for each image" if entry["threshold"] is None else f"{entry['threshold']:.4f}"
    text = (
        f"{entry['source']}: threshold {limit}; {entry['with_boxes']} of {entry['images']} images have boxes, "
        f"{entry['without_boxes']} have none; {entry['boxes']} boxes, {entry['boxes_per_image']:.2f} an image\n"
    )
    if entry["side"]:
        sides = " / ".join(f"{value:.0f}" for value in entry["side"])
        shares = " / ".join(f"{value:.0%}" for value in entry["share_of_side"])
        text += f"  side of a box (quartiles): {sides} px, {shares} of the image's\n"
    return text
