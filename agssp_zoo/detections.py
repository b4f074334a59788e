"""What a detector answers for one image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import InvalidArgumentError, MissingDependencyError
from agssp_zoo.file_names import short_name, user_path
from agssp_zoo.json_text import json_text

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


@dataclass(frozen=True)
class Detection:
    """One detection.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the original image.
        score: 0-1.
        label: index into the model's class names.
        name: the class's name.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, best first. ``len()``, indexing and iteration work as on a list.

    Attributes:
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels of the original image, inside it.
        scores: (N,) float32, 0-1.
        labels: (N,) int64, indices into ``names``.
        names: the model's class names, all of them.
        image_size: (height, width) of the original image in pixels, upright.
        path: the file or address; ``None`` for arrays, PIL images and bytes.
        page: the page from 0 of a TIFF with several pages, or the frame from 0 of a video, else ``None``.
        timing: milliseconds spent on the image: ``"read"``, ``"preprocess"``, ``"inference"`` (of a batch: its share)
            and ``"postprocess"``.
        reload: reads the image again, or has kept it, for :meth:`plot`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    image_size: tuple[int, int]
    path: str | None = None
    page: int | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    reload: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> Detections: ...

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Detection | Detections:
        """One detection by number; several by slice, indices or mask: ``found[found.scores > 0.5]``."""
        if isinstance(index, (int, np.integer)):
            x1, y1, x2, y2 = (float(v) for v in self.boxes[index])
            label = int(self.labels[index])
            return Detection((x1, y1, x2, y2), float(self.scores[index]), label, self.names[label])
        # A list of booleans is a mask, as an array of them is; an empty list has no type of its own.
        chosen = index if isinstance(index, (slice, np.ndarray)) else np.asarray(index, None if len(index) else np.intp)
        return dataclasses.replace(
            self, boxes=self.boxes[chosen], scores=self.scores[chosen], labels=self.labels[chosen]
        )

    def __iter__(self) -> Iterator[Detection]:
        """The detections one by one, best first."""
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Without ``reload``, which holds whatever the user gave: a pickled answer stays small."""
        return {**vars(self), "reload": None}

    # --- pictures -----------------------------------------------------------------------------------------------

    def image(self) -> NDArray[np.uint8]:
        """The original image, read again where it was not kept: (H, W, 3) uint8 RGB.

        Raises:
            InvalidArgumentError: it is not known where the image came from.
            ImageError: the file is gone or has changed its size.
        """
        if self.reload is not None:
            return self.reload()
        if self.path is None:
            raise InvalidArgumentError("These detections no longer know their image; give it: plot(image).")
        from agssp_zoo.sources import load

        return load(self.path, self.page)

    def plot(self, image: Any = None, *, labels: bool = True) -> PillowImage:
        """Draws the boxes, with names and scores, on the image.

        Args:
            image: anything that ``predict`` takes as one image; ``None`` reads the original again.
            labels: whether names and scores are written.

        Raises:
            InvalidArgumentError: the image is not of ``image_size``, or not known.
            ImageError: the image cannot be read.
        """
        from agssp_zoo.images import read_image
        from agssp_zoo.plotting import draw

        pixels = self.image() if image is None else read_image(image)
        if pixels.shape[:2] != tuple(self.image_size):
            raise InvalidArgumentError(
                f"The image is {pixels.shape[1]}x{pixels.shape[0]} pixels, the detections are of one of "
                f"{self.image_size[1]}x{self.image_size[0]}; give the image they were made from."
            )
        texts = [f"{self.names[label]} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)]
        return draw(pixels, self.boxes, self.labels, texts if labels else None)

    def save(self, path: str | os.PathLike[str], image: Any = None) -> Path:
        """Writes the detections; the suffix says how.

        ``.json`` holds :meth:`to_json`, ``.txt`` :meth:`to_yolo`, an image's suffix the picture of :meth:`plot`. The
        file is written under a temporary name and renamed.

        Raises:
            InvalidArgumentError: an unknown suffix, or a picture too large for the format.
            ImageError: the image cannot be read.
            OSError: the file cannot be written.
        """
        out = user_path(path)
        suffix = out.suffix.lower()
        temporary = out.with_name(f".{short_name(out.stem)}.{os.getpid()}.tmp{suffix}")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if suffix in (".json", ".txt"):
                text = self.to_json() + "\n" if suffix == ".json" else self.to_yolo()
                temporary.write_text(text, encoding="utf-8", newline="\n")
            else:
                picture = self.plot(image)
                try:
                    picture.save(temporary, quality=92)  # of JPEG and WebP; the others have none and ignore it
                except (OSError, ValueError, KeyError) as error:
                    if isinstance(error, OSError) and error.errno is not None:  # of the disk
                        raise
                    if isinstance(error, KeyError) or not _is_picture_suffix(suffix):
                        raise InvalidArgumentError(
                            f"{out.name}: unknown suffix; give an image's (.png, .jpg), .json or .txt."
                        ) from None
                    width, height = picture.size  # JPEG and WebP have limits
                    raise InvalidArgumentError(
                        f"{out.name}: a file of this kind holds no picture of {width}x{height} pixels; save it as .png."
                    ) from None
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        return out

    # --- conversions --------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values: path, page, size [height, width], boxes, scores, labels, and each detection's name."""
        return {
            "path": self.path,
            "page": self.page,
            "size": [int(side) for side in self.image_size],
            "boxes": [[round(float(v), 3) for v in box] for box in self.boxes],
            "scores": [round(float(score), 6) for score in self.scores],
            "labels": [int(label) for label in self.labels],
            "names": [self.names[int(label)] for label in self.labels],
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as one line of JSON."""
        return json_text(self.to_dict())

    def to_yolo(self, *, scores: bool = True) -> str:
        """YOLO's text: a line ``label x_center y_center width height [score]`` a detection, as shares of the image."""
        height, width = self.image_size
        lines = []
        for (x1, y1, x2, y2), score, label in zip(self.boxes, self.scores, self.labels, strict=True):
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            values = " ".join(f"{share:.6f}" for share in shares)
            lines.append(f"{int(label)} {values}" + (f" {score:.6f}" if scores else "") + "\n")
        return "".join(lines)

    def to_coco(self, image_id: int | str = 0, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO's result format: a dict of image_id, category_id, bbox [x, y, width, height] and score a detection.

        Args:
            image_id: of this image in the ground truth.
            category_ids: the ground truth's id of each label; ``None`` numbers the classes from 1, as COCO does.

        Raises:
            InvalidArgumentError: fewer ids than classes.
        """
        ids = range(1, len(self.names) + 1) if category_ids is None else category_ids
        if len(ids) < len(self.names):
            raise InvalidArgumentError(f"category_ids has {len(ids)} entries for {len(self.names)} classes.")
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[int(label)]),
                "bbox": [round(float(v), 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(score), 6),
            }
            for (x1, y1, x2, y2), score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]

    def to_supervision(self) -> Any:
        """As ``supervision.Detections``, names in ``data["class_name"]``.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise MissingDependencyError("to_supervision() needs `pip install supervision`.") from None
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": np.array([self.names[int(label)] for label in self.labels], dtype=str)},
        )


def _is_picture_suffix(suffix: str) -> bool:
    """Whether Pillow knows a suffix."""
    from PIL import Image

    return suffix in Image.registered_extensions()
