"""Images to keep out of a pool: those that lists name, and those that look like them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError

from .dataset import Dataset
from .listing import File, Matcher
from .problems import Problems
from .records import Record
from .splits import read_list


def find_excluded(sets: Sequence[tuple[Path, Dataset]], lists: Sequence[str]) -> set[str]:
    """Keys of the images that files name.

    Args:
        sets: the data sets with their folders.
        lists: text files, a name a line, matched like the lines of a train.txt. One that lies in the folder of a set
            is about that set, any other about all of them.

    Raises:
        DataError: a file cannot be read, or a line means no image or several.
    """
    keys: set[str] = set()
    for listed in lists:
        file = Path(listed).absolute()
        about = [one for one in sets if file.is_relative_to(one[0].absolute())]
        files = [_as_file(folder, record, not about) for folder, images in about or sets for record in images]
        problems, named = Problems(), dict[str, str]()
        read_list(file, "excluded", Matcher(files), named, problems)
        bad = [str(problem) for problem in problems if problem.severity == "error"]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            where = about[0][0] if about else "the data sets"
            raise DataError(f"{'; '.join(bad[:3])}{more}. Every line has to name one image of {where}.")
        keys |= set(named)
    return keys


def _as_file(folder: Path, record: Record, several: bool) -> File:
    """A record as a file, for matching lines; where there are several sets, with the set's folder before it."""
    root = str(folder.absolute()) + os.sep
    rel = record.key
    if record.offset < 0 and record.path.startswith(root):
        rel = record.path[len(root) :].replace(os.sep, "/")
        rel = f"{folder.name}/{rel}" if several else rel
    return File(rel, record.path, record.key)


def find_similar(records: Sequence[Record], excluded: Collection[str]) -> dict[str, str]:
    """Images that look like an excluded one (see :mod:`.similar`): their keys, with which one they look like.

    Args:
        records: images that may take part, and the excluded ones; all are read.
        excluded: keys of the excluded ones.

    Raises:
        InvalidArgumentError: none is excluded.
    """
    from concurrent.futures import ThreadPoolExecutor

    from .progress import progress
    from .similar import Look, look_at, near_duplicates

    if not excluded:
        raise InvalidArgumentError("similar: to leave out what looks like excluded images, give files of these.")

    def read(record: Record) -> Look | None:
        try:
            return look_at(record.load_image())
        except AgsspZooError:
            return None  # packing says so

    with ThreadPoolExecutor(4) as pool:
        looks = list(progress(pool.map(read, records), len(records), "comparing images"))
    pairs = [(record, look) for record, look in zip(records, looks, strict=True) if look is not None]
    groups = ["excluded" if record.key in excluded else "pool" for record, _ in pairs]
    if len(set(groups)) < 2:
        return {}
    like: dict[str, str] = {}
    for pair in near_duplicates([look for _, look in pairs], groups):
        ends = sorted((pair.first, pair.second), key=lambda place: groups[place])
        like.setdefault(pairs[ends[1]][0].key, f"like {pairs[ends[0]][0].key}")
    return like
