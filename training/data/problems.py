"""What is wrong with a data set, as records: one for each thing a reader stumbled over, with file and line.

Errors, by which an image or a label is lost::

    corrupt-image        cannot be decoded, or too small      size-mismatch        labels are for another image size
    label-without-image  no image for a label file            missing-image        named in COCO, but not there
    bad-label-file       unreadable XML, JSON or text         corrupt-mask         an unreadable mask
    two-label-files      for one image                        bad-entry            a COCO image without id or name
    duplicate-image-id   in COCO                              duplicate-image      two COCO entries for one image
    unknown-image        of a COCO annotation                 unknown-class        not in the class list
    bad-box, bad-line    not coordinates                      not-normalized       YOLO, but in pixels
    empty-box            without area                         box-outside          outside the image
    list-without-image   a line of train.txt                  split-overlap        one image in two splits
    split-not-there      a path of data.yaml              mask-values          several, read as one class

Warnings while reading::

    box-clipped          reached over the image's edge        duplicate-box        stands twice, kept once
    tiny-box             under one pixel                      mask-speck           components under four pixels
    no-label-file        images count as free of defects      not-in-a-list        images that take no part
    image-without-entry  images that COCO does not name       listed-twice         a line of train.txt
    windows-line-ends    read as usual ones                   category-gaps        in class ids, closed up
    no-class-list        YOLO without names                   class-lists-differ   between COCO files
    voc-zero-based       coordinates that count from 0        several-formats      of labels in one folder
    path-not-there       data.yaml's path                     exif-orientation     stored turned or mirrored
    mask-beside-image    left out of unlabelled images        shared-label-file    YOLO, two images of one name
    mask-faint           components below half of the range   split-not-told       of a COCO file, read as train

Warnings of ``agssp-zoo check-data``::

    same-image           twice in one split                   near-duplicate       across splits
    near-duplicates-inside  without splits                    flat-image           one even gray
    box-twice            overlapping boxes of one class       box-of-two-classes   overlapping boxes of two classes
    class-without-boxes  in the class list only               class-not-in-split   cannot be measured
    rare-class           few boxes to train on                no-val-split         nothing to validate on
    class-turned         lies another way in another split    few-gray-levels   12 bits stored in 16
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .text import readable

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth knowing, about a data set.

    An *error* means that an image or a label was lost (left out of the data set); a *warning* means that something
    was repaired, or is fine but unusual.

    Attributes:
        severity: ``"error"`` or ``"warning"``.
        code: a short stable name, e.g. ``"box-outside"``; see :mod:`agssp_zoo.training.data.problems`.
        file: the file at fault, or the folder when it concerns many files, as text to be printed.
        line: the line in that file, from 1; ``None`` where lines mean nothing (an image, a mask).
        message: one sentence.
        key: the image it is about; empty when it is not about one image.
        split: the split it is about, where the data set holds no image that would tell; empty where none is known.
    """

    severity: Severity
    code: str
    file: str
    line: int | None
    message: str
    key: str = ""
    split: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.severity} [{self.code}] {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """The plain dict that JSON holds."""
        return asdict(self)


class Problems:
    """Collects the problems of one reading, in the order in which they were met."""

    def __init__(self) -> None:
        self._items: list[Problem] = []

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(
        self,
        severity: Severity,
        code: str,
        file: object,
        message: str,
        *,
        line: int | None = None,
        key: str = "",
        split: str = "",
    ) -> None:
        """Notes a problem."""
        self._items.append(Problem(severity, code, readable(str(file)), line, readable(message), key, split))

    def error(
        self, code: str, file: object, message: str, *, line: int | None = None, key: str = "", split: str = ""
    ) -> None:
        """Notes that an image or a label was lost."""
        self.add("error", code, file, message, line=line, key=key, split=split)

    def warning(self, code: str, file: object, message: str, *, line: int | None = None, key: str = "") -> None:
        """Notes that something was repaired, or is unusual."""
        self.add("warning", code, file, message, line=line, key=key)


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names of a list for a message: ``"a, b, c and 5 more"``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
