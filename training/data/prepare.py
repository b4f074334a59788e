"""From a folder of data sets to one pool for pretraining: what is there, what is missing, what takes part.

Every folder below the root is a data set. Known ones (see :mod:`.known_sets`) are recognised by the folder's name;
any other folder is a set of its own, called as the folder. The pool's keys begin with the name of the set, which is
what stage 1 takes for the class of an image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from agssp_zoo.errors import DataError, InvalidArgumentError

from .dataset import Dataset, sort_records
from .known_sets import KnownSet, known_set, known_sets, recognise_set
from .leave_out import find_excluded, find_similar
from .listing import IMAGE_FOLDERS, LABEL_FOLDERS, in_folder, is_image, split_name, walk
from .problems import Problems
from .shards import INDEX_NAME, is_index, read_shards
from .splits import find_lists
from .unlabelled import read_unlabelled

POOL_NAME = "pool.json"
"""The file that says what a prepared pool is made of."""


@dataclass(frozen=True)
class PrepareSettings:
    """What becomes part of the pool.

    Attributes:
        only: names of the sets that take part; empty takes all that are found, but those the paper measures on.
        without: names of sets that do not.
        also: names of sets that do besides, for those the paper measures on.
        exclude: text files of images to leave out, a name a line, as a val.txt has them. A file that lies in a set's
            folder is about that set, any other about all of them.
        similar: leave out images, too, that look like one of those (see :mod:`.similar`); reads every image.
        parts: folders of a set that has such (DAGM's Class1, MVTec's grid) are classes of their own.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    similar: bool = False
    parts: bool = False


@dataclass(frozen=True)
class FoundSet:
    """A data set that is there.

    Attributes:
        name: the known set's, else the folder's.
        folder: where it is.
        known: what is known of it.
        images: its images; keys begin with the set's name.
        used: whether it takes part.
        measured: lists of images to measure on that its folder holds, as val.txt, and how many images each names.
    """

    name: str
    folder: Path
    known: KnownSet | None
    images: Dataset
    used: bool
    measured: dict[str, int]

    @property
    def stated(self) -> int | None:
        """The number of images that is stated for it."""
        return None if self.known is None else self.known.images


@dataclass(frozen=True)
class Pool:
    """What is there, and what becomes of it.

    Attributes:
        sets: the sets that are there, by name.
        missing: the known ones that are not, as far as they would take part.
        images: the images of the pool.
        left_out: key of an image of a set that takes part -> why it does not.
        warnings: what should be known before training on it.
    """

    sets: tuple[FoundSet, ...]
    missing: tuple[KnownSet, ...]
    images: Dataset
    left_out: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def classes(self) -> dict[str, int]:
        """Number of images of each class that stage 1 learns."""
        return dict(sorted(Counter(top_of(record.key) for record in self.images).items()))


def look_at_sets(root: str | os.PathLike[str], settings: PrepareSettings | None = None) -> Pool:
    """Looks at the data sets below a folder and chooses what becomes the pool; nothing is written.

    Args:
        root: the folder. A pool that was prepared into it is no data set.
        settings: what takes part.

    Raises:
        DataError: no data set, one that is there twice, a line of an ``exclude`` file that means no image or several,
            or nothing is left.
        InvalidArgumentError: a name in the settings is no known set and none that is there.
    """
    settings = settings or PrepareSettings()
    places = list(_places(Path(root)))
    _check_names(settings, [name for name, _, _ in places])
    found = tuple(sorted((_found(*place, settings) for place in places), key=lambda one: one.name))
    found = tuple(one for one in found if len(one.images))
    owners: dict[str, FoundSet] = {}
    for one in found:
        for name in {top_of(record.key) for record in one.images}:
            other = owners.setdefault(name, one)
            if other is not one:
                raise DataError(
                    f"{one.folder} and {other.folder} would both be {name!r}; rename or remove one of them."
                )
    excluded = find_excluded([(one.folder, one.images) for one in found], settings.exclude)
    records = [record for one in found if one.used for record in one.images]
    left_out = {record.key: "excluded" for record in records if record.key in excluded}
    if settings.similar:
        others = [record for one in found if not one.used for record in one.images if record.key in excluded]
        left_out |= find_similar([*records, *others], excluded)
    kept = sort_records([record for record in records if record.key not in left_out])
    if not kept:
        raise DataError(f"{root}: no image is left for the pool.")
    problems = tuple(p for one in found if one.used for p in one.images.problems if p.key not in left_out)
    names = {one.name for one in found}
    missing = tuple(one for one in known_sets() if one.name not in names and _used(one.name, one, settings))
    images = Dataset((), kept, problems, str(root), "images")
    return Pool(found, missing, images, left_out, tuple(_warnings(found, excluded, settings)))


