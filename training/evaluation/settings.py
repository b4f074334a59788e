"""How a detector is run and scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.tiling import OVERLAP, Tiling

if TYPE_CHECKING:
    from agssp_zoo.config import Size


@dataclass(frozen=True)
class ValidationSettings:
    """How a detector is run and scored.

    Attributes:
        engine: ``"auto"``, ``"onnx"``, ``"pytorch"`` or ``"openvino"``.
        device: where it runs.
        size: input size, as in ``Detector.predict``; ``None``: the model's own.
        batch: images at a time.
        conf: scores at or below this are dropped before scoring; low, as average precision needs uncertain ones too.
        iou: IoU of the suppression of overlapping boxes; ``None``: the model's own.
        tile: cut images into tiles of this side, or (height, width), as ``Detector.predict`` does; ``None``: do not.
        overlap: least share of a tile that the next one covers again.
        tile_whole: look at the whole image besides its tiles.
        miss_rate: share of a class's boxes that its advised threshold may miss.
        max_det: the best so many detections of a class in an image count for average precision (COCO: 100).
        single_class: whether every defect counts as one class, whatever it is called.
        ignore_difficult: whether difficult boxes are ignored like crowd boxes, as Pascal VOC does.
        tolerance: accepted share of images with errors in their labels, and of images that cannot be read, which are
            left out.
    """

    engine: str = "auto"
    device: str = "cpu"
    size: Size | None = None
    batch: int = 8
    conf: float = 0.001
    iou: float | None = None
    tile: Size | None = None
    overlap: float = OVERLAP
    tile_whole: bool = False
    miss_rate: float = 0.05
    max_det: int = 100
    single_class: bool = False
    ignore_difficult: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values out of range, before a long run begins."""
        if self.batch < 1:
            raise InvalidArgumentError(f"batch is {self.batch}; it must be at least 1.")
        if not 0.0 <= self.conf < 1.0:
            raise InvalidArgumentError(f"conf is {self.conf}; it must lie from 0 to below 1.")
        if not 0.0 <= self.miss_rate < 1.0:
            raise InvalidArgumentError(f"miss_rate is {self.miss_rate}; give a share from 0 to below 1.")
        if self.max_det < 1:
            raise InvalidArgumentError(f"max_det is {self.max_det}; it must be at least 1.")
        if self.tile is None and self.tile_whole:
            raise InvalidArgumentError("tile_whole looks at the whole image besides its tiles; give tile, too.")
        if self.tile is None and self.overlap != OVERLAP:
            raise InvalidArgumentError("overlap is a share of a tile; give tile, too, or leave overlap out.")
        Tiling(1 if self.tile is None else self.tile, self.overlap)

    @property
    def tiling(self) -> dict[str, Any]:
        """The keywords of ``Detector.predict`` that say how images are cut; none where they are not."""
        if self.tile is None:
            return {}
        return {"tile": self.tile, "overlap": self.overlap, "tile_whole": self.tile_whole}
