"""A prepared pool on disk: shards, with the classes of stage 1 and what the pool is made of beside them.

``classes.txt`` has the names of the classes in the order in which stage 1 numbers them, ``pool.json`` says which sets
took part, with how many images and on what terms, and which images were left out and why. Both come after the shards'
index, so a folder with a pool.json is whole.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError

from .pack import PackSettings, pack
from .prepare import POOL_NAME, Pool, top_of

CLASSES_NAME = "classes.txt"


def write_pool(
    pool: Pool, out: str | os.PathLike[str], settings: PackSettings | None = None, *, tolerance: float = 0.0
) -> Path:
    """Packs the images of a pool and notes what they are; goes on where it was interrupted.

    Args:
        pool: what :func:`look_at_sets` found.
        out: the folder to write; made when it is not there.
        settings: how images are stored.
        tolerance: share of the images that may be unreadable, 0-1.

    Returns:
        The folder. The same sets and settings give the same bytes.

    Raises:
        DataError: more images are unreadable than tolerated, or the folder holds something else.
    """
    folder = pack(pool.images, out, settings, tolerance=tolerance)
    _write(folder / CLASSES_NAME, "".join(f"{name}\n" for name in pool.classes))
    text = json.dumps(describe(pool), indent=1, ensure_ascii=False) + "\n"
    _write(folder / POOL_NAME, text)
    return folder


def describe(pool: Pool) -> dict[str, Any]:
    """The pool as plain values; nothing in it depends on where the data lie."""
    gone = Counter((top_of(key), why.split()[0]) for key, why in pool.left_out.items())
    sets = []
    for one in pool.sets:
        tops = {top_of(record.key) for record in one.images}
        known = one.known
        sets.append(
            {
                "name": one.name,
                "title": known.title if known else "",
                "used": one.used,
                "images": len(one.images),
                "stated": one.stated,
                "unreadable": len(one.images.errors),
                "excluded": sum(gone[top, "excluded"] for top in tops),
                "similar": sum(gone[top, "like"] for top in tops),
                "terms": known.terms if known else "unknown",
                "commercial": known.commercial if known else "unknown",
                "citation": known.citation if known else "unknown",
            }
        )
    return {
        "kind": "agssp-zoo pool",
        "version": 1,
        "images": len(pool.images),
        "classes": pool.classes,
        "sets": sets,
        "left_out": dict(sorted(pool.left_out.items())),
    }


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror}); run the command again to go on.") from None
