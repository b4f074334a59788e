"""``agssp-zoo pack DATA --out DIR``: a data set as WebDataset shards that are read by index, locally or by URL."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import Any

from agssp_zoo.errors import InvalidArgumentError

from .pack import IMAGE_FORMATS, PackSettings, pack
from .problems import some
from .recognise import FORMATS, read_dataset
from .shards import INDEX_NAME

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``pack``."""
    parser.add_argument("data", help="folder of labelled images, COCO .json, or data.yaml")
    parser.add_argument("--out", required=True, help="folder to write; an interrupted packing there is gone on with")
    parser.add_argument("--labels", default="auto", choices=FORMATS, help="format of the labels (default: auto)")
    parser.add_argument("--size", type=int, default=0, help="scale images down to this longer side (default: keep)")
    parser.add_argument(
        "--format",
        default="original",
        choices=IMAGE_FORMATS,
        help="format of the images; original keeps JPEG, PNG and WebP as they are (default)",
    )
    parser.add_argument("--quality", type=int, default=95, help="of JPEG and WebP, 1-100 (default: 95)")
    parser.add_argument("--shard-size", default="256M", help="bytes of a shard, as 64M or 1G (default: 256M)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="share of errors and unreadable images accepted (0)"
    )
    parser.add_argument("--val-fraction", type=float, help="where there is no split val: make one of this share, 0-1")
    parser.add_argument("--seed", type=int, default=0, help="of that split (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Runs ``pack``."""
    if not 0.0 <= args.tolerance <= 1.0:
        raise InvalidArgumentError(f"--tolerance is {args.tolerance}; it must lie in 0-1.")
    if args.val_fraction is None and args.seed:
        raise InvalidArgumentError("--seed is of the split that --val-fraction makes; give that, too.")
    settings = PackSettings(
        size=args.size, format=args.format, quality=args.quality, shard_size=parse_size(args.shard_size)
    )
    dataset = read_dataset(args.data, format=args.labels)
    if args.val_fraction is not None:
        dataset = dataset.with_val(args.val_fraction, args.seed)
    folder = pack(dataset, args.out, settings, tolerance=args.tolerance)
    index = json.loads((folder / INDEX_NAME).read_bytes())
    size = sum(shard["size"] for shard in index["shards"])
    images, left_out = len(index["samples"]), index.get("left_out", [])
    if args.json:
        summary: dict[str, Any] = {"path": str(folder), "images": images, "shards": index["shards"], "bytes": size}
        if left_out:
            summary["left_out"] = left_out
        print(json.dumps(summary, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        counts = Counter(sample["split"] for sample in index["samples"])
        splits = ", ".join(f"{name} {counts[name]}" for name in dataset.splits)
        sys.stdout.write(f"{folder}: {images} images ({splits}), {len(index['shards'])} shards, {size} bytes\n")
        if left_out:
            sys.stdout.write(f"{len(left_out)} images cannot be read and are left out: {some(left_out)}\n")
    return 0


def parse_size(text: str) -> int:
    """Bytes from a number with an optional k, M or G (powers of 1000).

    Raises:
        InvalidArgumentError: it is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise InvalidArgumentError(f"--shard-size is {text!r}; give bytes, or a number with k, M or G.")
    return int(float(match[1]) * _UNITS[match[2]])
