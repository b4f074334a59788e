"""``agssp-zoo pseudo-boxes DIR``: boxes where anomaly maps are high, as COCO and YOLO."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import DataError, InvalidArgumentError

from ..data.recognise import FORMATS

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from .store import MapStore

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
        help="a threshold for each image, this quantile of its pixels, instead of one for each data set by --margin",
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
        help="draw N images of each data set, too (24 without a number), and a sheet of them",
    )


def run(args: argparse.Namespace) -> int:
    """Makes, writes and prints the boxes; returns 0."""
    from .boxes import BoxSettings, box_statistics, pseudo_boxes
    from .boxes_files import write_coco, write_yolo
    from .store import MapStore

    if args.visualize < 0:
        raise InvalidArgumentError(f"--visualize is {args.visualize}; it must be at least 0.")
    if args.format != "auto" and not args.data:
        raise InvalidArgumentError("--format is of the images that --data names; give that, too.")
    settings = BoxSettings(quantile=args.quantile, margin=args.margin, most=args.most, iou=args.iou)
    store = MapStore.open(args.maps)
    images = find_images(store, args.data or (), format=args.format)
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


def find_images(store: MapStore, paths: Sequence[str] = (), *, format: str = "auto") -> Dataset:
    """The images of a store: those below some paths, else those that its maps were made of, where they were then.

    Raises:
        DataError: none of them has a map, or they are no longer there.
    """
    from ..data.dataset import Dataset
    from ..data.problems import some
    from ..data.records import Record, empty_labels
    from ..data.text import read_json
    from ..data.unlabelled import read_images
    from .layout import read_store_file

    if paths:
        images = read_images(paths, format=format)
        held = tuple(record for record in images if record.key in store)
        if held:
            return replace(images, records=held)
        raise DataError(
            f"{store.path}: has no maps of these {len(images)} images ({some([r.key for r in images])}); its keys are "
            f"like {some(list(store.keys))}. Give --data as it was given to anomaly-maps."
        )
    described = read_json(store.path / (read_store_file(store.path) or {})["files"]["keys"])
    rows = list(zip(described["keys"], described["paths"], described["sizes"], strict=True))
    packed = [key for key, path, _ in rows if not path]
    if packed:
        raise DataError(
            f"{store.path}: {len(packed)} of its {len(rows)} images were read from shards ({some(packed)}), and maps "
            "do not say where those are; name them with --data."
        )
    gone = [path for _, path, _ in rows if not Path(path).is_file()]
    if gone:
        raise DataError(
            f"{store.path}: {len(gone)} of its {len(rows)} images are not where they were ({some(gone)}); say with "
            "--data where they are."
        )
    records = [Record(key, path, "train", size[0], size[1], *empty_labels()) for key, path, size in rows]
    return Dataset((), tuple(records), (), "", "images")


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
