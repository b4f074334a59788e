"""Map stores for the study of what map quality is worth: the best there could be, and worthless ones.

    python -m benchmarks.study_maps truth --data DATA/neu_det --out runs/truth
    python -m benchmarks.study_maps shuffled --data DATA/neu_det --maps runs/auto --out runs/shuffled

``truth`` makes maps of the labelled boxes of split train: the share of each cell that lies in a box. ``shuffled`` gives
every image of split train the map of another one: maps of the same look that say nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRID = 16
"""Rows and columns of ``truth``, those of a ViT with patches of 14 px at 224 px."""


def main() -> int:
    """Writes the store."""
    from agssp_zoo.training.anomaly.store import MapStore
    from agssp_zoo.training.anomaly.writer import MapWriter
    from agssp_zoo.training.data import read_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["truth", "shuffled"])
    parser.add_argument("--data", type=Path, required=True, help="labelled images")
    parser.add_argument("--maps", type=Path, help="maps to shuffle")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = read_dataset(args.data).split("train")
    if args.kind == "truth":
        maps = np.stack([box_map(record.boxes, (record.height, record.width), GRID) for record in images])
        bounded = True
    else:
        store = MapStore.open(args.maps, images=images)
        cycle = np.random.default_rng(args.seed).permutation(len(images))
        other = np.empty_like(cycle)
        other[cycle] = np.roll(cycle, 1)  # one cycle through all images: none keeps its own map
        maps = np.stack([store.map(images[int(index)].key) for index in other])
        bounded = store.bounded
    writer = MapWriter(args.out, images, {"method": args.kind, "seed": args.seed}, bounded)
    writer.create((maps.shape[1], maps.shape[2]))
    writer.write(range(len(images)), maps, maps.max(axis=(1, 2)))
    writer.finish()
    print(f"{args.out}: {len(images)} maps, {args.kind}")
    return 0


def box_map(boxes: NDArray[np.float32], size: tuple[int, int], grid: int) -> NDArray[np.float32]:
    """The share of each cell of a grid that lies in a box, float32 (grid, grid).

    Args:
        boxes: float32 (n, 4), x1 y1 x2 y2 in pixels.
        size: height and width of the image.
        grid: rows and columns.
    """
    fine = 8
    inside = np.zeros((grid * fine, grid * fine), bool)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float32) / (grid * fine)
    for x1, y1, x2, y2 in np.rint(boxes / scale).astype(int):
        inside[y1:y2, x1:x2] = True
    return inside.reshape(grid, fine, grid, fine).mean(axis=(1, 3), dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
