"""Finding the images of a folder, naming them, matching label files to them, and reading their sizes."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agssp_zoo.errors import DataError
from agssp_zoo.images import MIN_SIDE

from .ours import own_pictures
from .text import readable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jp2"})
IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages"})
MASK_FOLDERS = frozenset({"masks", "mask", "ground_truth", "groundtruth", "gt", "segmentationclass"})
LABEL_FOLDERS = MASK_FOLDERS | {"annotations", "annotation", "labels", "label", "xmls", "xml", "json", "labelme", "txt"}

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_OF_THE_SYSTEM = "lost+found"
"""At the top of a disk; only root may look into it."""
_YEAR = re.compile(r"(19|20)\d\d$")
_KEPT_FROM = 8
"""Of as many images of one stem or fewer no index is kept: making it anew takes less than the memory is worth."""
_MASK_ENDING = re.compile(r"[_-](mask|label|labels|gt|seg)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a data set.

    Attributes:
        rel: its path below the data set's folder, with forward slashes.
        path: where it is.
        key: ``rel`` without suffix and without folders that only say what kind of file it is, as text that can be
            written (a file's name need not be).
    """

    rel: str
    path: str
    key: str

    @property
    def stem(self) -> str:
        """The file's name without its last suffix."""
        return PurePosixPath(self.rel).stem

    @property
    def split(self) -> str:
        """The split that a folder on the file's path names, or an empty text."""
        return folder_split(self.rel)


def split_name(word: str) -> str:
    """``"train"``, ``"val"`` or ``"test"`` for a folder or file name that means it, else an empty text."""
    return _SPLITS.get(_YEAR.sub("", word.lower()), "")


def folder_split(rel: str) -> str:
    """The split that a folder on a relative path names, or an empty text."""
    return next(filter(None, map(split_name, PurePosixPath(rel).parts[:-1])), "")


def walk(root: Path) -> list[str]:
    """All files below a folder as relative paths with forward slashes, sorted; hidden ones left out.

    Symbolic links are followed, each folder once; one to nothing counts as a file, which cannot be read. Pipes, sockets
    and devices are no files: opening a pipe would wait for ever.

    Raises:
        DataError: a folder cannot be listed, so that its images would be missing without a word.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = root / prefix
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                there = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            continue
        except OSError as error:
            if folder.name == _OF_THE_SYSTEM:
                continue
            raise DataError(
                f"{folder}: the folder cannot be listed ({error.strerror or error}); make it readable for this user, "
                "or move it away."
            ) from None
        kinds = [(entry.name, _mode(entry)) for entry in there]
        found.extend(prefix + name for name, mode in kinds if stat.S_ISREG(mode))
        waiting.extend(f"{prefix}{name}/" for name, mode in reversed(kinds) if stat.S_ISDIR(mode))
    return sorted(found)


def _mode(entry: os.DirEntry[str]) -> int:
    """The kind of a folder's entry as of ``st_mode``; asks the system about links only. A broken one is a file."""
    if entry.is_symlink():
        try:
            return entry.stat().st_mode
        except OSError:
            return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


def make_files(root: Path, rels: Iterable[str], drop: frozenset[str]) -> list[File]:
    """Files with their keys: the path without suffix and without the folders named in ``drop``.

    Where two files would share a key, both keep all folders, and where that does not help, the suffix too. Names that
    are not UTF-8 are spelled as :func:`~.text.readable` does it.
    """
    base = str(root.absolute())
    rels = list(rels)
    keys = [readable(_strip(rel, drop)) for rel in rels]
    for shorten in (
        lambda rel: readable(str(PurePosixPath(rel).with_suffix(""))),
        readable,
        lambda rel: readable(rel, letters=False),
    ):
        counts: dict[str, int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        if len(counts) == len(keys):
            break
        keys = [key if counts[key] == 1 else shorten(rel) for key, rel in zip(keys, rels, strict=True)]
    return [File(rel, f"{base}{os.sep}{rel}", key) for rel, key in zip(rels, keys, strict=True)]


def _strip(rel: str, drop: frozenset[str]) -> str:
    *folders, name = rel.split("/")
    stem = name.rpartition(".")[0] or name
    return "/".join([folder for folder in folders if folder.lower() not in drop] + [stem])


def is_image(rel: str) -> bool:
    """Whether a file name ends like an image's."""
    return PurePosixPath(rel).suffix.lower() in IMAGE_SUFFIXES


def in_folder(rel: str, names: frozenset[str]) -> bool:
    """Whether a relative path leads through a folder of one of these names (lower case)."""
    return any(part.lower() in names for part in rel.split("/")[:-1])


def list_images(root: Path, rels: Sequence[str]) -> list[File]:
    """The images among the files of a folder; those in mask folders, and pictures of our own making, are no data.

    Raises:
        DataError: there are none.
    """
    found = [rel for rel in rels if is_image(rel) and not in_folder(rel, MASK_FOLDERS)]
    ours = own_pictures(root, found)
    found = [rel for rel in found if rel not in ours]
    if not found:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return make_files(root, found, IMAGE_FOLDERS)


class Matcher:
    """Finds the image that a label file, or a line of a list, belongs to."""

    def __init__(self, images: Sequence[File]) -> None:
        # A label file or a list may spell in UTF-8 what an image's name spells otherwise.
        self._by_rel = {readable(image.rel): image for image in images}
        self._by_key: dict[str, list[File]] = {}
        self._by_stem: dict[str, list[File]] = {}
        self._namesakes: dict[str, _Namesakes] = {}
        for image in images:
            self._by_key.setdefault(readable(_strip(image.rel, IMAGE_FOLDERS)), []).append(image)
            self._by_stem.setdefault(readable(image.stem), []).append(image)

    def match(self, rel: str, name: str = "", *, mask: bool = False) -> File | None:
        """The image of a label file, or ``None`` when there is none, or several could be meant.

        In this order: the same path when folders such as ``images`` and ``labels`` are left out; the same stem in
        folders that do not contradict; the file name that the label file itself states. An image of another split
        never matches.

        Args:
            rel: the label file's relative path.
            name: the image's file name as the label file states it, perhaps with folders.
            mask: the label file is a mask: its stem may end in ``_mask``, ``_label`` or ``_gt``, and its folders may
                be classes, so they must not contradict the image's.
        """
        rel = readable(rel)
        key = _strip(rel, LABEL_FOLDERS | IMAGE_FOLDERS)
        for candidate in dict.fromkeys([key, _MASK_ENDING.sub("", key)] if mask else [key]):
            exact = self._by_key.get(candidate, [])
            if len(exact) == 1:
                return exact[0]
            found = self._one(candidate.split("/"), strict=mask)
            if found is not None:
                return found
        if not name:
            return None
        name = _forward(name)
        beside = self._by_rel.get("/".join([*rel.split("/")[:-1], name]))
        if beside is not None:
            return beside
        named = self._one(_strip(name, IMAGE_FOLDERS).split("/"), strict=False)
        return None if named is None or _other_split(key.split("/"), named) else named

    def find(self, name: str) -> File | None:
        """The image that a line of a list (train.txt) names: a path, absolute or not, a name, or a stem."""
        name = _forward(name)
        image = self._by_rel.get(name)
        if image is not None:
            return image
        bare = name[: -len(PurePosixPath(name).suffix)] if is_image(name) else name
        exact = self._by_key.get(bare, [])
        if len(exact) == 1:
            return exact[0]
        parts = [part for part in bare.split("/") if part.lower() not in IMAGE_FOLDERS]
        return self._one(parts, strict=False)

    def _one(self, parts: list[str], *, strict: bool) -> File | None:
        """The only image of this stem whose folders agree; not strictly: the only one of this stem at all."""
        stem = parts[-1]
        namesakes = self._namesakes.get(stem)
        if namesakes is None:
            images = self._by_stem.get(stem, [])
            namesakes = _Namesakes(images)
            if len(images) > _KEPT_FROM:
                self._namesakes[stem] = namesakes
        return namesakes.one(parts, strict=strict)


class _Namesakes:
    """The images of one stem by split and folders; ``None`` where several have the same.

    Looking through them once for every label file would take hours where each of thousands of folders holds a
    ``top.png``.
    """

    def __init__(self, images: Sequence[File]) -> None:
        self._exact: dict[tuple[str, ...], File | None] = {}
        self._ending: dict[tuple[str, ...], File | None] = {}
        for image in images:
            split, folders = image.split, _folders(image.key.split("/"))
            _note(self._exact, (split, *folders), image)
            for start in range(len(folders) + 1):
                _note(self._ending, (split, *folders[start:]), image)

    def one(self, parts: list[str], *, strict: bool) -> File | None:
        """The only image whose folders, without those that name splits, end like those of a path, or the reverse.

        An image of another split than the path names is none; not strictly: the only other image there is will do.
        """
        words = set(map(split_name, parts[:-1])) - {""}
        splits = ("", *sorted(words or set(_SPLITS.values())))

        def among(table: dict[tuple[str, ...], File | None], folders: list[str]) -> list[File | None]:
            keys = [(split, *folders) for split in splits]
            return [table[key] for key in keys if key in table]

        folders = _folders(parts)
        agree = among(self._ending, folders)
        for start in range(1, len(folders) + 1):
            agree += among(self._exact, folders[start:])
        if len(agree) == 1 and agree[0] is not None:
            return agree[0]
        named = among(self._ending, [])
        return named[0] if not strict and len(named) == 1 else None


def _note(table: dict[tuple[str, ...], File | None], key: tuple[str, ...], image: File) -> None:
    table[key] = None if key in table else image


def _folders(parts: list[str]) -> list[str]:
    """The folders of a path, without those that name splits."""
    return [part for part in parts[:-1] if not split_name(part)]


def _other_split(parts: list[str], image: File) -> bool:
    words = set(map(split_name, parts[:-1])) - {""}
    return bool(words and image.split and image.split not in words)


def _forward(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Width and height of an image as it is shown, or why it cannot be read.

    ``turned`` says whether it is stored another way (turned or mirrored) and shown by its EXIF orientation.
    """

    width: int
    height: int
    turned: bool = False
    error: str = ""


def probe(path: str) -> ImageSize:
    """Reads an image's size from its header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            # getexif() of a PNG without EXIF decodes the whole image, so it is only asked where there is some.
            tiff = image.format == "TIFF"  # whose width and height Pillow gives as shown
            orientation = image.getexif().get(0x0112, 1) if tiff or "exif" in image.info else 1
    except FileNotFoundError:
        return ImageSize(0, 0, error="the file is not there")
    except Exception as error:  # Pillow's plugins raise many kinds on broken files; all mean the same here
        return ImageSize(0, 0, error=f"not a readable image ({_first_line(error)})")
    if min(width, height) < MIN_SIDE:
        return ImageSize(0, 0, error=f"{width}x{height} pixels are too few for an image")
    if orientation in (5, 6, 7, 8) and not tiff:
        width, height = height, width
    return ImageSize(width, height, orientation in range(2, 9))


def probe_all(paths: Sequence[str]) -> list[ImageSize]:
    """Sizes of many images, a few at a time (the waiting for a network drive overlaps)."""
    from PIL import Image

    from .progress import progress

    Image.preinit()
    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return list(progress(pool.map(probe, paths, chunksize=16), len(paths), "reading image sizes"))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
