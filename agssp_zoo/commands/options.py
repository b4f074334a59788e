"""Arguments that several sub-commands share, and how values print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agssp_zoo.detector import Detector


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how the Hub is asked; read back by :func:`hub_options`."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--revision", help="commit, branch or tag instead of the one that the registry pins")
    group.add_argument("--cache-dir", metavar="DIR", help="cache folder (default: huggingface_hub's)")
    group.add_argument("--token", help="access token (default: HF_TOKEN, or the one of `hf auth login`)")
    group.add_argument("--local-files-only", action="store_true", help="use only what lies on this machine")
    group.add_argument("--force-download", action="store_true", help="download even what is in the cache")


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords ``**hub`` of ``load_detector`` and ``resolve``."""
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    return {name: getattr(args, name) for name in names}


def add_detecting_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds how a detector looks at images; read back by :func:`detecting_options`. Returns their group."""
    group = parser.add_argument_group("detecting (defaults: the model's own)")
    group.add_argument("--conf", type=float, metavar="SCORE", help="keep detections with a score above this, 0-1")
    group.add_argument("--iou", type=float, help="of boxes overlapping more than this keep the best one, 0-1")
    group.add_argument("--max-det", type=int, metavar="N", help="at most N detections an image")
    group.add_argument("--size", type=image_size, metavar="N|WxH", help="longer side, or a fixed canvas, in pixels")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="images run together (default: 1)")
    group.add_argument("--tile", type=image_size, metavar="N|WxH", help="cut images into tiles of so many pixels")
    group.add_argument(
        "--overlap", type=float, default=0.2, help="share of a tile that the next covers too, with --tile (0.2)"
    )
    group.add_argument("--tile-whole", action="store_true", help="look at the whole image besides its tiles")
    return group


def detecting_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of ``Detector.stream``."""
    names = ("conf", "iou", "max_det", "size", "batch", "tile", "overlap", "tile_whole")
    return {name: getattr(args, name) for name in names}


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which detector runs where; :func:`load` loads it."""
    group = parser.add_argument_group("running")
    group.add_argument("--engine", choices=("auto", "onnx", "pytorch", "openvino"), default="auto")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    group.add_argument(
        "--provider", action="append", help="ONNX Runtime execution provider instead of --device; may be repeated"
    )
    add_hub_arguments(parser)


def load(args: argparse.Namespace) -> Detector:
    """The detector that was asked for."""
    from agssp_zoo.detector import load_detector

    return load_detector(
        args.model, engine=args.engine, device=args.device, providers=args.provider, **hub_options(args)
    )


def image_size(text: str) -> int | tuple[int, int]:
    """``640``, or ``1600x256`` as (height, width): a user says the width first, as of screens and cameras.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give a side or WIDTHxHEIGHT in pixels, e.g. 1600x256")
    return int(sides[0]) if len(sides) == 1 else (int(sides[1]), int(sides[0]))


def print_json(value: object) -> None:
    """Prints a value as JSON on stdout."""
    from agssp_zoo.json_text import json_text

    sys.stdout.write(json_text(value, indent=2) + "\n")


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows in aligned columns on stdout."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def human_size(size: int) -> str:
    """Bytes in words, e.g. ``"42.6 MB"``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
