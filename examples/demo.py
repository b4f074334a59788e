"""The demo: detect defects on steel surfaces drawn here and now, offline, with the base install.

Nothing is downloaded: the surfaces are drawn by ``agssp_zoo.training.synthetic`` and the detector is the one that this
checkout holds. With ``--images DIR`` it runs on your own images instead.

    python examples/demo.py --out runs/demo
    python examples/demo.py --out runs/demo --images path/to/images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import agssp_zoo
from agssp_zoo.errors import AgsspZooError


def draw_surfaces(folder: Path, count: int, seed: int) -> list[Path]:
    """Draws hot-rolled surfaces of 200x200 pixels with defects into ``folder``, and returns their paths."""
    from PIL import Image

    from agssp_zoo.training.synthetic import draw_sample

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        sample = draw_sample(index, seed=seed, size=(200, 200), style="neu")
        path = folder / f"surface_{index:02d}.png"
        Image.fromarray(sample.image).save(path)
        paths.append(path)
    return paths


def write_sheet(pictures: list[Path], path: Path, columns: int = 6) -> None:
    """Puts the annotated images side by side into one picture, each 240 pixels square."""
    from PIL import Image

    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * 248 - 8, rows * 248 - 8), "white")
    for place, picture in enumerate(pictures):
        with Image.open(picture) as image:
            tile = image.convert("RGB").resize((240, 240), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % columns * 248, place // columns * 248))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Detect defects on drawn steel, or on your own images.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the annotated images")
    parser.add_argument("--images", type=Path, help="your images: a file or a folder (default: drawn surfaces)")
    parser.add_argument("--count", type=int, default=12, help="how many surfaces to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the drawing (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="also put all annotated images into this one picture")
    args = parser.parse_args()

    detector = agssp_zoo.load_detector()
    print(f"model   {detector.config.name} ({detector.engine.name}), classes: {', '.join(detector.names)}")
    if args.images is None:
        source: Path | list[Path] = draw_surfaces(args.out / "drawn", args.count, args.seed)
        print(f"images  {args.count} surfaces drawn with seed {args.seed} (no photographs)")
    else:
        source = args.images
        print(f"images  {args.images}")

    args.out.mkdir(parents=True, exist_ok=True)
    images = found = 0
    spent: list[float] = []
    pictures: list[Path] = []
    for images, detections in enumerate(detector.stream(source), start=1):
        name = Path(detections.path).name if detections.path else f"image_{images}"
        best = ", ".join(f"{detections.names[d.label]} {d.score:.2f}" for d in list(detections)[:3]) or "nothing found"
        print(f"  {name:24s} {len(detections):3d}  {best}")
        pictures.append(detections.save(args.out / f"{Path(name).stem}.png"))
        found += len(detections)
        spent.append(sum(detections.timing.values()))
    if images == 0:
        print("no images there", file=sys.stderr)
        return 1
    if args.sheet is not None:
        write_sheet(pictures, args.sheet)
    middle = sorted(spent)[len(spent) // 2]
    print(f"{found} defects in {images} images, {middle:.0f} ms an image (median); look in {args.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AgsspZooError as error:
        sys.exit(f"demo: {error}")
