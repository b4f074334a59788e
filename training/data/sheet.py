"""Contact sheets: samples with their boxes drawn, and pairs of near duplicates side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agssp_zoo.errors import AgsspZooError

from .dataset import Dataset
from .records import Record
from .text import readable

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TILE = 256
"""Side of a tile for square images, in pixels; tiles for longer images have the same area."""
CAPTION = 18
LETTER = 10
"""Size of the letters below and in place of images, in pixels."""
GAP = 6
WIDTH = 1580
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def draw_samples(dataset: Dataset, count: int = 24, seed: int = 0) -> PillowImage:
    """A sheet of images drawn at random, classes in turn, with boxes and class names; images without boxes as well.

    Args:
        dataset: where they are taken from.
        count: how many images at most.
        seed: of the choice.
    """
    chosen = choose(dataset, count, seed)
    tile = _tile_size(chosen)
    columns = max(1, WIDTH // (tile[0] + GAP))
    return _sheet([_tile(record, dataset.class_names, tile) for record in chosen], tile, columns)


def draw_pairs(dataset: Dataset, keys: Sequence[tuple[str, str]]) -> PillowImage:
    """A sheet of pairs of images side by side, two pairs a row.

    Args:
        dataset: where they are taken from.
        keys: the pairs, by key.
    """
    records = {record.key: record for record in dataset.records}
    chosen = [records[key] for pair in keys for key in pair]
    tile = _tile_size(chosen)
    columns = max(2, WIDTH // (tile[0] + GAP) // 2 * 2)
    return _sheet([_tile(record, dataset.class_names, tile) for record in chosen], tile, columns)


def save_png(image: PillowImage, file: Path) -> None:
    """Writes a picture under a temporary name and renames it."""
    temporary = file.with_name(f".{file.name}.tmp")
    image.save(temporary, "PNG")
    temporary.replace(file)


def choose(dataset: Dataset, count: int, seed: int) -> list[Record]:
    """Records that show the classes in turn (background counts as one), none twice."""
    order = np.random.default_rng(seed).permutation(len(dataset.records)).tolist()
    queues: dict[int, list[Record]] = {}
    for place in order:
        record = dataset.records[place]
        for label in sorted(set(record.labels.tolist())) or [len(dataset.class_names)]:
            queues.setdefault(label, []).append(record)
    chosen: dict[str, Record] = {}
    while len(chosen) < count and any(queues.values()):
        for label in sorted(queues):
            while queues[label]:
                record = queues[label].pop(0)
                if record.key not in chosen:
                    chosen[record.key] = record
                    break
            if len(chosen) == count:
                break
    return list(chosen.values())


def _tile_size(records: Sequence[Record]) -> tuple[int, int]:
    """Width and height of the tiles: of the images' usual aspect ratio, so that little paper is left blank."""
    aspect = float(np.median([record.width / record.height for record in records])) if records else 1.0
    root = min(max(aspect, 1 / 3), 3.0) ** 0.5
    return round(TILE * root), round(TILE / root)


def _tile(record: Record, names: tuple[str, ...], size: tuple[int, int]) -> PillowImage:
    """One image, scaled to the tile, with its boxes and a caption."""
    from PIL import Image, ImageDraw

    from agssp_zoo.plotting import draw, font_for

    width, height = size
    tile = Image.new("RGB", (width, height + CAPTION), _PAPER)
    pen = ImageDraw.Draw(tile)
    try:
        pixels = record.load_image()
    except AgsspZooError as error:
        font, said = font_for(readable(str(error)), LETTER)
        pen.multiline_text((4, 4), _wrap(said), fill=(200, 0, 0), font=font)
    else:
        scale = min(width / pixels.shape[1], height / pixels.shape[0])
        shape = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        small = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))
        boxes = (record.boxes * np.float32(scale)).astype(np.float32)
        # With one class its name says nothing, and would hide small defects.
        texts = [names[label] for label in record.labels.tolist()] if len(names) > 1 else None
        picture = draw(small, boxes, record.labels, texts)
        tile.paste(picture, ((width - shape[0]) // 2, (height - shape[1]) // 2))
    font, caption = font_for(" ".join(f"{record.split}: {record.key}".splitlines()), LETTER)
    if pen.textlength(caption, font) > width - 8:
        while caption and pen.textlength("..." + caption, font) > width - 8:
            caption = caption[1:]
        caption = "..." + caption
    pen.text((4, height + 3), caption, fill=_INK, font=font)
    return tile


def _sheet(tiles: list[PillowImage], tile: tuple[int, int], columns: int) -> PillowImage:
    from PIL import Image

    columns = max(1, min(columns, len(tiles)))
    rows = max(1, -(-len(tiles) // columns))
    width, height = tile[0] + GAP, tile[1] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), _PAPER)
    for place, picture in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(picture, (GAP + column * width, GAP + row * height))
    return sheet


def _wrap(text: str, width: int = 40) -> str:
    return "\n".join(text[start : start + width] for start in range(0, min(len(text), width * 12), width))
