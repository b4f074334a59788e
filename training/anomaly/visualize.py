"""Looking at anomaly maps: image, map and pseudo-boxes side by side, and a sheet of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agssp_zoo.errors import AgsspZooError, InvalidArgumentError
from agssp_zoo.plotting import draw

from ..data.dataset import Dataset
from ..data.progress import progress
from ..data.records import Record
from ..data.sheet import save_png
from .boxes import PseudoBoxes, pseudo_boxes
from .grid import Map, enlarge
from .layout import writing
from .store import MapStore
from .truth import Mask, Masks

Picture = Image.Image
Pixels = NDArray[np.uint8]

_PANEL, _TILE = 400, 190
"""Sides of a square image in an overlay and on a sheet, in pixels; other images get the same area."""
_GAP, _CAPTION = 6, 18
_SHEET_WIDTH = 1600
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_OUTLINE, _BOX = (0, 255, 120), (120, 240, 255)
"""Colours of a mask's outline, and of boxes on a map."""
_OPACITY = 0.55
_RAMP = (
    (0.0, (0, 0, 40)),
    (0.25, (70, 10, 120)),
    (0.5, (190, 40, 100)),
    (0.75, (250, 130, 30)),
    (1.0, (255, 245, 150)),
)
"""The map's colours from 0 to 1, of rising lightness, so that they read in gray, too."""


def write_pictures(
    store: MapStore,
    dataset: Dataset,
    out: str | Path,
    *,
    boxes: PseudoBoxes | None = None,
    masks: Masks | None = None,
    limit: int = 24,
) -> list[Path]:
    """Writes pictures of some images of each data set, and one sheet of them.

    Each picture shows the image with the outline of its mask, the map over it, and the pseudo-boxes with their
    scores. The images are spread evenly over the ranks of the image score; the sheet shows the highest score first.

    Args:
        store: the maps.
        dataset: the images.
        out: the folder; ``SOURCE.png`` is a sheet, ``SOURCE/KEY.png`` an image.
        boxes: their pseudo-boxes; ``None`` makes them by the authors' rule.
        masks: their masks; ``None`` looks for them beside the images.
        limit: images of a data set at most.

    Returns:
        The files, sheets first.

    Raises:
        InvalidArgumentError: a limit below 1.
        DataError: the maps are of other images.
        TrainingError: a file cannot be written.
    """
    if limit < 1:
        raise InvalidArgumentError(f"limit is {limit}; draw one image at least.")
    store.check(dataset)
    masks = Masks.find(dataset) if masks is None else masks
    chosen = {name: _choose(store, records, limit) for name, records in _by_source(store, dataset).items()}
    if boxes is None:
        boxes = pseudo_boxes(store, replace(dataset, records=tuple(r for group in chosen.values() for r in group)))
    folder, sheets, overlays = Path(out), [], []
    for source, records in chosen.items():
        tiles = []
        with writing(folder):
            (folder / _file_name(source)).mkdir(parents=True, exist_ok=True)
            for record in progress(records, len(records), f"drawing {source}"):
                shown = Shown.of(store, record, boxes, masks)
                overlays.append(folder / _file_name(source) / f"{_file_name(record.key)}.png")
                save_png(draw_overlay(shown), overlays[-1])
                tiles.append(_tile(shown, _area_size(shown.size, _TILE)))
            sheets.append(folder / f"{_file_name(source)}.png")
            save_png(draw_sheet(tiles), sheets[-1])
    return sheets + overlays


@dataclass(frozen=True, eq=False)
class Shown:
    """All that is drawn of one image.

    Attributes:
        image: uint8 (H, W, 3) RGB, or why it cannot be read.
        values: its map, 0-1, float32 (gh, gw).
        size: (width, height) of the image in pixels.
        caption: a line of text.
        boxes: float32 (n, 4), xyxy in pixels.
        scores: float32 (n,).
        mask: bool (H, W), where it is defective; ``None`` where that is not known.
    """

    image: Pixels | str
    values: Map
    size: tuple[int, int]
    caption: str
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    mask: Mask | None = None

    @classmethod
    def of(cls, store: MapStore, record: Record, boxes: PseudoBoxes, masks: Masks) -> Shown:
        """An image of a store; one that cannot be read does not end the drawing, its picture says why."""
        image: Pixels | str
        mask: Mask | None = None
        try:
            image, mask = record.load_image(), masks.load(record)
        except AgsspZooError as error:
            image = str(error)
        found, scores = boxes.of(record.key)
        kind = "" if mask is None else ", mask" if mask.any() else ", empty mask"
        caption = f"{record.key}: score {store.score(record.key):.3f}{kind}"
        values = store.probability(record.key)
        return cls(image, values, (record.width, record.height), caption, found, scores, mask)


def draw_overlay(shown: Shown) -> Picture:
    """Image, map and boxes beside each other, or below each other where the image is wide."""
    size = _area_size(shown.size, _PANEL)
    panels = _panels(shown, size)
    wide = size[0] > 1.8 * size[1]
    columns, rows = (1, len(panels)) if wide else (len(panels), 1)
    picture = Image.new("RGB", (columns * (size[0] + _GAP) + _GAP, rows * (size[1] + _GAP) + _GAP + _CAPTION), _PAPER)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        picture.paste(panel, (_GAP + column * (size[0] + _GAP), _CAPTION + _GAP + row * (size[1] + _GAP)))
    _write_caption(picture, shown.caption, (_GAP, 4), picture.width - _GAP)
    return picture


