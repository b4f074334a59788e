"""The backbone that a pretraining starts from: drawn anew, or with the weights of a model or a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agssp_zoo import models
from agssp_zoo.backbone import load_backbone
from agssp_zoo.config import ModelConfig, Preprocess
from agssp_zoo.errors import CheckpointError, TrainingError, WeightsNotPublishedError
from agssp_zoo.folder import sha256_file
from agssp_zoo.models import Backbone

from ..renormalize import renormalize
from ..transfer import kept_origin
from .settings import PretrainSettings

PAPER_MEAN = (110.2955, 113.433, 109.914)
PAPER_STD = (32.028, 30.614, 30.27)
"""The authors' normalisation, of RGB in 0-255."""


@dataclass(frozen=True)
class BackboneStart:
    """A backbone ready for pretraining.

    Attributes:
        module: the backbone.
        source: where its weights come from, in words.
        provenance: what the model they come from says about its own origin.
    """

    module: Backbone
    source: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_backbone(settings: PretrainSettings) -> BackboneStart:
    """Builds the backbone and loads its weights.

    Raises:
        TrainingError: the model is no backbone, or the weights are of another architecture.
        ModelNotFoundError, ConfigError, CheckpointError, IntegrityError: no such model, or it cannot be loaded.
    """
    torch.manual_seed(settings.seed)
    architecture = models.get_architecture(settings.model)
    if architecture.task != "backbone":
        inner = f" ({architecture.backbone})" if architecture.backbone else ""
        raise TrainingError(f"--model {settings.model} is a detector; give the name of its backbone{inner}.")
    config = models.default_config(settings.model, options=_options(settings, architecture))
    source, origin = "random weights", dict[str, Any]()
    loaded: Backbone | None = None
    if settings.weights.endswith(".safetensors"):
        path = Path(settings.weights)
        loaded = _from_file(path, config)
        source, origin = path.name, {path.name: {"sha256": sha256_file(path)}}
    elif settings.weights != "none":
        loaded = _from_model(settings)
        stated = loaded.config
        source = stated.name
        origin = {source: kept_origin(stated.provenance)}
        config = config.replace(options={**stated.options, **config.options}, preprocess=stated.preprocess)
        if dict(config.options) != dict(stated.options):
            raise TrainingError(
                f"--options {' '.join(settings.options)}: {settings.weights} was trained with "
                f"{dict(stated.options) or 'the defaults'}; leave them out."
            )
    config = config.replace(name=f"{settings.model}.agbp", preprocess=_preprocess(config, settings))
    module = models.build(config, init=loaded is None)
    if not isinstance(module, Backbone):
        raise TrainingError(f"--model {settings.model} is no backbone.")
    if loaded is not None:
        # What the weights were trained with and what they get may differ (``pixels``).
        tensors = renormalize(module, loaded.state_dict(), loaded.config.preprocess, config.preprocess)
        module.load_state_dict(tensors, assign=True)
        module.requires_grad_(True)
    return BackboneStart(module, source, origin)


def _from_file(path: Path, config: ModelConfig) -> Backbone:
    if not path.is_file():
        raise TrainingError(f"--weights {path}: there is no such file.")
    try:
        module = models.load(config, path)
    except CheckpointError as error:
        hint = " Or name it with --options." if "does not say with which" in str(error) else ""
        raise CheckpointError(f"{error}{hint}") from None
    assert isinstance(module, Backbone)
    return module


def _from_model(settings: PretrainSettings) -> Backbone:
    """The backbone of a model; of a detector its own."""
    name = settings.model if settings.weights == "auto" else settings.weights
    try:
        module = load_backbone(name)
    except WeightsNotPublishedError as error:
        raise WeightsNotPublishedError(f"{error} Or pretrain from random weights: --weights none.") from None
    if module.config.architecture != settings.model:
        raise TrainingError(
            f"--weights {settings.weights} is a {module.config.architecture}, not a {settings.model}; give --model "
            f"{module.config.architecture}, or other weights."
        )
    return module


def _options(settings: PretrainSettings, architecture: models.Architecture) -> dict[str, Any]:
    """``("v1_strides=true",)`` as a dict; the type of each is its default's."""
    found: dict[str, Any] = {}
    for text in settings.options:
        name, equals, value = text.partition("=")
        default = architecture.options.get(name)
        try:
            if not equals or default is None:
                raise ValueError
            if isinstance(default, bool):
                found[name] = {"true": True, "false": False}[value.lower()]
            else:
                found[name] = type(default)(value)
        except (ValueError, KeyError):
            known = ", ".join(f"{k}={str(v).lower()}" for k, v in architecture.options.items()) or "none"
            raise TrainingError(f"--options {text}: options of {architecture.name}, with defaults: {known}.") from None
    return found


def _preprocess(config: ModelConfig, settings: PretrainSettings) -> Preprocess:
    changes: dict[str, Any] = {"size": (settings.size, settings.size), "fit": "stretch"}
    if settings.pixels == "unit":
        changes |= {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
    elif settings.pixels == "paper":
        changes |= {"mean": PAPER_MEAN, "std": PAPER_STD}
    return dataclasses.replace(config.preprocess, **changes)
