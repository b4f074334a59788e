"""``agssp-zoo val``: measures a detector on a labelled split and writes the report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agssp_zoo.commands.options import image_size
from agssp_zoo.errors import InvalidArgumentError

if TYPE_CHECKING:
    from .metrics import Metrics
    from .runner import Validation

THRESHOLDS = "thresholds.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``agssp-zoo val``."""
    parser.add_argument("--data", required=True, help="the data set: a folder, a COCO file, a data.yaml, or shards")
    parser.add_argument("--model", required=True, help="a model's name or folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="where metrics.json and report.html go")
    parser.add_argument("--split", default="val", help="which part of the data (default: val; 'all' for everything)")
    parser.add_argument(
        "--val-fraction", type=float, default=0.0, metavar="SHARE",
        help="where the data have no split val: measure on this share of the images, drawn by the seed as by finetune",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of that choice, as finetune's (default: 0)")
    parser.add_argument("--format", default="auto", help="the data's format, where it is not recognised")
    parser.add_argument("--engine", default="auto", choices=("auto", "onnx", "pytorch", "openvino"))
    parser.add_argument("--device", default="cpu", help="where the model runs, e.g. cpu or cuda (default: cpu)")
    parser.add_argument(
        "--size", type=image_size, help="input size: N for the longer side, or WxH (default: the model's)"
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    parser.add_argument("--conf", type=float, default=0.001, help="lowest score that counts (default: 0.001)")
    parser.add_argument(
        "--iou", type=float, help="IoU above which overlapping boxes are dropped (default: the model's)"
    )
    parser.add_argument("--tile", type=image_size, metavar="N|WxH", help="cut images into tiles of so many pixels")
    parser.add_argument(
        "--overlap", type=float, default=0.2, help="share of a tile that the next covers too, with --tile (0.2)"
    )
    parser.add_argument("--tile-whole", action="store_true", help="look at the whole image besides its tiles")
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument(
        "--miss-rate", type=float, metavar="SHARE",
        help="write DIR/thresholds.json: for every class the highest threshold that misses at most this share of its "
        "boxes (the report advises for 0.05 by default)",
    )  # fmt: skip
    wish.add_argument(
        "--false-alarms", type=float, metavar="N",
        help="write DIR/thresholds.json: for every class the threshold that finds most with at most N false alarms an "
        "image",
    )  # fmt: skip
    parser.add_argument(
        "--max-det", type=int, default=100, metavar="N",
        help="the best N detections of a class in an image count for average precision (COCO: 100)",
    )  # fmt: skip
    parser.add_argument("--single-class", action="store_true", help="count every defect as one class")
    parser.add_argument(
        "--ignore-difficult", action="store_true", help="leave boxes marked difficult out, as Pascal VOC does"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="SHARE",
        help="accepted share of label errors, and of images that cannot be read, which are left out (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, default=6, metavar="N", help="how many best and worst images to show (default: 6)"
    )
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of a table")


def run(args: argparse.Namespace) -> int:
    """Evaluates, writes and prints; returns 0."""
    from ..data.places import check_out
    from .runner import validate
    from .settings import ValidationSettings
    from .thresholds import lines as threshold_lines
    from .thresholds import wished, write_thresholds
    from .words import left_out

    settings = ValidationSettings(
        engine=args.engine,
        device=args.device,
        size=args.size,
        batch=args.batch,
        conf=args.conf,
        iou=args.iou,
        tile=args.tile,
        overlap=args.overlap,
        tile_whole=args.tile_whole,
        miss_rate=ValidationSettings.miss_rate if args.miss_rate is None else args.miss_rate,
        max_det=args.max_det,
        single_class=args.single_class,
        ignore_difficult=args.ignore_difficult,
        tolerance=args.tolerance,
    )
    if args.images < 0:
        raise InvalidArgumentError(f"--images is {args.images}; it must be at least 0.")
    wish = wished(args.miss_rate, args.false_alarms)
    if wish is not None and args.single_class:
        raise InvalidArgumentError(
            "with --single-class no class can have a threshold of its own; leave one of them out."
        )
    check_out(Path(args.out))
    validation = validate(
        *(args.model, args.data),
        split=args.split,
        format=args.format,
        val_fraction=args.val_fraction,
        seed=args.seed,
        settings=settings,
    )
    figures, report = validation.save(args.out, gallery=args.images)
    outcomes = write_thresholds(Path(args.out) / THRESHOLDS, validation, wish) if wish else {}
    if args.json:
        from agssp_zoo.commands.options import print_json

        print_json(validation.to_dict())
        return 0
    lines = [
        *table(validation.metrics),
        *filter(None, [left_out(validation.about.unreadable)]),
        *advice(validation),
        f"{validation.about.ms_per_image:.1f} ms an image",
        f"{figures}",
        f"{report}",
    ]
    if wish:
        file = Path(args.out) / THRESHOLDS
        lines += [
            "",
            *threshold_lines(outcomes, wish),
            f"{file} (put it into a model: agssp-zoo thresholds MODEL {shlex.quote(str(file))})",
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def advice(validation: Validation) -> list[str]:
    """A line where a stricter suppression of overlapping boxes would score better."""
    from .suppression import WORTH

    stricter, metrics = validation.stricter, validation.metrics
    if stricter is None or not stricter.map50 >= metrics.map50 + WORTH:
        return []
    return [
        f"Of overlapping boxes of one class fewer should stay: with --iou {stricter.iou:g} map50 would be about "
        f"{stricter.map50:.3f}, map50_95 {stricter.map50_95:.3f}; `agssp-zoo thresholds MODEL --iou {stricter.iou:g}` "
        "makes it the model's own."
    ]


def table(metrics: Metrics) -> list[str]:
    """The figures as lines of text."""
    from .words import caveats, number, threshold

    rows = [["class", "images", "boxes", "AP50", "AP50_95", "threshold", "precision", "recall"]]
    for entry in metrics.classes:
        point = entry.best_f1
        rows.append(
            [entry.name, str(entry.images), str(entry.boxes), number(entry.ap50), number(entry.ap50_95),
             threshold(point.threshold), number(point.precision), number(point.recall)]
        )  # fmt: skip
    point = metrics.best_f1
    rows.append(
        ["all", str(metrics.images), str(metrics.boxes), number(metrics.map50), number(metrics.map50_95),
         threshold(point.threshold), number(point.precision), number(point.recall)]
    )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [*lines, *caveats(metrics)]