def draw_sheet(tiles: Sequence[Picture]) -> Picture:
    """Tiles one after the other in rows, as many in each as fit."""
    rows: list[list[Picture]] = [[]]
    for tile in tiles:
        if rows[-1] and sum(other.width + _GAP for other in rows[-1]) + tile.width + _GAP > _SHEET_WIDTH:
            rows.append([])
        rows[-1].append(tile)
    widths = [sum(tile.width + _GAP for tile in row) for row in rows]
    heights = [max((tile.height for tile in row), default=0) + _GAP for row in rows]
    sheet = Image.new("RGB", (max(widths) + _GAP, sum(heights) + _GAP), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + _GAP
        top += height
    return sheet


def colour(values: Map) -> Pixels:
    """Map values 0-1 as colours, uint8 (H, W, 3)."""
    places = [place for place, _ in _RAMP]
    bands = [np.interp(values, places, [shade[band] for _, shade in _RAMP]) for band in range(3)]
    answer: Pixels = np.stack(bands, axis=2).round().astype(np.uint8)
    return answer


def _panels(shown: Shown, size: tuple[int, int]) -> list[Picture]:
    """The image with its mask's outline, the map over the image, and the image with its boxes."""
    if isinstance(shown.image, str):
        panel = Image.new("RGB", size, _PAPER)
        _write_caption(panel, shown.image, (2, 2), size[0], fill=(200, 0, 0))
        return [panel] * 3
    small = Image.fromarray(shown.image).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(small)
    heat = Image.blend(small, Image.fromarray(colour(enlarge(shown.values, (size[1], size[0])))), _OPACITY)
    scale = np.array([size[0] / shown.size[0], size[1] / shown.size[1]] * 2, np.float32)
    no = np.zeros(len(shown.boxes), np.int64)
    boxed = draw(pixels, shown.boxes * scale, no, [f"{score:.2f}" for score in shown.scores])
    return [Image.fromarray(_outlined(pixels, shown.mask)), heat, boxed]


def _outlined(pixels: Pixels, mask: Mask | None) -> Pixels:
    """The image with a line around what the mask covers."""
    if mask is None or not mask.any():
        return pixels
    height, width = pixels.shape[:2]
    # Shrinking by the mean and taking all that is touched keeps cracks of one pixel.
    small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)) > 0
    padded = np.pad(small, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    drawn = pixels.copy()
    drawn[near & ~small] = _OUTLINE
    return drawn


def _tile(shown: Shown, size: tuple[int, int]) -> Picture:
    """A small picture for the sheet: the image with its mask, and the map with the boxes over it."""
    image, heat, _ = _panels(shown, size)
    scale = np.array([size[0] / shown.size[0], size[1] / shown.size[1]] * 2, np.float32)
    pen = ImageDraw.Draw(heat)
    for x1, y1, x2, y2 in (shown.boxes * scale).round().astype(int).tolist():
        pen.rectangle((x1 - 1, y1 - 1, max(x1 + 1, x2), max(y1 + 1, y2)), outline=_BOX)
    wide = size[0] > 1.8 * size[1]
    step = (0, size[1] + 2) if wide else (size[0] + 2, 0)
    tile = Image.new("RGB", (size[0] + step[0], size[1] + step[1] + _CAPTION), _PAPER)
    tile.paste(image, (0, 0))
    tile.paste(heat, step)
    _write_caption(tile, shown.caption, (0, tile.height - _CAPTION + 3), tile.width)
    return tile


def _write_caption(
    picture: Picture, text: str, place: tuple[int, int], width: int, fill: tuple[int, int, int] = _INK
) -> None:
    """One line of text; its beginning is left out where it is too long."""
    pen = ImageDraw.Draw(picture)
    text = " ".join(text.encode("ascii", "replace").decode().splitlines())  # a file's name may hold a line's end
    while len(text) > 8 and pen.textlength(text) > width - place[0]:
        text = "..." + text[8:]
    pen.text(place, text, fill=fill)


def _area_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of the same aspect ratio and about the area of a square of that side."""
    ratio = side / (size[0] * size[1]) ** 0.5
    longest = min(1.0, 2.0 * side / (max(size) * ratio))  # a strip gets at most twice the side
    return max(8, round(size[0] * ratio * longest)), max(8, round(size[1] * ratio * longest))


def _by_source(store: MapStore, dataset: Dataset) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in dataset:
        if record.key in store:
            groups.setdefault(store.sources[store.row(record.key)], []).append(record)
    return dict(sorted(groups.items()))


def _choose(store: MapStore, records: Sequence[Record], limit: int) -> list[Record]:
    """Records spread evenly over the ranks of the image score, the highest first."""
    ranked = sorted(records, key=lambda record: (-store.score(record.key), record.key))
    places = np.linspace(0, len(ranked) - 1, min(limit, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def _file_name(name: str) -> str:
    """A key or data set as the name of a file."""
    return re.sub(r"[^\w.-]+", "__", name).lstrip(".") or "_"
