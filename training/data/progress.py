"""A progress line on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Passes items on; when it takes longer than a second and stderr is a terminal, a line there counts them."""
    if not sys.stderr.isatty():
        yield from items
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - start > 1.0 and now - shown > 0.2:
            shown = now
            left = (now - start) / done * max(total - done, 0)
            sys.stderr.write(f"\r{text}: {done}/{total}, {left:.0f} s left \x1b[K")
            sys.stderr.flush()
    if shown > start:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
