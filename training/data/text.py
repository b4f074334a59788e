"""Reading text files and knowing lines: encodings, line ends, and on which line a JSON list's entries stand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError

_SPACE = re.compile(r"[\s,]*")
_NO_UTF8 = re.compile("[\udc80-\udcff]")


def readable(name: str, *, letters: bool = True) -> str:
    """A file name as text that can be written and printed everywhere, for names that are not UTF-8.

    Python stands in for each byte that is none with half a character, which no encoding can write. Here it becomes
    the letter that Latin-1 has for it, or its number in hex (``%9A``). Other names are returned as they are.

    Args:
        name: a file's name or path, as Python's functions for folders give it.
        letters: write every such byte in hex, so that two names differ even where one spells in UTF-8 what the other
            spells in Latin-1, if false.
    """

    def replaced(match: re.Match[str]) -> str:
        byte = ord(match[0]) - 0xDC00
        return chr(byte) if letters and byte >= 0xA0 else f"%{byte:02X}"

    return _NO_UTF8.sub(replaced, name)


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file's lines without their ends; ``windows`` says whether any line ended in CR LF."""

    lines: tuple[str, ...]
    windows: bool

    @property
    def text(self) -> str:
        """All lines, joined with line feeds."""
        return "\n".join(self.lines)


def read_text(path: Path) -> TextFile:
    """Reads a text file as UTF-8 (with or without a byte order mark), else as Latin-1; any line ends.

    Raises:
        DataError: the file cannot be read, or is binary.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data[:4096]:
        raise DataError(f"{path}: is not a text file.")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    windows = "\r\n" in text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return TextFile(tuple(lines), windows)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: the file cannot be read, or is not JSON; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None


def json_list_line(path: Path, name: str, position: int | None) -> int | None:
    """On which line an entry of the list ``name`` of a JSON object begins; ``None`` when that cannot be told.

    ``json`` forgets positions, so this reads the list a second time, entry by entry. It is only called when there is
    a problem to report.
    """
    try:
        status = path.stat()
        lines = _json_list_lines(path, name, status.st_mtime_ns, status.st_size)
    except OSError:
        return None
    return lines[position] if position is not None and position < len(lines) else None


@lru_cache(maxsize=4)
def _json_list_lines(path: Path, name: str, _modified: int, _size: int) -> tuple[int, ...]:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    decoder = json.JSONDecoder()
    try:
        position = _value_of(text, name, decoder)
        if position < 0 or text[position] != "[":
            return ()
        lines: list[int] = []
        line, counted = 1, 0
        position += 1
        while True:
            position = _skip(text, position)
            if text[position] == "]":
                return tuple(lines)
            line += text.count("\n", counted, position)
            counted = position
            lines.append(line)
            _, position = decoder.raw_decode(text, position)
    except (ValueError, IndexError):
        return ()


def _value_of(text: str, name: str, decoder: json.JSONDecoder) -> int:
    """Where the value of a top-level key begins in the text of an object, or -1."""
    position = _skip(text, 0)
    if text[position] != "{":
        return -1
    position += 1
    while True:
        position = _skip(text, position)
        if text[position] == "}":
            return -1
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] != ":":
            return -1
        position = _skip(text, position + 1)
        if key == name:
            return position
        _, position = decoder.raw_decode(text, position)


def _skip(text: str, position: int) -> int:
    """The next position that holds neither white space nor a comma."""
    match = _SPACE.match(text, position)
    return match.end() if match else position
