"""A contact sheet of everything that can be drawn, as one small PNG.

python -m agssp_zoo.training.synthetic.sheet docs/images/synthetic.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .defects import DEFECTS
from .neu import COUNTS, NEU_CLASSES
from .sample import draw_sample
from .surfaces import SURFACES

TILE, GAP, CAPTION = 150, 4, 16


def contact_sheet(*, seed: int = 10) -> Image.Image:
    """Bare surfaces, every defect of style ``metal`` and every class of style ``neu`` with boxes, six tiles a row."""
    rows: list[list[tuple[str, Image.Image]]] = [[], [], [], []]
    for i in range(6):
        name = SURFACES[i % 3]
        rows[0].append((name, _tile(i, seed, 300, surface=name, defects=())))
    for i, kind in enumerate(DEFECTS):
        rows[1].append((kind, _tile(i, seed + 1, 200, surface=SURFACES[i % 3], defects=[kind, kind])))
    for i, kind in enumerate(NEU_CLASSES):
        kinds = [kind] * min(2, COUNTS[kind][1])
        rows[2].append((kind, _tile(i, seed + 2, 200, style="neu", defects=kinds)))
        rows[3].append((f"{kind}: boxes", _tile(i, seed + 3, 200, boxes=True, style="neu", defects=kinds)))
    sheet = Image.new("RGB", (6 * (TILE + GAP) - GAP, 4 * (TILE + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for r, row in enumerate(rows):
        for c, (caption, tile) in enumerate(row):
            x, y = c * (TILE + GAP), r * (TILE + CAPTION)
            sheet.paste(tile, (x, y))
            pen.text((x + 1, y + TILE + 1), caption, fill="black", font=font)
    return sheet


def _tile(
    index: int,
    seed: int,
    side: int,
    *,
    boxes: bool = False,
    style: str = "metal",
    surface: str | None = None,
    defects: Sequence[str] = (),
) -> Image.Image:
    sample = draw_sample(index, seed=seed, size=(side, side), style=style, surface=surface, defects=defects)
    tile = Image.fromarray(sample.image).resize((TILE, TILE), Image.Resampling.LANCZOS)
    if boxes:
        pen = ImageDraw.Draw(tile)
        for x1, y1, x2, y2 in (sample.boxes * (TILE / side)).tolist():
            pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=(230, 30, 30))
    return tile


def _palette() -> Image.Image:
    """48 grays, 8 browns and a red."""
    grays = [(v, v, v) for v in (round(i * 255 / 47) for i in range(48))]
    browns = [(round(v * 1.12), v, round(v * 0.86)) for v in range(20, 116, 12)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for color in [*grays, *browns, (230, 30, 30)] for value in color])
    return palette


def main(argv: Sequence[str] | None = None) -> None:
    """Write the sheet; few colours keep the file small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--seed", type=int, default=10)
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(f".{args.out.name}.tmp")
    small = contact_sheet(seed=args.seed).quantize(palette=_palette(), dither=Image.Dither.NONE)
    small.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, args.out)  # noqa: PTH105


if __name__ == "__main__":
    main()
