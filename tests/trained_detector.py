"""The detector of the checkout, which was trained, and surfaces that it finds defects on: 8 bits cost a network with
random weights far more than a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import write_folder
from agssp_zoo.training.synthetic import draw_sample

CARD = Path(__file__).parents[1] / "model_cards" / "yolov8_n.agssp_neu_det"


def trained_folder(path: Path, *, conf: float = 0.1) -> Path:
    """A folder with the detector's float32 ONNX file and nothing else."""
    config = ModelConfig.load(CARD)
    assert config.postprocess is not None
    config = config.replace(postprocess=type(config.postprocess)(conf=conf, iou=0.5))
    files = {"model.onnx": lambda path: path.write_bytes((CARD / "model.onnx").read_bytes())}
    return write_folder(path, config, files)


def surfaces(number: int, size: tuple[int, int] = (200, 200), *, seed: int = 0) -> np.ndarray:
    """Drawn hot-rolled steel with defects, uint8 (number, height, width, 3)."""
    return np.stack([draw_sample(index, seed=seed, size=size, style="neu").image for index in range(number)])


def write_surfaces(folder: Path, number: int) -> Path:
    """Writes some as PNG files."""
    for index, image in enumerate(surfaces(number)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder
