"""What a user points at -> images, one after the other.

- A path is a file; every page of a TIFF is an image.
- A folder stands for the image files directly in it; a pattern (``*``, ``?``, ``[...]``, and ``**`` for any depth) for
  those that it matches. Both come in natural order (``s2.png`` before ``s10.png``), without hidden files and without
  files that have no image's suffix.
- An ``http://`` or ``https://`` address is downloaded.
- A video file (``.mp4``, ``.avi`` ...) stands for its frames; a camera's number (also ``"camera:0"``) and an address
  such as ``rtsp://...`` for what it sees, without an end; see :mod:`agssp_zoo.video`.
- ``bytes`` are an image file, and so is a file that is open for reading bytes; PIL images and arrays are images.
- A list, a generator or any other iterable stands for all of its entries, in order.

Everything is lazy: only names are held, never more than one image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import ImageError, InvalidArgumentError, SourceError
from agssp_zoo.file_names import user_path
from agssp_zoo.images import ChannelOrder, check_channel_order, file_bytes, from_array, is_open_file, iter_pages
from agssp_zoo.video import FrameReader, frames, is_live, is_video

SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""Suffixes of the files that a folder or a pattern stands for."""
URL_TIMEOUT = 30.0
"""Seconds without an answer before a download is given up."""
URL_LIMIT = 1 << 28
"""Most bytes that an address may answer with."""

_URL = re.compile(r"https?://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")
_NUMBER = re.compile(r"\d+")


class Item(NamedTuple):
    """One image of a source, or why there is none.

    Attributes:
        image: (H, W, 3) uint8 RGB, or the error.
        path: the file or address it comes from; ``None`` for bytes, open files, PIL images and arrays.
        page: page number from 0 within a TIFF of several pages, or frame number within a video, else ``None``.
        listed: whether a folder or a pattern led to it, rather than the user naming it.
        reload: reads the image again; holds the user's own object or the path, never a decoded copy, but of a live
            source, whose image comes only once.
    """

    image: NDArray[np.uint8] | SourceError
    path: str | None = None
    page: int | None = None
    listed: bool = False
    reload: Callable[[], NDArray[np.uint8]] | None = None


class _Missing(NamedTuple):
    """A name behind which nothing was found."""

    error: SourceError
    name: str


def iter_sources(source: Any, *, channel_order: ChannelOrder = "rgb") -> Iterator[Item]:
    """Goes through all images of a source, in order.

    Args:
        source: see the head of this file.
        channel_order: of arrays, ``"rgb"`` or ``"bgr"``.

    Yields:
        one :class:`Item` an image; what cannot be read is an item with an error, and the next one follows.

    Raises:
        InvalidArgumentError: something in the source is of a type that is no source.
    """
    check_channel_order(channel_order)
    for one, listed in _flatten(source):
        if isinstance(one, _Missing):
            yield Item(one.error, one.name, listed=listed)
        else:
            yield from _read(one, listed, channel_order)


def is_single(source: Any) -> bool:
    """Whether a source is one object in memory, so that nothing is gained by reading ahead."""
    return isinstance(source, (np.ndarray, bytes, bytearray, memoryview)) or _is_pillow(source) or is_open_file(source)


def may_read_ahead(source: Any) -> bool:
    """Whether the next image may be read while the last one is still worked on.

    Not so for a user's generator (a camera): it keeps its own time, and runs in the caller's thread.
    """
    return isinstance(source, (str, os.PathLike, list, tuple)) or is_live(source)


def with_an_end(source: Any) -> Any:
    """A source without a camera or a network stream in it; a list is looked through at once, a generator as it goes.

    Raises:
        InvalidArgumentError: there is one; in a generator's case when it is reached.
    """
    if is_live(os.fspath(source) if isinstance(source, os.PathLike) else source):
        raise InvalidArgumentError(f"{source!r} has no end, so predict() would never answer; take stream().")
    if isinstance(source, (list, tuple)):
        return [with_an_end(one) for one in source]
    return map(with_an_end, source) if isinstance(source, Iterator) and not is_single(source) else source