def _places(root: Path) -> Iterator[tuple[str, Path, KnownSet | None]]:
    """The folders that are data sets, with their names.

    Raises:
        DataError: there are none, or two of one name.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder.")
    inner, seen = [], dict[str, Path]()
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith(".") or (folder / POOL_NAME).is_file():
            continue
        if (folder / ".parts" / "plan.json").exists():  # an unfinished packing, perhaps of this very pool
            continue
        known = recognise_set(folder.name)
        if known is None and (folder.name.lower() in IMAGE_FOLDERS | LABEL_FOLDERS or split_name(folder.name)):
            inner.append(folder.name)
            continue
        name = known.name if known else re.sub(r"[^\w.-]+", "_", folder.name)
        if name in seen:
            raise DataError(f"{folder} and {seen[name]}: are both {name!r}; keep one of them below {root}.")
        seen[name] = folder
        yield name, folder, known
    if not seen:
        what = f"looks like one data set itself ({inner[0]}/)" if inner else "holds no folders of data sets"
        raise DataError(
            f"{root}: {what}. Put every data set in a folder of its own, and give the folder that holds them."
        )


def _found(name: str, folder: Path, known: KnownSet | None, settings: PrepareSettings) -> FoundSet:
    used = _used(name, known, settings)
    rels = walk(folder)
    if is_index(folder / INDEX_NAME):
        images = read_shards(str(folder))
    else:
        problems = Problems()
        wanted = list(_wanted(rels, known))
        images = Dataset((), (), (), str(folder), "images")
        if wanted:
            images = read_unlabelled(folder, [*wanted, *find_lists(rels).values()], problems)
    tops = _parts(images) if settings.parts and known is not None and known.parts else {}
    source = {record.key: "_".join([name, *tops.get(record.key, ())]) for record in images}
    measured = {}
    for split, rel in sorted(find_lists(rels).items()):
        if split != "train":
            measured[rel] = sum(record.split == split for record in images)
    records = tuple(
        replace(record, key=f"{source[record.key]}/{record.key}", split="train") for record in images.records
    )
    problems_named = tuple(replace(p, key=f"{name}/{p.key}" if p.key else "", split="") for p in images.problems)
    images = replace(images, records=records, problems=problems_named)
    return FoundSet(name, folder, known, images, used, measured)


def _used(name: str, known: KnownSet | None, settings: PrepareSettings) -> bool:
    if name in settings.without:
        return False
    if name in settings.also:
        return True
    return name in settings.only if settings.only else known is None or known.role != "finetuning"


def _check_names(settings: PrepareSettings, there: Sequence[str]) -> None:
    for option in ("only", "without", "also"):
        for name in getattr(settings, option):
            if name not in there:
                try:
                    known_set(name)
                except InvalidArgumentError as error:
                    raise InvalidArgumentError(f"{option}: {error} Below the folder are {', '.join(there)}.") from None


def _wanted(rels: Sequence[str], known: KnownSet | None) -> Iterator[str]:
    """The files that are images of a set, as far as what is known of it tells."""
    skip = frozenset(folder.lower() for folder in known.skip) if known else frozenset()
    mask = known.mask_suffix if known else ""
    images = [rel for rel in rels if is_image(rel) and not in_folder(rel, skip)]
    stems = {str(PurePosixPath(rel).with_suffix("")) for rel in images if PurePosixPath(rel).suffix.lower() != mask}
    for rel in images:
        path = PurePosixPath(rel)
        if not mask or path.suffix.lower() != mask or str(path.with_suffix("")) not in stems:
            yield rel


def _parts(images: Dataset) -> dict[str, tuple[str, ...]]:
    """The first folder in which keys differ, for each image; nothing where images lie beside such folders."""
    split = {record.key: record.key.split("/") for record in images}
    depth = 0
    while split and all(len(one) > depth + 1 for one in split.values()):
        folders = {one[depth] for one in split.values()}
        if len(folders) > 1:
            return {key: (re.sub(r"[^\w.-]+", "_", one[depth]),) for key, one in split.items()}
        depth += 1
    return {}


def _warnings(found: Sequence[FoundSet], excluded: set[str], settings: PrepareSettings) -> Iterator[str]:
    used = {one.name for one in found if one.used}
    touched = {one.name for one in found if any(record.key in excluded for record in one.images)}
    for one in found:
        for rel, count in one.measured.items():
            if one.used and count and one.name not in touched:
                yield (
                    f"{one.name}: {rel} names {count} images to measure on, and they are in the pool; "
                    f"--exclude {one.folder / rel} leaves them out."
                )
    for one in found:
        overlaps = one.known.overlaps if one.known else ()
        for other in overlaps:
            if one.used and other in touched and not settings.similar:
                yield f"{one.name}: may show images that were excluded from {other}; --similar leaves them out."
            elif one.used and other not in used and known_set(other).role == "finetuning":
                yield f"{one.name}: may show images of {other}, which the paper measures on."
    closed = [one.name for one in found if one.used and one.known and one.known.commercial == "no"]
    if closed:
        yield f"the terms of {', '.join(closed)} rule out commercial use; --without leaves them out."
    unknown = [one.name for one in found if one.used and (not one.known or one.known.commercial == "unknown")]
    if unknown:
        yield f"of {', '.join(unknown)} it is not known whether their terms allow commercial use."


def top_of(key: str) -> str:
    """The class of an image of a pool: the first folder of its key."""
    return key.partition("/")[0]
