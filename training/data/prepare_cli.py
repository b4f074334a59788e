"""``agssp-zoo prepare-data --root DIR --out POOL``: the data sets below a folder as one pool for pretraining."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import Any

from agssp_zoo.commands.options import print_json, print_table
from agssp_zoo.errors import InvalidArgumentError

from .known_sets import KnownSet, known_set, known_sets
from .pack import IMAGE_FORMATS, PackSettings
from .pack_cli import parse_size
from .pool_files import describe, write_pool
from .prepare import Pool, PrepareSettings, look_at_sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``prepare-data``."""
    parser.add_argument(
        "--root", metavar="DIR", help="folder with a folder for each data set; left out: only what is known of the sets"
    )
    parser.add_argument("--out", metavar="POOL", help="write the pool there, as shards (default: only look)")
    chosen = {
        "only": ("--only", "sets that take part (default: all but those the paper measures on)"),
        "without": ("--without", "sets that take no part"),
        "also": ("--with", "sets that take part besides, for those the paper measures on"),
    }
    for name, (option, text) in chosen.items():
        parser.add_argument(option, dest=name, nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="FILE",
        help="text files of images to leave out, a name a line, as a val.txt; one in a set's folder is about that set",
    )
    parser.add_argument(
        "--similar", action="store_true", help="leave out what looks like an excluded image, too (reads every image)"
    )
    parser.add_argument(
        "--parts", action="store_true", help="folders of sets that have such (DAGM's Class1) are classes of their own"
    )
    parser.add_argument("--size", type=int, default=0, help="scale images down to this longer side (default: keep)")
    parser.add_argument("--format", default="original", choices=IMAGE_FORMATS, help="format of the images, as for pack")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG and WebP, 1-100 (default: 95)")
    parser.add_argument("--shard-size", default="256M", help="bytes of a shard, as 64M or 1G (default: 256M)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="share of the images that may be unreadable, 0-1 (default: 0)"
    )
    parser.add_argument("--about", metavar="NAME", help="say what is known of one data set, and stop")


def run(args: argparse.Namespace) -> int:
    """Runs ``prepare-data``."""
    if args.about is not None:
        _tell_about(known_set(args.about), args.json)
        return 0
    if args.root is None:
        given = [
            f"--{name}" for name in ("out", "only", "without", "exclude", "similar", "parts") if getattr(args, name)
        ]
        if given := [*given, *(["--with"] if args.also else [])]:
            raise InvalidArgumentError(f"{given[0]} needs --root: the folder that holds the data sets.")
        _tell_known(args.json)
        return 0
    packing = PackSettings(
        size=args.size, format=args.format, quality=args.quality, shard_size=parse_size(args.shard_size)
    )
    settings = PrepareSettings(
        tuple(args.only), tuple(args.without), tuple(args.also), tuple(args.exclude), args.similar, args.parts
    )
    pool = look_at_sets(args.root, settings)
    written = None if args.out is None else write_pool(pool, args.out, packing, tolerance=args.tolerance)
    if args.json:
        print_json(
            {
                **describe(pool),
                "missing": [_plain(one) for one in pool.missing],
                "warnings": list(pool.warnings),
                "out": None if written is None else str(written),
            }
        )
        return 0
    _tell_pool(pool)
    if written is None:
        sys.stdout.write("\nNothing was written; --out FOLDER packs these images.\n")
    else:
        sys.stdout.write(f"\n{written}: {len(pool.images)} images, {len(pool.classes)} classes\n")
    return 0


def _tell_pool(pool: Pool) -> None:
    values = describe(pool)
    rows: list[tuple[str, ...]] = [("set", "images", "stated", "unreadable", "left out", "in the pool", "terms")]
    for one in values["sets"]:
        gone = one["excluded"] + one["similar"]
        stated = "?" if one["stated"] is None else str(one["stated"])
        taken = str(one["images"] - gone) if one["used"] else "no"
        counts = (str(one["images"]), stated, str(one["unreadable"]), str(gone), taken)
        rows.append((one["name"], *counts, _short(one["terms"])))
    print_table(rows)
    sys.stdout.write(f"\n{len(pool.images)} images in {len(pool.classes)} classes\n")
    if pool.missing:
        sys.stdout.write("\nNot there:\n")
        _table_of_known(pool.missing)
    for warning in pool.warnings:
        sys.stdout.write(f"\nNote: {warning}\n")


def _tell_known(as_json: bool) -> None:
    if as_json:
        print_json([_plain(one) for one in known_sets()])
    else:
        _table_of_known(known_sets())
        sys.stdout.write("\n--about NAME says more of one; --root DIR looks which are there.\n")


def _tell_about(one: KnownSet, as_json: bool) -> None:
    if as_json:
        print_json(_plain(one))
        return
    for name, value in _plain(one).items():
        if isinstance(value, list):
            value = ", ".join(value)
        if value not in ("", None):
            sys.stdout.write(f"{name.replace('_', ' ')}: {value}\n")


def _plain(one: KnownSet) -> dict[str, Any]:
    values = dataclasses.asdict(one)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _table_of_known(sets: tuple[KnownSet, ...]) -> None:
    rows: list[tuple[str, ...]] = [("set", "images", "metal", "terms", "where")]
    for one in sets:
        images = "?" if one.images is None else str(one.images)
        rows.append((one.name, images, "yes" if one.metal else "no", _short(one.terms), one.url[0]))
    print_table(rows)


def _short(terms: str) -> str:
    """Terms without what is said besides; --about gives all of it."""
    return re.split(r"[;(]", terms)[0].strip()
