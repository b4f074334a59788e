"""Which image belongs to which split: lists (train.txt), else folders (train/, val/), else all are ``train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from agssp_zoo.errors import DataError

from .listing import File, Matcher, split_name
from .problems import Problems, some
from .text import read_text

LIST_FOLDERS = ("", "ImageSets/Main/", "ImageSets/", "splits/", "lists/")


def find_lists(rels: Sequence[str]) -> dict[str, str]:
    """The files that list splits, name of the split -> relative path; of several places the first wins."""
    known = set(rels)
    for folder in LIST_FOLDERS:
        names = [rel for rel in known if rel.startswith(folder) and "/" not in rel[len(folder) :]]
        lists: dict[str, str] = {}
        for rel in sorted(names):
            stem, suffix = PurePosixPath(rel).stem.lower(), PurePosixPath(rel).suffix.lower()
            name = split_name(stem) or ("trainval" if stem == "trainval" else "")
            if suffix == ".txt" and name:
                lists.setdefault(name, rel)
        if lists:
            # VOC's trainval.txt is the union of the other two; it only serves when train.txt is not there.
            union = lists.pop("trainval", None)
            if union is not None and "train" not in lists:
                lists = {"train": union, **{name: rel for name, rel in lists.items() if name != "val"}}
            return lists
    return {}


def assign_splits(
    root: Path, images: Sequence[File], matcher: Matcher, rels: Sequence[str], problems: Problems
) -> dict[str, str]:
    """The split of every image that takes part, by key.

    Lists win over folders. Images in no list take no part, unless only ``val`` or ``test`` are listed: then the rest
    is ``train``. Without lists, an image under a folder called train, val, valid, test ... belongs to that split, and
    any other image to ``train``.

    Raises:
        DataError: a list cannot be read.
    """
    lists = find_lists(rels)
    if not lists:
        return {image.key: image.split or "train" for image in images}
    splits: dict[str, str] = {}
    for split, rel in sorted(lists.items()):
        read_list(root / rel, split, matcher, splits, problems)
    rest = [image.key for image in images if image.key not in splits]
    if rest and "train" not in lists:
        splits.update(dict.fromkeys(rest, "train"))
    elif rest:
        problems.warning(
            "not-in-a-list",
            root,
            f"{len(rest)} images are in none of {', '.join(sorted(lists.values()))} and take no part: {some(rest)}.",
        )
    return splits


def read_list(file: Path, split: str, matcher: Matcher, splits: dict[str, str], problems: Problems) -> None:
    """Reads one list of images into ``splits``; blank lines and lines that begin with ``#`` are skipped.

    Raises:
        DataError: the file cannot be read.
    """
    text = read_text(file)
    if text.windows:
        problems.warning("windows-line-ends", file, "has Windows line ends; they were read as usual ones.")
    for line, entry in enumerate(text.lines, 1):
        name = entry.strip()
        if not name or name.startswith("#"):
            continue
        image = matcher.find(name)
        if image is None and name.split()[-1] in ("1", "0", "-1"):  # VOC: "name 1", and -1 where the class is not
            image = matcher.find(name.rsplit(maxsplit=1)[0])
        if image is None:
            problems.error("list-without-image", file, f"no image, or not just one, is meant by {name!r}.", line=line)
        elif splits.get(image.key, split) != split:
            problems.error(
                "split-overlap",
                file,
                f"{name!r} is in {splits[image.key]} already; it stays there and is left out of {split}.",
                line=line,
                key=image.key,
            )
        elif image.key in splits:
            problems.warning("listed-twice", file, f"{name!r} is listed twice.", line=line, key=image.key)
        else:
            splits[image.key] = split


def read_class_list(
    root: Path, rels: Sequence[str], problems: Problems, *, numbered: bool = False
) -> tuple[str, ...] | None:
    """Class names from classes.txt (also labels.txt, obj.names and the like), one a line; ``None`` without such a file.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.
        numbered: the labels name classes by their place in the list, so a blank line between names is refused.

    Raises:
        DataError: a name stands twice, or a blank line among numbered ones.
    """
    wanted = ("classes.txt", "labels.txt", "obj.names", "classes.names", "predefined_classes.txt")
    found = [rel for name in wanted for rel in rels if rel.rpartition("/")[2].lower() == name and rel.count("/") <= 2]
    if not found:
        return None
    file = root / found[0]
    text = read_text(file)
    if text.windows:
        problems.warning("windows-line-ends", file, "has Windows line ends; they were read as usual ones.")
    # labelme's labels.txt begins with two entries that are no classes.
    names = [name for line in text.lines if (name := line.strip()) and name not in ("__ignore__", "_background_")]
    blank = [line for line, row in enumerate(text.text.rstrip().split("\n"), 1) if not row.strip()]
    if numbered and names and blank:
        raise DataError(
            f"{file}:{blank[0]}: a blank line among the class names; it cannot be told whether it counts as a class. "
            "Take it out, or write a name there."
        )
    check_class_names(names, str(file))
    return tuple(names)


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuses a class list in which a name stands twice.

    Raises:
        DataError: it does.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: class name {twice[0]!r} stands twice; every class needs a name of its own.")
