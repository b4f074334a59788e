"""``agssp-zoo predict``: images -> predictions.json and annotated pictures.

Both are written as the images come, so that a folder of any size runs in constant memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from agssp_zoo.commands.options import (
    add_detecting_arguments,
    add_running_arguments,
    detecting_options,
    load,
    print_json,
)
from agssp_zoo.errors import InvalidArgumentError, SourceError
from agssp_zoo.file_names import short_name, user_path
from agssp_zoo.json_text import json_text
from agssp_zoo.prefetch import WriteBehind
from agssp_zoo.video import is_live, is_video

if TYPE_CHECKING:
    from agssp_zoo.detections import Detections
    from agssp_zoo.sources import Item

PREDICTIONS = "predictions.json"
PICTURES = "annotated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``predict``."""
    parser.add_argument(
        "source", nargs="+", metavar="SOURCE", help="image, folder, quoted pattern, URL, video, camera:0 or rtsp://..."
    )
    parser.add_argument("--out", required=True, metavar="DIR", help=f"where {PREDICTIONS} and {PICTURES}/ go")
    parser.add_argument("--model", "-m", help="name, model folder or hf://owner/repo (default: the default detector)")
    parser.add_argument("--no-images", action="store_true", help=f"write {PREDICTIONS} only")
    group = add_detecting_arguments(parser)
    group.add_argument(
        "--channel-order",
        choices=("rgb", "bgr"),
        default="rgb",
        help="bgr for files whose red and blue were swapped when they were saved",
    )
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Detects; bad files are reported at the end, and make the exit code 1."""
    out = user_path(args.out)
    detector = load(args)
    failed: list[dict[str, str]] = []

    def report(path: str | None, error: Exception) -> None:
        failed.append({"path": path or "", "error": str(error)})

    swapped = _Swapped(args.source, report) if args.channel_order == "bgr" else None
    found = detector.stream(
        swapped.images() if swapped else args.source,
        **detecting_options(args),
        channel_order=args.channel_order,
        on_error=report,
        keep_images=not args.no_images,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)  # not before the arguments were checked
        pictures = None if args.no_images else _Pictures(out / PICTURES, report)
    except OSError as error:
        raise SourceError(f"{out} cannot be made ({error.strerror or error}); choose another --out.") from None
    draw = nullcontext() if pictures is None else WriteBehind(pictures.save)
    images = detections = 0
    progress = _Progress(sys.stderr)
    # Where nothing could be read, the answers of an earlier run stay: the path was mistyped, more often than not.
    with _json_list(out / PREDICTIONS, lambda: bool(images) or not failed) as add, draw as drawing:
        for answer in _until_interrupted(found, live=any(map(is_live, args.source))):
            one = swapped.name(answer) if swapped else answer
            add(one.to_dict())
            if drawing is not None:
                drawing.put(one)
            images, detections = images + 1, detections + len(one)
            progress.show(images)
    progress.close()
    written = str(out / PREDICTIONS) if images or not failed else None
    summary = {"predictions": written, "images": images, "detections": detections, "failed": failed}
    if args.json:
        print_json(summary)
    else:
        sys.stdout.write(f"{detections} detections in {images} images: {written or 'nothing written'}\n")
    for one_failed in failed:
        sys.stderr.write(f"agssp-zoo: {one_failed['error']}\n")
    return 1 if failed else 0


def _until_interrupted(found: Iterator[Detections], *, live: bool) -> Iterator[Detections]:
    """All answers; of a camera, which has no end, those until Ctrl-C."""
    try:
        yield from found
    except KeyboardInterrupt:
        if not live:
            raise


@contextmanager
def _json_list(path: Path, wanted: Callable[[], bool]) -> Iterator[Any]:
    """Writes a JSON list, one entry a line, as the entries come; put in place when it is complete and ``wanted``.

    Yields:
        the function that adds an entry.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    separator = "\n"

    def add(entry: dict[str, Any]) -> None:
        nonlocal separator
        file.write(separator + json_text(entry))
        separator = ",\n"

    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write("[")
            yield add
            file.write("\n]\n")
        if wanted():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Swapped:
    """Images of files with red and blue swapped: given to the detector as BGR arrays, which know no file."""

    def __init__(self, source: list[str], on_error: Callable[[str | None, SourceError], None]) -> None:
        self.source, self.on_error = source, on_error
        self.given: deque[Item] = deque()

    def images(self) -> Iterator[Any]:
        """The images; what cannot be read is reported."""
        from agssp_zoo.sources import iter_sources

        for item in iter_sources(self.source):
            if isinstance(item.image, SourceError):
                self.on_error(item.path, item.image)
            else:
                self.given.append(item._replace(image=item.image[:0]))
                yield item.image

    def name(self, answer: Detections) -> Detections:
        """The next answer, with the file that it belongs to."""
        item = self.given.popleft()
        reload = item.reload
        pixels = None if reload is None else lambda: reload()[..., ::-1].copy()
        return replace(answer, path=item.path, page=item.page, reload=pixels)


class _Pictures:
    """Writes annotated pictures into a folder, under the names of the originals, none twice."""

    def __init__(self, folder: Path, on_error: Callable[[str | None, SourceError], None]) -> None:
        self.folder, self.on_error = folder, on_error
        self.used: dict[str, int] = {}
        folder.mkdir(exist_ok=True)

    def save(self, found: Detections) -> None:
        """Draws one image's detections; where that cannot be, it is reported, and the answers stand."""
        source = Path((found.path or "image").split("?")[0])
        kind = "frame" if is_video(found.path) else "page"
        stem = short_name(source.stem)
        stem = stem.replace(":", "") if found.page is None else f"{stem}_{kind}{found.page}"
        name = stem
        while name in self.used:  # the same name in another folder
            self.used[stem] += 1
            name = f"{stem}_{self.used[stem]}"
        self.used[name] = 1
        target = self.folder / f"{name}.jpg"
        if found.path is not None and target.exists() and target.samefile(found.path):
            raise InvalidArgumentError(f"{target} would be drawn over; choose another --out.")
        try:
            found.save(target)
        except (OSError, InvalidArgumentError) as error:
            where = found.path if found.page is None else f"{found.path}, {kind} {found.page}"
            what = getattr(error, "strerror", None) or error
            self.on_error(found.path, SourceError(f"no picture of {where}: {what}"))


class _Progress:
    """The number of images done, on a terminal only, at most five times a second."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream if stream.isatty() else None
        self.start = self.last = time.monotonic()

    def show(self, images: int) -> None:
        """Shows the count."""
        now = time.monotonic()
        if self.stream is not None and now - self.last >= 0.2:
            self.last = now
            self.stream.write(f"\r{images} images, {images / (now - self.start):.1f} a second ")
            self.stream.flush()

    def close(self) -> None:
        """Clears the line."""
        if self.stream is not None:
            self.stream.write("\r\x1b[K")
