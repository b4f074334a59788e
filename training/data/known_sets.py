"""The public data sets that this package knows of: where they are, on what terms, and how their folders look.

One TOML file a group in ``sets/``, a ``[[set]]`` for each data set; the fields are those of :class:`KnownSet`. What is
not known is left out. Every figure says where it is from.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from agssp_zoo.errors import DataError, InvalidArgumentError

FOLDER = Path(__file__).parent / "sets"

Role = Literal["pretraining", "finetuning", "other"]
Commercial = Literal["yes", "no", "unknown"]
_ARCHIVE = re.compile(r"[-_](main|master)$", re.IGNORECASE)


@dataclass(frozen=True)
class KnownSet:
    """A public data set.

    Attributes:
        name: what it is called here, and its class in stage 1.
        title: what its authors call it.
        what: what it shows.
        metal: whether that is metal.
        url: where to get it.
        terms: licence or terms as stated there; "unknown" where they were not to be found.
        layout: what its folder holds, for people.
        citation: the work to cite.
        role: ``"pretraining"``: the paper pretrains on it; ``"finetuning"``: the paper measures on it; ``"other"``.
        images: number of images, without masks; ``None`` where nobody was found to state it.
        images_from: who states that number.
        terms_from: who states the terms; empty where it is the first address.
        commercial: whether these terms allow commercial use.
        parts: its folders (an MVTec category) may count as classes of their own in stage 1.
        skip: folders below it that hold no images to learn from.
        mask_suffix: a file of this suffix is a mask where an image of the same name and another suffix lies beside it.
        folders: other names that its folder may have.
        overlaps: known sets that it seems to share images with, judged by what both say they hold, not by pixels.
        classes: its names among the 61 classes of the authors' stage 1, as far as names tell.
    """

    name: str
    title: str
    what: str
    metal: bool
    url: tuple[str, ...]
    terms: str
    layout: str
    citation: str
    role: Role = "other"
    images: int | None = None
    images_from: str = ""
    terms_from: str = ""
    commercial: Commercial = "unknown"
    parts: bool = False
    skip: tuple[str, ...] = ()
    mask_suffix: str = ""
    folders: tuple[str, ...] = ()
    overlaps: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@functools.cache
def known_sets() -> tuple[KnownSet, ...]:
    """All of them: those that the paper pretrains on, those it measures on, others; by name within each."""
    found = [one for file in sorted(FOLDER.glob("*.toml")) for one in _read(file)]
    return tuple(sorted(found, key=lambda one: (get_args(Role).index(one.role), one.name)))


def known_set(name: str) -> KnownSet:
    """The set of a name.

    Raises:
        InvalidArgumentError: there is none; the message gives the nearest names.
    """
    names = {one.name: one for one in known_sets()}
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.5) or sorted(names)
        raise InvalidArgumentError(f"{name!r} is no data set known here; there are {', '.join(near)}.")
    return names[name]


def recognise_set(folder: str) -> KnownSet | None:
    """The set that a folder of this name holds, if it is a known one."""
    return _by_folder().get(_plain(_ARCHIVE.sub("", folder)))


@functools.cache
def _by_folder() -> dict[str, KnownSet]:
    return {_plain(_ARCHIVE.sub("", name)): one for one in known_sets() for name in (one.name, *one.folders)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read(file: Path) -> list[KnownSet]:
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return [_one({"role": document["role"], **entry}, file) for entry in document["set"]]


def _one(entry: dict[str, Any], file: Path) -> KnownSet:
    unknown = set(entry) - {field.name for field in fields(KnownSet)}
    if unknown:
        raise DataError(f"{file}: {entry.get('name')}: unknown field {min(unknown)!r}.")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return KnownSet(**values)
