"""Names of files: as users give them, and those that are made after the names of others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

LONGEST = 200
"""Bytes; of the 255 that file systems take, the rest is for a page, a number, a suffix and a temporary name."""


def user_path(name: str | os.PathLike[str]) -> Path:
    """A path as a user gives it, ``~`` and ``~user`` being home folders.

    What only begins so, such as ``~scan.png`` or ``./~old``, is a name as any other; ``Path.expanduser`` would fail.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 - see above


def short_name(name: str) -> str:
    """A name as it is, or, where it is longer than :data:`LONGEST`, its beginning and a hash of all of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST:
        return name
    mark = "~" + hashlib.sha256(encoded).hexdigest()[:12]
    while len(os.fsencode(name + mark)) > LONGEST:  # a letter at a time, since one may be several bytes
        name = name[:-1]
    return name + mark
