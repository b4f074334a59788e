"""``agssp-zoo watch``: images are predicted as they appear in a folder, each once, also over restarts."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from agssp_zoo.commands.options import (
    add_detecting_arguments,
    add_running_arguments,
    detecting_options,
    load,
    print_json,
)
from agssp_zoo.file_names import user_path
from agssp_zoo.surroundings import endings

if TYPE_CHECKING:
    from agssp_zoo.watching import Watch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``watch``."""
    parser.add_argument("folder", metavar="IN", help="folder that the images appear in (not its sub-folders)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the answers go, and what is done is noted")
    parser.add_argument("--model", "-m", help="name, model folder or hf://owner/repo (default: the default detector)")
    group = parser.add_argument_group("watching")
    group.add_argument(
        "--files", action="store_true", help="a JSON file for every image in DIR/results, instead of DIR/results.jsonl"
    )
    group.add_argument("--pictures", action="store_true", help="draw annotated pictures into DIR/annotated")
    group.add_argument("--interval", type=float, default=0.5, metavar="S", help="look every so many seconds (0.5)")
    group.add_argument(
        "--settle", type=float, default=1.0, metavar="S",
        help="read a file when its size and time have stayed the same for so long (1.0)",
    )  # fmt: skip
    group.add_argument("--once", action="store_true", help="end when all that is there is done")
    add_detecting_arguments(parser)
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watches until it is stopped; 0 when it ended as asked, whatever could not be read."""
    from agssp_zoo.watching import LINES, Watch, WatchSettings

    settings = WatchSettings(
        user_path(args.folder),
        user_path(args.out),
        files=args.files,
        pictures=args.pictures,
        interval=args.interval,
        settle=args.settle,
    )
    detector = load(args)
    options = {**detecting_options(args), "keep_images": args.pictures}
    detector.stream([], **options)  # wrong arguments are told before anything is written
    watch = Watch(detector.stream, settings, options, _say)
    if watch.counts.done_before:
        _say(f"{watch.counts.done_before} files of {settings.folder} are done already.")
    with _stopped_by_signals(watch):
        counts = watch.run(once=args.once)
    where = settings.out if settings.files else settings.out / LINES
    if args.json:
        print_json({**vars(counts), "out": str(where)})
    else:
        sys.stdout.write(
            f"{counts.detections} detections in {counts.images} images, {counts.failed} files unreadable: {where}\n"
        )
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"agssp-zoo: {line}\n")
    sys.stderr.flush()


@contextmanager
def _stopped_by_signals(watch: Watch) -> Iterator[None]:
    """SIGINT (Ctrl-C), SIGTERM and SIGHUP end the watch when the image at hand is done.

    A second SIGINT or SIGTERM ends it at once; a terminal that is closed sends two SIGHUP, below ``nohup`` none counts.
    """

    def ask(number: int, _: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, before[signal.Signals(number)])
        watch.stop()

    before = {number: signal.getsignal(number) for number in endings()}
    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
