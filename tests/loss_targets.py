"""Labelled boxes as losses take them."""

from __future__ import annotations

import torch

from agssp_zoo.models.targets import Targets


def targets_of(*images: list[list[float]]) -> Targets:
    """Rows label, x1, y1, x2, y2 of every image."""
    most = max(map(len, images))
    rows = torch.zeros(len(images), most, 5)
    mask = torch.zeros(len(images), most, dtype=torch.bool)
    for i, image in enumerate(images):
        if image:
            rows[i, : len(image)] = torch.tensor(image)
            mask[i, : len(image)] = True
    return Targets(rows[..., 0].long(), rows[..., 1:], mask)