def _flatten(source: Any) -> Iterator[tuple[Any, bool]]:
    """Single files, addresses and objects, each with whether it was listed; an error where nothing is found."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if not isinstance(name, str):
            name = os.fsdecode(name)
        if not name:  # which is the current folder to the system
            raise InvalidArgumentError("The path is empty; give that of an image, or '.' for the current folder.")
        if _URL.match(name):
            yield name, False
            return
        if is_live(name):
            yield name, False
            return
        path = user_path(name)
        try:
            if path.is_dir():
                yield from _list_folder(path)
            elif _MAGIC.search(name) and not path.exists():  # a file may be named "a[1].png"
                yield from _list_pattern(str(path))
            else:
                yield name, False
        except OSError as error:
            yield _Missing(SourceError(f"{name} cannot be listed ({error.strerror or error})."), name), False
        return
    if is_single(source) or is_live(source):
        yield source, False
        return
    if isinstance(source, Iterable) and not isinstance(source, (dict, set, frozenset)) and not hasattr(source, "dtype"):
        for one in source:
            yield from _flatten(one)
        return
    hint = "; turn the tensor into an array first: tensor.numpy()" if hasattr(source, "dtype") else ""
    raise InvalidArgumentError(
        f"{type(source).__name__} is no image source{hint}; give a path, folder, pattern, URL, bytes, PIL image, "
        "numpy array, or a list of these."
    )


def _list_folder(folder: Path) -> Iterator[tuple[Any, bool]]:
    """The image files directly in a folder; names only are held, so that a folder of any size fits."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if is_image_name(e.name) and _is_file(e)]
    if not names:
        inside = folder / "**" / "*"
        message = f"{folder} holds no image files; for those in its sub-folders give {str(inside)!r}."
        yield _Missing(SourceError(message), str(folder)), False
    names.sort(key=natural_key)
    for name in names:
        yield str(folder / name), True


def _list_pattern(pattern: str) -> Iterator[tuple[Any, bool]]:
    """The image files that match a pattern."""
    closed: list[tuple[str, OSError]] = []
    found = dict.fromkeys(_glob(pattern, closed))  # with two ** a file may match in two ways
    paths = [path for path in found if is_image_name(Path(path).name) and _is_file(Path(path))]
    for folder, error in closed:
        yield _Missing(SourceError(f"{folder} cannot be listed ({error.strerror or error})."), folder), True
    if not paths and not closed:
        message = f"No image file matches {pattern!r}; check the path and the pattern."
        yield _Missing(SourceError(message), pattern), False
    paths.sort(key=natural_key)
    for path in paths:
        yield path, True


def _glob(pattern: str, closed: list[tuple[str, OSError]]) -> Iterator[str]:
    """As ``glob.iglob``, whose ``**`` would go round forty times where a link leads to a folder above itself.

    Args:
        pattern: the pattern.
        closed: is told the folders that cannot be listed.
    """
    import glob

    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob takes no absolute patterns
        return
    at = parts.index("**")
    rest = Path(*parts[at + 1 :]) if parts[at + 1 :] else Path("*")
    for top in glob.iglob(str(Path(*parts[:at]))) if at else [""]:  # noqa: PTH207
        for folder in _folders(top, closed):
            yield from _glob(str(Path(glob.escape(folder)) / rest), closed)


def _folders(top: str, closed: list[tuple[str, OSError]]) -> Iterator[str]:
    """A folder and all below it but hidden ones; links are followed where they do not lead to a folder above."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        below = []
        try:
            status = Path(folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and _is_folder(entry):
                        below.append(str(Path(folder) / entry.name))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            closed.append((folder, error))
            continue
        yield folder
        waiting += [(one, above | {identity}) for one in below]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry, or what a link leads to, is a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str] | Path) -> bool:
    """Whether an entry is a file; a link that leads in a circle, or where nobody may look, is told when it is read."""
    try:
        return entry.is_file()
    except OSError:
        return True


def is_image_name(name: str) -> bool:
    """Whether a folder's file of that name is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - of 100,000


def natural_key(name: str) -> tuple[str, str]:
    """Sorts numbers in names by value, ``s2`` before ``s10``, and upper and lower case together."""
    return _NUMBER.sub(lambda number: number.group().zfill(20), name.casefold()), name


def _read(one: Any, listed: bool, channel_order: ChannelOrder) -> Iterator[Item]:
    """The images of a single file, address or object."""
    if isinstance(one, np.ndarray):
        if one.ndim == 4:
            yield Item(ImageError(f"The array has shape {one.shape}; give several images as a list: list(array)."))
            return
        try:
            image = from_array(one, channel_order=channel_order)
        except ImageError as error:
            yield Item(error)
        else:
            yield Item(image, reload=lambda: from_array(one, channel_order=channel_order))
        return
    if is_video(one):
        yield from _read_video(one, listed)
        return
    path = one if isinstance(one, str) else None
    page: int | None = None
    try:
        data = download(one) if path is not None and _URL.match(path) else file_bytes(one) if is_open_file(one) else one
        for image, page in iter_pages(data):
            yield Item(image, path, page, listed, _reloader(data, page))
    except SourceError as error:
        yield Item(_named(error, path), path, page, listed)


def _read_video(one: str | int, listed: bool) -> Iterator[Item]:
    """The frames of a video file or of something live."""
    live = is_live(one)
    path = one if isinstance(one, str) else f"camera:{one}"
    again = None if live else FrameReader(path)
    number = 0
    try:
        for number, image in enumerate(frames(one)):
            yield Item(
                image, path, number, listed, partial(_same, image) if again is None else partial(again.read, number)
            )
    except SourceError as error:
        yield Item(error, path, number, listed)


def _same(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


def _named(error: SourceError, path: str | None) -> SourceError:
    """Names the address in the message about what was downloaded."""
    if path is None or not _URL.match(path) or path in str(error):
        return error
    return ImageError(f"{path}: {error}")


def _reloader(source: Any, page: int | None) -> Callable[[], NDArray[np.uint8]]:
    """Reads a page again, when a picture of it is drawn; of a download the bytes are kept."""
    return lambda: load(source, page)


def load(source: Any, page: int | None = None) -> NDArray[np.uint8]:
    """Reads one image, or one page, of a file, an address or an object in memory: (H, W, 3) uint8 RGB.

    Raises:
        SourceError: it cannot be read, or has no such page.
    """
    if isinstance(source, str) and is_video(source) and not is_live(source):
        return FrameReader(source).read(page or 0)
    is_url = isinstance(source, str) and _URL.match(source)
    for image, number in iter_pages(download(source) if is_url else source, first=page or 0):
        if number == page:
            return image
    raise ImageError(f"{source}: there is no page {page}; the file has changed.")


def download(url: str) -> bytes:
    """The bytes behind an http or https address.

    Raises:
        SourceError: no answer, an error answer, a cut connection, or more than ``URL_LIMIT`` bytes.
    """
    import http.client
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(url, headers={"User-Agent": "agssp-zoo"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as answer:
            data: bytes = answer.read(URL_LIMIT + 1)
            announced = int(answer.headers.get("Content-Length") or len(data))
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{url}: the server answers {error.code} {error.reason}; check the address.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise SourceError(f"{url} cannot be downloaded ({reason}); check the address and network.") from None
    if len(data) > URL_LIMIT:
        raise SourceError(f"{url} is larger than {URL_LIMIT >> 20} MiB; download it yourself, give the path.")
    if len(data) < announced:
        raise SourceError(f"{url}: the connection was cut after {len(data)} of {announced} bytes; try again.")
    return data


def _is_pillow(source: Any) -> bool:
    """Whether an object is a PIL image, without importing Pillow for it."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(source).__mro__)
