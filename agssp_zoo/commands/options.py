"""Arguments that several sub-commands share, and how values print."""

from __future__ import annotations

import argparse
import sys
from typing import Any


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


def print_json(value: object) -> None:
    """Prints a value as JSON on stdout."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(rows: list[tuple[str, ...]]) -> None:
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
