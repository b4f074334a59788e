"""The network that a run starts from: built anew, or with the weights of another model where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agssp_zoo import models
from agssp_zoo.config import ModelConfig, Preprocess
from agssp_zoo.errors import TrainingError
from agssp_zoo.hub import resolve
from agssp_zoo.models.detectors import YOLOv8

from .settings import TrainSettings


@dataclass(frozen=True)
class Start:
    """A network ready for training.

    Attributes:
        module: the detector.
        source: where its weights come from, in words.
        loaded: number of tensors taken over.
        left: names of the tensors that were drawn anew although weights were loaded.
    """

    module: YOLOv8
    source: str
    loaded: int
    left: tuple[str, ...]


def build_start(settings: TrainSettings, class_names: Sequence[str]) -> Start:
    """Builds the detector for these classes and loads the weights that fit.

    Raises:
        TrainingError: the model is no detector that can be trained.
        ModelNotFoundError: no such model.
    """
    torch.manual_seed(settings.seed)
    architecture = settings.model.partition(".")[0]
    if settings.weights == "none" and architecture in models.ARCHITECTURES:
        config = models.default_config(architecture, class_names=tuple(class_names), name=f"{architecture}.finetuned")
        folder = None
    else:
        files = ("config.json",) if settings.weights == "none" else ("config.json", "model.safetensors")
        folder = resolve(settings.model, files=files)
        config = folder.config.replace(class_names=tuple(class_names), provenance={})
        config = config.replace(name=f"{config.architecture}.finetuned")
    config = config.replace(preprocess=_at_size(config, settings.size))
    module = models.build(config)
    if not isinstance(module, YOLOv8):
        raise TrainingError(f"{settings.model} is not a detector; --model takes one of yolov8_n, yolov8_s, ...")
    module.reset_parameters()
    loaded: list[str] = []
    sources = []
    if folder is not None and settings.weights == "auto":
        loaded += _load_fitting(module, _read(folder.file("model.safetensors")))
        sources.append(settings.model)
    if settings.backbone_weights:
        backbone = resolve(settings.backbone_weights, files=("config.json", "model.safetensors"))
        taken = _load_fitting(module.backbone, _read(backbone.file("model.safetensors")))
        if not taken:
            raise TrainingError(f"{settings.backbone_weights}: no weight fits the backbone of {settings.model}.")
        loaded += [f"backbone.{name}" for name in taken]
        sources.append(settings.backbone_weights)
    left = tuple(name for name in module.state_dict() if name not in set(loaded)) if loaded else ()
    return Start(module, " and ".join(sources) or "random weights", len(loaded), left)


def _at_size(config: ModelConfig, size: int) -> Preprocess:
    """The model's preprocessing at the size it is trained at: rectangular, antialiased by Pillow."""
    import dataclasses

    return dataclasses.replace(config.preprocess, size=size, resize="pillow", fit="letterbox", rounding="nearest")


def _read(path: object) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(str(path))
    return tensors


@torch.no_grad()
def _load_fitting(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copies the tensors whose name and shape fit; returns their names."""
    taken = []
    for name, target in module.state_dict(keep_vars=True).items():
        value = tensors.get(name)
        if value is not None and value.shape == target.shape:
            target.copy_(value.to(target.dtype))
            taken.append(name)
    return taken
