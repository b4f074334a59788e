"""The network that a run starts from: built anew, or with the weights of another model where they fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from agssp_zoo import models
from agssp_zoo.config import ModelConfig, Preprocess
from agssp_zoo.errors import SettingError, TrainingError, WeightsNotPublishedError
from agssp_zoo.folder import ModelFolder
from agssp_zoo.hub import resolve
from agssp_zoo.models import DetectorModule

from .branches import set_branches
from .data.records import Record
from .renormalize import renormalize
from .settings import TrainSettings

MOST_UNASKED = 640
"""The largest input that a run takes by itself where images are larger."""
FILES = ("config.json", "model.safetensors")
Settings = TypeVar("Settings", bound=TrainSettings)
ORIGIN = ("license", "license_link", "source", "source_sha256", "sha256", "datasets")
"""What is kept of the provenance of the models that a run starts from."""


@dataclass(frozen=True)
class Start:
    """A network ready for training.

    Attributes:
        module: the detector.
        source: where its weights come from, in words.
        loaded: number of tensors taken over.
        left: names of the tensors that were drawn anew although weights were loaded.
        provenance: what the models that the weights come from say about their own origin: licence, source, checksum.
    """

    module: DetectorModule
    source: str
    loaded: int = 0
    left: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_start(settings: TrainSettings, class_names: Sequence[str], *, tag: str = "finetuned") -> Start:
    """Builds the detector for these classes and loads the weights that fit.

    Args:
        settings: of the run.
        class_names: what it is to find.
        tag: what follows the architecture in the name of the trained model.

    Raises:
        TrainingError: the model is no detector that can be trained; its kind SettingError: a setting does not fit it.
        ModelNotFoundError: no such model.
    """
    torch.manual_seed(settings.seed)
    names = tuple(class_names)
    architecture = settings.model.partition(".")[0]
    if settings.weights == "none" and architecture in models.ARCHITECTURES:
        config = models.default_config(architecture, class_names=names)
        folder = None
    else:
        folder = _find(settings.model, ("config.json",) if settings.weights == "none" else FILES)
        config = folder.config
    if config.task != "detector":
        raise TrainingError(f"{settings.model} is a {config.task}; --model takes a detector: yolov8_n, yolov8_s, ...")
    backbone = _find(settings.backbone_weights, FILES) if settings.backbone_weights else None
    if backbone is not None:
        config = _with_options(config, backbone.config, drawn=folder is None or settings.weights == "none")
    weights = config if backbone is None or (folder is not None and settings.weights == "auto") else backbone.config
    old_names = config.class_names
    if config.postprocess is not None:
        # Thresholds of classes were measured with the weights that training is about to change, and what one class does
        # says nothing about several.
        alone = len(old_names) == 1 or len(names) == 1
        several = len(names) > 1 if alone else config.postprocess.multi_label
        config = config.replace(postprocess=dataclasses.replace(config.postprocess, class_conf={}, multi_label=several))
    config = config.replace(
        name=f"{config.architecture}.{tag}",
        class_names=names,
        provenance={},
        preprocess=_at_size(config, settings.size or _longer(weights.preprocess.size)),
    )
    module = models.build(config)
    if not isinstance(module, DetectorModule):  # for the type checker: it is a detector by its task
        raise TypeError(type(module))
    _check_fit(settings, module)
    module.reset_parameters()  # drawn twice by now; the figures that are published were measured so
    loaded: list[str] = []
    sources: dict[str, Mapping[str, Any]] = {}
    if folder is not None and settings.weights == "auto":
        tensors = _read(folder)
        if len(names) > 1 and old_names != names:
            # Other classes in the same number: the layers that tell them apart would begin with wrong answers.
            tensors = {k: v for k, v in tensors.items() if not k.startswith(module.class_layers)}
        loaded += _load_fitting(module, tensors)
        sources[folder.config.name] = folder.config.provenance
    if backbone is not None:
        old, new = backbone.config.preprocess, config.preprocess
        taken = _load_fitting(module.backbone, renormalize(module.backbone, _read(backbone), old, new))
        if not taken:
            raise TrainingError(f"{settings.backbone_weights}: no weight fits the backbone of {settings.model}.")
        loaded += [f"backbone.{name}" for name in taken]
        sources[backbone.config.name] = backbone.config.provenance
    left = tuple(name for name in module.state_dict() if name not in set(loaded)) if loaded else ()
    return Start(
        module,
        " and ".join(sources) or "random weights",
        len(set(loaded)),
        tuple(name for name in left if not name.endswith("num_batches_tracked")),
        {name: kept_origin(origin) for name, origin in sources.items()},
    )


def kept_origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What those that start from a model keep of its provenance: :data:`ORIGIN`, and what it started from itself.

    So data sets and licences of all models before it stay known, however often it is trained further.
    """
    kept = {key: value for key, value in provenance.items() if key in ORIGIN}
    start = provenance.get("start")
    if isinstance(start, Mapping) and start.get("provenance"):
        kept["start"] = {key: start[key] for key in ("source", "provenance") if key in start}
    return kept


def settle_size(settings: TrainSettings, start: Start, records: Sequence[Record]) -> TrainSettings:
    """The settings with a size of the input, which the start's config then names, too.

    Where none was given it is what the start's weights learned at, so that things look as large to them as before; the
    longer side of the images where that is more, in steps of 32, up to :data:`MOST_UNASKED`. With 100 images of NEU-DET
    a larger size is no gain (docs/finetuning.md). It is rounded up to a multiple of the stride, as samples are squares
    of just this side.

    Args:
        settings: of the run.
        start: what it starts from; its module's config is changed.
        records: images, or tiles, to train on.
    """
    if settings.size:
        return settings
    config = start.module.config
    longer = median(max(record.width, record.height) for record in records)
    size = max(_longer(config.preprocess.size), min(MOST_UNASKED, 32 * math.ceil(longer / 32)))
    size = config.preprocess.stride * math.ceil(size / config.preprocess.stride)
    start.module.config = config.replace(preprocess=_at_size(config, size))
    return dataclasses.replace(settings, size=size)


def settle_nms(settings: Settings, start: Start, iou: float | None) -> Settings:
    """The settings with the IoU of the suppression, which the start's config then names, too.

    Args:
        settings: of the run.
        start: what it starts from; its module's config is changed.
        iou: what a run takes where it does not say; None: what the start has.
    """
    config = start.module.config
    if config.postprocess is None:  # for the type checker: it is a detector's
        return settings
    chosen = next(value for value in (settings.nms_iou, iou, config.postprocess.iou) if value is not None)
    start.module.config = config.replace(postprocess=dataclasses.replace(config.postprocess, iou=chosen))
    return dataclasses.replace(settings, nms_iou=chosen)


def _check_fit(settings: TrainSettings, module: DetectorModule) -> None:
    """Refuses what the network cannot take, so that nothing is written or decoded for a run that could not begin.

    Raises:
        SettingError: a size between two multiples of the stride, more frozen stages than there are, or what only other
            backbones can do.
    """
    config, backbone = module.config, module.backbone
    stride = config.preprocess.stride
    if settings.size % stride:
        low = settings.size // stride * stride
        near = f"the nearest are {low} and {low + stride}" if low else f"the least is {stride}"
        raise SettingError(
            f"--size {settings.size}: {config.architecture} needs a multiple of {stride} pixels; {near}."
        )
    names = [info.name for info in backbone.stage_info]
    if settings.freeze > len(names):
        raise SettingError(
            f"--freeze {settings.freeze}: the backbone has {len(names)} stages ({', '.join(names)}); freeze as many at "
            "most."
        )
    set_branches(backbone, settings)


def _longer(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else max(size)


def _find(model: str, files: tuple[str, ...]) -> ModelFolder:
    """A model folder by name or path; where weights are not published yet, the way without them is named."""
    try:
        return resolve(model, files=files)
    except WeightsNotPublishedError as error:
        raise WeightsNotPublishedError(f"{error} Or train from random weights: --weights none.") from None


def _with_options(config: ModelConfig, backbone: ModelConfig, *, drawn: bool) -> ModelConfig:
    """The detector's config with its backbone's options, which no shape tells, such as where a ResNet's strides are.

    Args:
        config: of the detector.
        backbone: of the model whose weights its backbone takes.
        drawn: whether the detector's own weights are drawn anew, so that nothing depends on its options.

    Raises:
        TrainingError: the detector's weights were trained with other options.
    """
    own = models.get_architecture(config.architecture).options
    known = {key: own[key] for key in models.get_architecture(backbone.architecture).options if key in own}
    wanted = {key: backbone.options.get(key, default) for key, default in known.items()}
    if all(config.options.get(key, default) == wanted[key] for key, default in known.items()):
        return config
    if not drawn:
        raise TrainingError(
            f"--backbone-weights: {backbone.name} was trained with {wanted}, {config.name} with other options; take "
            "--weights none."
        )
    return config.replace(options={**config.options, **wanted})


def _at_size(config: ModelConfig, size: int) -> Preprocess:
    """The model's preprocessing at the size it is trained at: rectangular, antialiased by Pillow."""
    return dataclasses.replace(config.preprocess, size=size, resize="pillow", fit="letterbox", rounding="nearest")


def _read(folder: ModelFolder) -> dict[str, Tensor]:
    return models.read_weights(folder.file("model.safetensors"))[0]


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
