"""Whether a folder can be written, asked before the work that it is for."""

from __future__ import annotations

import os
from pathlib import Path

from agssp_zoo.errors import InvalidArgumentError


def check_out(out: Path) -> None:
    """Refuses a folder that could not be made or written; nothing is made.

    Raises:
        InvalidArgumentError: it, or what lies above it, is a file, a link to nothing, or closed to this user.
    """
    place = out.absolute()
    while not os.path.lexists(place):
        place = place.parent
    named = "--out" if place == out.absolute() else f"--out {out}:"
    if not place.is_dir():
        what = "is a link to nothing" if place.is_symlink() and not place.exists() else "is a file"
        raise InvalidArgumentError(f"{named} {place} {what}; give a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InvalidArgumentError(f"{named} {place} cannot be written by this user; give another folder.")
