"""A watched folder: each new image is predicted once, also over restarts and crashes.

The answer is on the disk before the journal says so, under a name that follows from the journal alone: a crash between
the two repeats the prediction and writes the same answer in the same place. With one file of JSON lines, answer and
journal entry are one line.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import InvalidArgumentError, SourceError
from agssp_zoo.file_names import short_name
from agssp_zoo.journal import Journal, Lock, Version, force_to_disk, write_durably
from agssp_zoo.json_text import json_text
from agssp_zoo.prefetch import WriteBehind
from agssp_zoo.sources import is_image_name, natural_key

if TYPE_CHECKING:
    from agssp_zoo.detections import Detections

LINES = "results.jsonl"
"""Answers and journal in one, where answers are lines."""
JOURNAL = "journal.jsonl"
"""The journal, where every file's answer is a file of its own, ..."""
ANSWERS = "results"
"""... in this folder."""
PICTURES = "annotated"
ROUND = 64
"""At most so many files go to the detector at once: then the folder is looked at again."""


@dataclass(frozen=True)
class WatchSettings:
    """How a folder is watched.

    Attributes:
        folder: where the images appear; those directly in it.
        out: where answers go.
        files: a JSON file for every image, instead of one file of lines.
        pictures: whether annotated pictures are drawn.
        interval: seconds between two looks at the folder.
        settle: seconds that size and time of a file have to stay the same before it is read.

    Raises:
        InvalidArgumentError: there is no such folder, or what is written would be watched.
    """

    folder: Path
    out: Path
    files: bool = False
    pictures: bool = False
    interval: float = 0.5
    settle: float = 1.0

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            what = "is no folder" if self.folder.exists() else "is not there"
            raise InvalidArgumentError(f"{self.folder} {what}; give the folder that the images appear in.")
        for name in ("interval", "settle"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; give seconds, 0 or more.")
        folder, out = self.folder.resolve(), self.out.resolve()
        if out == folder or folder in out.parents:
            raise InvalidArgumentError(
                f"--out {self.out} lies in the watched folder {self.folder}: its own pictures would be predicted; give "
                "a folder outside it."
            )
        if folder in (out / PICTURES, out / ANSWERS):
            raise InvalidArgumentError(
                f"{self.folder} is where --out {self.out} writes to; give another --out, so that no picture is "
                "predicted that was made here."
            )


@dataclass
class Counts:
    """What a watch has done since it began."""

    images: int = 0
    detections: int = 0
    failed: int = 0
    done_before: int = 0


class Watch:
    """Predicts what appears in a folder.

    Args:
        stream: a detector's.
        settings: of the watch.
        options: keywords of it.
        report: is told one line about every file that cannot be read.

    Raises:
        SourceError: ``out`` cannot be used, or another process does.
    """

    def __init__(
        self,
        stream: Callable[..., Iterator[Detections]],
        settings: WatchSettings,
        options: Mapping[str, Any],
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stream, self.settings, self.options, self.report = stream, settings, dict(options), report
        out = settings.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, wanted in ((ANSWERS, settings.files), (PICTURES, settings.pictures)):
                if wanted:
                    (out / name).mkdir(exist_ok=True)
        except OSError as error:
            raise SourceError(f"{out} cannot be made ({error.strerror or error}); choose another --out.") from None
        self.lock = Lock(out / ".lock")
        try:
            path, other = (JOURNAL, LINES) if settings.files else (LINES, JOURNAL)
            self.journal = Journal(out / path, out / other)  # what is done is done, however it was written
        except SourceError:
            self.lock.close()
            raise
        for name in (ANSWERS, PICTURES):  # the remains of a crash; nobody else writes here
            for rest in (out / name).glob(".*.tmp*"):
                rest.unlink(missing_ok=True)
        self.counts = Counts(done_before=len(self.journal.done))
        self._stop = threading.Event()
        self._seen: dict[str, tuple[Version, float]] = {}
        self._there = True
        self._looked = float("-inf")
        self._pause = settings.interval

    def stop(self) -> None:
        """Ends :meth:`run` after the image at hand; may be called from a signal handler or another thread."""
        self._stop.set()

    def run(self, *, once: bool = False) -> Counts:
        """Watches until :meth:`stop` is called.

        Args:
            once: end as soon as all that is there is done.

        Raises:
            AgsspZooError: the network cannot be run.
            OSError: an answer cannot be written; nothing is lost, the next start does its image again.
        """
        try:
            while not self._stop.is_set():
                there = self._look()
                ready = self._ready() if there else []
                if ready:
                    self._predict(ready)
                elif once and there and not any(version.size for version, _ in self._seen.values()):
                    for version, _ in self._seen.values():
                        self.report(f"{self.settings.folder / version.name} is empty; left out.")
                    break
                else:
                    self._stop.wait(self._pause)
        finally:
            self.journal.close()
            self.lock.close()
        return self.counts

    # --- what is there ------------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Notes since when every new file has been as it is; returns whether the folder is there."""
        self._looked = now = time.monotonic()
        found: dict[str, tuple[Version, float]] = {}
        try:
            with os.scandir(self.settings.folder) as entries:
                for entry in entries:
                    if not is_image_name(entry.name):
                        continue
                    try:
                        if not entry.is_file():
                            continue
                        version = Version.of(entry.name, Path(entry.path).stat())
                    except OSError:  # gone again
                        continue
                    if version in self.journal.done:
                        continue
                    known = self._seen.get(entry.name)
                    found[entry.name] = known if known is not None and known[0] == version else (version, now)
        except OSError as error:  # a share that comes and goes
            if self._there:
                self.report(f"{self.settings.folder} cannot be listed ({error.strerror or error}); waiting for it.")
            self._there = False
            return False
        self._there = True
        self._seen = found
        # A folder of 100,000 files takes a second to look through; most of the time is for predicting.
        self._looked = time.monotonic()
        self._pause = max(self.settings.interval, 5 * (self._looked - now))
        return True

    def _ready(self) -> list[Version]:
        """The oldest of the files that nobody writes to any more, in the order in which they were written."""
        now, settle = time.monotonic(), self.settings.settle
        still = [version for version, since in self._seen.values() if now - since >= settle and version.size > 0]
        return sorted(still, key=lambda version: (version.mtime_ns, natural_key(version.name)))[:ROUND]

    # --- one round ----------------------------------------------------------------------------------------------

    def _predict(self, ready: Sequence[Version]) -> None:
        """Predicts some files; a thread draws and writes while the network works on the next."""
        paths = {str(self.settings.folder / version.name): version for version in ready}
        errors: dict[str, Exception] = {}
        answers: list[Detections] = []
        # A reading error is told before the answers of the images before it have come out, so it is only noted here.
        stream = self.stream(
            list(paths), **self.options, on_error=lambda path, error: errors.__setitem__(str(path), error)
        )
        left = dict.fromkeys(paths)

        def hand_over() -> None:
            path = str(answers[0].path)
            left.pop(path, None)
            writer.put(paths[path], tuple(answers), errors.get(path))
            answers.clear()

        with WriteBehind(self._write) as writer:
            for answer in stream:
                if answers and answers[0].path != answer.path:
                    hand_over()
                answers.append(answer)
                if answer.page is None:
                    hand_over()
                if self._stop.is_set():
                    break
                if time.monotonic() - self._looked >= self._pause:
                    self._look()  # what comes meanwhile settles meanwhile
            else:
                if answers:
                    hand_over()
                for path in left:
                    if path in errors:
                        writer.put(paths[path], (), errors[path])
        self._look()

    def _write(self, version: Version, answers: Sequence[Detections], error: Exception | None) -> None:
        """Writes what was found in one file; on the writing thread."""
        path = self.settings.folder / version.name
        try:
            now: Version | None = Version.of(version.name, path.stat())
        except OSError:
            now = None
        if now is not None and now != version:
            return  # written to while it was read: the new version is predicted when it has settled
        if now is None and error is not None:
            self.report(f"{path} is gone before it was read.")
            return
        pages = [answer.to_dict() for answer in answers]
        entry: dict[str, Any] = {"predicted": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        if len(pages) == 1 and pages[0]["page"] is None:
            entry |= pages[0]
        elif pages:
            entry |= {"path": str(path), "pages": pages}
        if error is not None:
            entry |= {"path": str(path), "error": str(error)}
        name = self._name(version)
        if self.settings.pictures:
            for answer in answers:
                page = "" if answer.page is None else f"_page{answer.page}"
                try:
                    force_to_disk(answer.save(self.settings.out / PICTURES / f"{name}{page}.jpg"))
                except (SourceError, InvalidArgumentError) as gone:
                    # Moved on before its picture was drawn, or too large for a JPEG; the answer stands.
                    self.report(f"no picture of {path}: {gone}")
        if self.settings.files and answers:
            answer_file = self.settings.out / ANSWERS / f"{name}.json"
            write_durably(answer_file, json_text({"file": version._asdict(), **entry}) + "\n")
            entry = {"answer": f"{ANSWERS}/{name}.json", **({"error": str(error)} if error is not None else {})}
        self.journal.add(version, entry)
        self.counts.images += len(answers)
        self.counts.detections += sum(map(len, answers))
        if error is not None:
            self.counts.failed += 1
            self.report(str(error))

    def _name(self, version: Version) -> str:
        """What the answer is called: by the file, and from its second version on with the version's number."""
        name, number = short_name(version.name), self.journal.counts.get(version.name, 0) + 1
        return name if number == 1 else f"{name}.{number}"
