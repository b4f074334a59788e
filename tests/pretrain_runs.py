"""A small pool of images with anomaly maps, and settings for pretraining in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agssp_zoo.training.anomaly.writer import MapWriter
from agssp_zoo.training.data.unlabelled import read_images

GRID = 8

SMALL: dict[str, Any] = {
    "size": 64, "resize": 64, "scale_min": 1.0, "scale_max": 1.5, "batch": 4, "epochs": 2, "threads": 1,
    "device": "cpu", "precision": "no", "plots": False, "pictures": 0, "workers": 0, "log_every": 1, "warmup": 0.5,
}  # fmt: skip
"""Settings of a run of a few seconds."""


def write_pool(folder: Path, count: int = 6, size: int = 64, names: tuple[str, ...] = ("steel", "tile")) -> Path:
    """Folders of noise with a bright square an image; the second one's images are coloured, and wider than high."""
    rng = np.random.default_rng(3)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            width = size * (1 + number)
            image = np.repeat(rng.normal(90, 6, (size, width, 1)), 3, axis=2)
            side = size // 4
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, size - side))
            image[y : y + side, x : x + side] = (220, 220, 220) if number == 0 else (230, 200, 120)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def write_maps(pool: Path, out: Path, *, bounded: bool = True, value: float | None = None) -> Path:
    """The share of bright pixels in each cell, as a store of anomaly maps; or one value everywhere."""
    images = read_images(pool)
    writer = MapWriter(out, images, {"method": "drawn", "value": value}, bounded)
    maps = []
    for record in images:
        bright = (record.load_image()[..., 0] > 160).astype(np.float32)
        rows, columns = bright.shape
        cells = bright.reshape(GRID, rows // GRID, GRID, columns // GRID).mean((1, 3))
        maps.append(cells if value is None else np.full_like(cells, value))
    stacked = np.stack(maps)
    writer.write(list(range(len(images))), stacked, stacked.max((1, 2)))
    writer.finish()
    return out
