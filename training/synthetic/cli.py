"""``agssp-zoo draw-surfaces``: write a data set of drawn metal surfaces."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``draw-surfaces``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make (must not exist, or be empty)")
    parser.add_argument("-n", type=int, required=True, metavar="N", help="number of images")
    parser.add_argument("--size", type=_size, default=(256, 256), metavar="S", help="side, or WxH (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images (default: 0)")
    parser.add_argument("--style", default="metal", help="metal, or neu for gray hot-rolled steel as NEU-DET's")
    parser.add_argument("--surface", help="draw only this surface, e.g. brushed (default: all)")
    parser.add_argument("--defect-rate", type=float, default=0.9, help="part of the images with defects (default: 0.9)")
    parser.add_argument(
        "--splits", type=_splits, metavar="NAME=F,...", help="fractions of the splits (default: train=0.8,val=0.2)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the data set and says where."""
    from agssp_zoo.commands.options import print_json, print_table

    from .dataset import write_dataset

    folder = write_dataset(
        args.out,
        args.n,
        seed=args.seed,
        size=args.size,
        splits=args.splits,
        style=args.style,
        surface=args.surface,
        defect_rate=args.defect_rate,
    )
    if getattr(args, "json", False):
        print_json({"path": str(folder), "images": args.n})
    else:
        print_table([(f"{args.n} images in {folder}",)])
    return 0


def _size(text: str) -> tuple[int, int]:
    """``640``, or ``640x480`` as (height, width)."""
    parts = text.lower().split("x")
    try:
        height, width = (int(parts[-1]), int(parts[0])) if len(parts) <= 2 else (0, 0)
    except ValueError:
        height, width = 0, 0
    if height <= 0 or width <= 0:
        raise argparse.ArgumentTypeError(f"give a side such as 640, or width and height such as 640x480, not {text!r}")
    return height, width


def _splits(text: str) -> dict[str, float]:
    """``train=0.8,val=0.2`` as a mapping."""
    try:
        return {name.strip(): float(fraction) for name, fraction in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"give fractions such as train=0.8,val=0.2, not {text!r}") from None
