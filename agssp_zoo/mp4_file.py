"""How long an MP4 or MOV file plays, read from its boxes (ISO/IEC 14496-12).

A file that was trimmed without being encoded anew keeps the frames that it no longer shows, and counts them.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

_MOST = 1 << 26
"""Bytes of a movie box that are looked at."""


def seconds_shown(path: str | os.PathLike[str]) -> float | None:
    """The seconds that the longest edit list of a file lets through; ``None`` where there is none, or no such file."""
    try:
        movie = _movie_box(Path(path))
        header = movie.index(b"mvhd") + 4
        (scale,) = struct.unpack_from(">I", movie, header + (20 if movie[header] else 12))
        lengths = [_edited(movie, found.end()) for found in re.finditer(b"elst", movie)]
    except (OSError, ValueError, IndexError, struct.error):
        return None
    longest = max(lengths, default=0)
    return longest / scale if longest and scale else None


def _movie_box(path: Path) -> bytes:
    """The box ``moov``; empty where there is none."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            rest = size - 8
            if size == 1:  # it stands in 64 bits behind
                rest = struct.unpack(">Q", file.read(8))[0] - 16
            if kind == b"moov":
                return file.read(min(rest, _MOST))
            if rest < 0:  # up to the end of the file
                break
            file.seek(rest, os.SEEK_CUR)
    return b""


def _edited(movie: bytes, start: int) -> int:
    """The length of an edit list in units of the movie's time scale, pauses left out."""
    (count,) = struct.unpack_from(">I", movie, start + 4)
    layout = struct.Struct(">Qq4x" if movie[start] else ">Ii4x")
    entries = layout.iter_unpack(movie[start + 8 : start + 8 + count * layout.size])
    return sum(length for length, begins in entries if begins >= 0)
