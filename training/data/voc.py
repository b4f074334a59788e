"""Pascal VOC: an XML file an image.

Coordinates are 1-based and inclusive, as the VOC development kit defines them: the top left pixel is (1, 1), and a box
over a whole 200 pixel image is 1 1 200 200. In our terms (0-based, exclusive ends) that is (xmin-1, ymin-1, xmax,
ymax). Some tools write XML with coordinates that count from 0 and exclusive ends; a 0 among the coordinates gives them
away and is reported; ``format="voc0"`` reads such files as they are.
"""

from __future__ import annotations

import math
import re
import xml.parsers.expat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agssp_zoo.errors import DataError

from .assemble import Box, Named, Pending
from .dataset import Dataset
from .listing import Matcher, list_images
from .problems import Problems
from .splits import assign_splits, read_class_list

_DECLARED = re.compile(rb"""<\?xml\b[^>]*?\bencoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)["']""")
_OF_EXPAT = ("utf-8", "utf-16", "iso-8859-1", "us-ascii")
"""Encodings that the parser knows by itself; of others it reads through Python those of one byte a letter only."""


@dataclass(slots=True)
class Element:
    """An XML element with the line on which it begins."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, tag: str) -> Element | None:
        """The first child of that tag."""
        for child in self.children:
            if child.tag == tag:
                return child
        return None

    def value(self, tag: str) -> str:
        """The text of the first child of that tag, an empty text without one."""
        child = self.find(tag)
        return "" if child is None else child.text.strip()


def parse_xml(data: bytes) -> Element:
    """Parses a small XML document, keeping line numbers (``xml.etree`` forgets them).

    Raises:
        DataError: not well-formed, in an encoding that Python does not know or not in the one that it declares, or
            declares entities, which label files have no need of.
    """
    content = _decoded(data)
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    root = Element("", 0)
    stack = [root]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def characters(text: str) -> None:
        stack[-1].text += text

    def entity(*_: object) -> None:
        raise DataError("declares entities")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except xml.parsers.expat.ExpatError as error:
        raise DataError(f"line {error.lineno}: {xml.parsers.expat.ErrorString(error.code)}") from None
    except DataError:
        raise
    except (LookupError, ValueError) as error:  # a byte order mark before another encoding than it says
        raise DataError(f"line 1: {error}") from None
    return root.children[0]


def _decoded(data: bytes) -> str | bytes:
    """An XML document as the parser takes it: its text, where its encoding is one that the parser does not know."""
    declared = _DECLARED.match(data)
    if declared is None or declared[1].lower().decode() in _OF_EXPAT:
        return data
    encoding = declared[1].decode()
    try:
        return data.decode(encoding)
    except LookupError:
        raise DataError(f"its encoding {encoding!r} is not known") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"line {line}: not in the encoding {encoding!r} that it declares") from None


def read_voc(root: Path, rels: Sequence[str], problems: Problems, *, zero_based: bool = False) -> Dataset:
    """Reads a folder of images and Pascal VOC XML files.

    Classes are those of classes.txt, else the sorted names. Images without an XML file count as background.

    Args:
        root: the folder.
        rels: all files below it.
        problems: collects what is wrong.
        zero_based: coordinates count from 0 and ends are exclusive.

    Raises:
        DataError: no images, or no XML file.
    """
    files = [rel for rel in rels if rel.lower().endswith(".xml")]
    if not files:
        raise DataError(f"{root}: holds no XML files; Pascal VOC has one for every image.")
    images = list_images(root, rels)
    matcher = Matcher(images)
    splits = assign_splits(root, images, matcher, rels, problems)
    classes = read_class_list(root, rels, problems)
    named = Named(images, splits)
    zeros = 0
    for rel in files:
        file = root / rel
        try:
            document = parse_xml(file.read_bytes())
        except (DataError, OSError) as error:
            message = f"not readable XML ({error}); its image is left out."
            line = _line_in(str(error))
            named.refuse(matcher.match(rel), "bad-label-file", file, message, problems, line=line)
            continue
        if document.tag != "annotation":
            continue
        stated = document.value("filename")
        pending = named.start(matcher.match(rel, stated), file, stated, problems, _size(document))
        if pending is not None:
            zeros += _objects(document, pending, named, problems, 0 if zero_based else 1)
    if zeros:
        problems.warning(
            "voc-zero-based",
            root,
            f"{zeros} boxes have a coordinate 0, but VOC counts from 1; if the tool that wrote them counts from 0, "
            "read them with format='voc0' (--format voc0), else boxes reach 1 pixel too far left and up.",
        )
    return named.finish(root, "voc", classes, "XML file", problems)


def _size(document: Element) -> tuple[int, int] | None:
    size = document.find("size")
    if size is None:
        return None
    try:
        width, height = int(float(size.value("width"))), int(float(size.value("height")))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None  # some tools leave 0 there


def _objects(document: Element, pending: Pending, named: Named, problems: Problems, first: int) -> int:
    """Reads the objects; returns how many have a coordinate below ``first``."""
    low = 0
    for element in document.children:
        if element.tag != "object":
            continue
        name, corners = element.value("name"), element.find("bndbox")
        if not name or corners is None:
            message = f"left out: an object without {'a bndbox' if name else 'a name'}."
            problems.error("bad-box", pending.file, message, line=element.line, key=pending.key)
            continue
        try:
            x1, y1, x2, y2 = (float(corners.value(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            x1 = y1 = x2 = y2 = math.nan
        low += x1 < first or y1 < first
        difficult = element.value("difficult").lower() in ("1", "true")
        box = Box(x1 - first, y1 - first, x2, y2, -1, corners.line, difficult=difficult)
        named.boxes.append((pending, name, box))
    return low


def _line_in(message: str) -> int | None:
    word = message.removeprefix("line ").partition(":")[0]
    return int(word) if message.startswith("line ") and word.isdigit() else None
