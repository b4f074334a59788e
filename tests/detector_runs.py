"""A small pool with maps and a backbone, and settings for pretraining a detector in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretrain_runs import write_maps, write_pool
from safetensors.torch import load_file
from training_runs import SMALL

from agssp_zoo import models
from agssp_zoo.folder import write_folder
from agssp_zoo.training.data import read_images

QUICK = {name: value for name, value in SMALL.items() if name not in ("weights", "report")}


@dataclass(frozen=True)
class Drawn:
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        folder = self.folder
        return {
            **QUICK, "images": str(folder / "pool"), "maps": str(folder / "maps"), "val_fraction": 0.25,
            "backbone_weights": str(folder / "backbone"), "margin": 0.4,
        }  # fmt: skip


def write_backbone(folder: Path, architecture: str = "cspdarknet_n", pool: Path | None = None) -> Path:
    """A backbone with random kernels; its BatchNorm statistics are those of a pool, or anything."""
    config = models.default_config(architecture).replace(
        name=f"{architecture}.agbp", provenance={"license": "apache-2.0", "command": "agssp-zoo pretrain-backbone ..."}
    )
    torch.manual_seed(11)
    module = models.build(config)
    assert isinstance(module, models.Backbone)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
            layer.momentum = None if pool else layer.momentum
    if pool:
        for record in read_images(pool):
            module.train()(module.normalize(torch.from_numpy(record.load_image()[None])))
    return write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)})


def write_drawn(folder: Path) -> Drawn:
    """The pool, its maps and the backbone."""
    write_pool(folder / "pool", 8)
    write_maps(folder / "pool", folder / "maps")
    write_backbone(folder / "backbone", pool=folder / "pool")
    return Drawn(folder)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded
