"""Small stores of anomaly maps with known values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from agssp_zoo.training.anomaly import MapStore, MapWriter
from agssp_zoo.training.data.dataset import Dataset
from agssp_zoo.training.data.unlabelled import read_images


def make_store(
    path: Path,
    images: Dataset,
    maps: dict[str, np.ndarray],
    scores: dict[str, float] | None = None,
    *,
    bounded: bool = True,
    settings: dict | None = None,
    sources: list[str] | None = None,
) -> MapStore:
    """A finished store of the images that there are maps of; scores are the maps' maxima where none are given."""
    images = replace(images, records=tuple(record for record in images if record.key in maps))
    writer = MapWriter(path, images, settings or {"method": "made-up"}, bounded, sources=sources)
    values = np.stack([maps[record.key] for record in images]).astype(np.float32)
    found = [maps[r.key].max() if scores is None else scores[r.key] for r in images]
    writer.write(range(len(images)), values, np.array(found, np.float32))
    return writer.finish()


def write_images(root: Path, sizes: dict[str, tuple[int, int]]) -> Dataset:
    """Gray images of (width, height) pixels in root/images, by name; keys are the names."""
    for name, (width, height) in sizes.items():
        file = root / "images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = np.linspace(60, 180, width * height).reshape(height, width).astype(np.uint8)
        Image.fromarray(shade).save(file)
    return read_images(root)


def write_mask(root: Path, name: str, mask: np.ndarray) -> None:
    """A 1-bit mask in root/masks."""
    file = root / "masks" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(file)
