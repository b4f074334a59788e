"""Which files of a watched folder are done: a file of JSON lines that survives a crash at any moment.

A line is on the disk before its file counts as done. A line that a crash has torn is cut off when the journal is
opened, and its file is done again; what is no beginning of a line of ours stays as it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from agssp_zoo.errors import SourceError
from agssp_zoo.json_text import json_text

_BEGINNING = b'{"file": {"name": '
"""Of every line."""


class Version(NamedTuple):
    """One content of a file: a camera may write another image under the same name."""

    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, name: str, stat: os.stat_result) -> Version:
        """What a file's status says."""
        return cls(name, stat.st_size, stat.st_mtime_ns)


class Journal:
    """Lines of JSON, each about one version of a file.

    Attributes:
        path: the journal.
        done: the versions that lines speak of, also those of the other journals.
        failed: how many of them could not be read.
        counts: how many versions of a name there are.
    """

    def __init__(self, path: Path, *others: Path) -> None:
        """Opens a journal, or begins one.

        Args:
            path: the journal that lines are added to.
            others: those of other ways to write; their files are done as well. They need not be there.

        Raises:
            SourceError: one cannot be read or written, or is no journal.
        """
        self.path = path
        self.done: set[Version] = set()
        self.failed = 0
        self.counts: dict[str, int] = {}
        try:
            self._file = path.open("a+b", buffering=0)
            try:
                self._cut_off(self._take_in(path))
                for other in filter(Path.exists, others):
                    self._take_in(other)
            except BaseException:
                self._file.close()
                raise
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(f"{path} cannot be used ({error.strerror or error}); choose another --out.") from None

    def _take_in(self, path: Path) -> int:
        """Reads the lines of a journal; returns where a torn last one begins."""
        whole = 0
        with path.open("rb") as lines:  # line by line: it may hold the answers of months
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") and _is_torn(line):
                    break
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("without an end")
                    entry = json.loads(line)
                    file = entry["file"]
                    version = Version(str(file["name"]), int(file["size"]), int(file["mtime_ns"]))
                except (ValueError, KeyError, TypeError):
                    raise SourceError(
                        f"{path}, line {number}: is no entry of `agssp-zoo watch`; choose another --out, or move "
                        "the file away."
                    ) from None
                self._note(version, failed="error" in entry)
                whole += len(line)
        return whole

    def _cut_off(self, whole: int) -> None:
        """Ends the journal after so many bytes."""
        if whole < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())

    def _note(self, version: Version, *, failed: bool) -> None:
        self.counts[version.name] = self.counts.get(version.name, 0) + (version not in self.done)
        self.done.add(version)
        self.failed += failed

    def add(self, version: Version, entry: dict[str, Any]) -> None:
        """Writes a line; when this returns, it is on the disk.

        Raises:
            OSError: it cannot be written; what was written of it is taken back.
        """
        line = json_text({"file": version._asdict(), **entry}).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise
        self._note(version, failed="error" in entry)

    def close(self) -> None:
        """Lets the file go."""
        self._file.close()


def _is_torn(line: bytes) -> bool:
    """Whether a last line without an end may be one of ours that a crash has cut."""
    there = line.strip(b"\0")  # what some file systems leave of a line that was on its way
    return there.startswith(_BEGINNING) or _BEGINNING.startswith(there)


def write_durably(path: Path, text: str) -> None:
    """Writes a file under a temporary name, forces it to the disk and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, has to be on the disk before the journal speaks of it
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def force_to_disk(path: Path) -> None:
    """Waits until a written file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


class Lock:
    """Keeps a second process from the same folder, as long as this one lives; the system frees it, whatever happens."""

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Raises:
            SourceError: another process has it.
        """
        self._file = path.open("a+b")
        try:
            self._take()
        except OSError:
            self._file.close()
            raise SourceError(
                f"Another `agssp-zoo watch` writes to {path.parent}; stop it, or choose another --out."
            ) from None

    def _take(self) -> None:
        try:
            import fcntl
        except ImportError:
            import msvcrt

            getattr(msvcrt, "locking")(self._file.fileno(), getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009
        else:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Frees it."""
        self._file.close()
