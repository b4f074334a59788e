"""Which architectures can be built, with which options and defaults."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from agssp_zoo.config import ModelConfig, Postprocess, Preprocess
from agssp_zoo.errors import ConfigError, ModelNotFoundError
from agssp_zoo.layouts import layout_of
from agssp_zoo.models.backbones import Backbone, CSPDarknet, ResNet, Swin
from agssp_zoo.models.base import ZooModule
from agssp_zoo.models.detectors import DINO_OPTIONS, Dino, FasterRCNN, YOLOv8
from agssp_zoo.models.weights import load_weights

Option = bool | int | float | str

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Architecture:
    """One network that can be built.

    Attributes:
        name: as in config.json.
        task: ``"detector"`` or ``"backbone"``.
        build: makes the module; parameters are drawn by ``reset_parameters()`` afterwards.
        backbone: for a detector, the architecture of its backbone.
        options: what config.json's ``options`` may set, with the defaults.
        visible_options: those of them that names and shapes of the weights tell, so that a file need not state them.
        preprocess: default of models that we train.
        postprocess: likewise, for a detector; several labels a box are allowed where there are several classes.
    """

    name: str
    task: Literal["detector", "backbone"]
    build: Callable[[ModelConfig], ZooModule]
    backbone: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    visible_options: frozenset[str] = frozenset()
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess = field(default_factory=Postprocess)


def build(config: ModelConfig, *, init: bool = True) -> ZooModule:
    """Builds the network of a config.

    Args:
        config: which architecture, options and classes.
        init: draw initial weights. ``False`` leaves the parameters without storage (on the meta device), the quick
            way when :func:`load_weights` follows.

    Raises:
        ModelNotFoundError: no such architecture.
        ConfigError: an option that the architecture has not, or of a wrong type, or a task that is not its own.
    """
    architecture = get_architecture(config.architecture)
    if config.task != architecture.task:
        raise ConfigError(f"{config.name}: {architecture.name} is a {architecture.task}, but task is {config.task!r}.")
    _check_options(architecture, config.options)
    if init:
        module = architecture.build(config)
        module.reset_parameters()
        return module
    with torch.device("meta"):
        return architecture.build(config)


def load(config: ModelConfig, path: str | Path) -> ZooModule:
    """Builds the network of a config and fills it from a safetensors file, in evaluation mode, on the CPU.

    Raises:
        IntegrityError, CheckpointError: see :func:`load_weights`.
    """
    module = build(config, init=False)
    load_weights(module, path)
    return module.eval()


def default_config(
    architecture: str,
    *,
    class_names: Sequence[str] = (),
    name: str | None = None,
    options: Mapping[str, Option] | None = None,
) -> ModelConfig:
    """The config of a model that we train.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        class_names: of a detector, in label order; default the one class ``"anomaly"``.
        name: the model's name; default ``<architecture>.scratch``.
        options: architecture options that differ from the default.

    Raises:
        ModelNotFoundError: no such architecture.
        ConfigError: an unknown option.
    """
    spec = get_architecture(architecture)
    _check_options(spec, options or {})
    names = (tuple(class_names) or ("anomaly",)) if spec.task == "detector" else ()
    return ModelConfig(
        name=name or f"{architecture}.scratch",
        architecture=architecture,
        task=spec.task,
        class_names=names,
        options=dict(options or {}),
        preprocess=spec.preprocess,
        postprocess=replace(spec.postprocess, multi_label=len(names) > 1) if spec.task == "detector" else None,
    )


def get_architecture(name: str) -> Architecture:
    """The entry of :data:`ARCHITECTURES`.

    Raises:
        ModelNotFoundError: no such architecture; the message offers close names.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ARCHITECTURES)}."
        raise ModelNotFoundError(f"No architecture {name!r}; {hint}") from None


def _check_options(architecture: Architecture, options: Mapping[str, Option]) -> None:
    for key, value in options.items():
        if key not in architecture.options:
            known = ", ".join(architecture.options) or "none"
            raise ConfigError(f"{architecture.name} has no option {key!r}; its options: {known}.")
        if type(value) is not type(architecture.options[key]):
            kind = type(architecture.options[key]).__name__
            raise ConfigError(f"{architecture.name}: option {key} is {value!r}; it must be a {kind}.")


def _resnet50(config: ModelConfig) -> ResNet:
    return ResNet(config)


def _cspdarknet(width: float, depth: float) -> Callable[[ModelConfig], CSPDarknet]:
    return lambda config: CSPDarknet(config, width=width, depth=depth)


def _swin(window: int) -> Callable[[ModelConfig], Swin]:
    return lambda config: Swin(config, window=window)


def _yolov8(backbone: str, channels: Sequence[int] | None = None) -> Callable[[ModelConfig], YOLOv8]:
    return lambda config: YOLOv8(config, build_inner(config, backbone), channels=channels)


def _faster_rcnn(backbone: str) -> Callable[[ModelConfig], FasterRCNN]:
    return lambda config: FasterRCNN(config, build_inner(config, backbone))


def _dino(backbone: str) -> Callable[[ModelConfig], Dino]:
    return lambda config: Dino(config, build_inner(config, backbone))


def build_inner(config: ModelConfig, backbone: str) -> Backbone:
    """The backbone of a detector, with a config of its own: the detector's options that it knows, and its input.

    Args:
        config: the detector's.
        backbone: architecture of the backbone.

    Raises:
        ConfigError: the architecture is no backbone.
    """
    spec = get_architecture(backbone)
    inner = ModelConfig(
        name=config.name,
        architecture=backbone,
        task="backbone",
        options={key: value for key, value in config.options.items() if key in spec.options},
        preprocess=config.preprocess,
    )
    module = spec.build(inner)
    if not isinstance(module, Backbone):
        raise ConfigError(f"{backbone} is no backbone.")
    return module


_BACKBONE_INPUT = Preprocess(size=(224, 224), fit="stretch", mean=IMAGENET_MEAN, std=IMAGENET_STD)
_RESNET_OPTIONS: Mapping[str, Option] = MappingProxyType({"v1_strides": False})

_SWIN_OPTIONS: Mapping[str, Option] = MappingProxyType({"embed_dim": 128, "depths": "2,2,18,2", "heads": "4,8,16,32"})


def _with_swin(
    name: str,
    task: Literal["detector", "backbone"],
    build: Callable[[ModelConfig], ZooModule],
    backbone: str | None = None,
    preprocess: Preprocess = _BACKBONE_INPUT,
    postprocess: Postprocess | None = None,
    **more: Option,
) -> Architecture:
    """A Swin, or a detector on one: its options, and ``more``, change names and shapes of the weights."""
    options = MappingProxyType({**_SWIN_OPTIONS, **more})
    return Architecture(
        name, task, build, backbone, options, frozenset(options), preprocess, postprocess or Postprocess()
    )


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            Architecture("resnet50", "backbone", _resnet50, options=_RESNET_OPTIONS, preprocess=_BACKBONE_INPUT),
            Architecture("cspdarknet_n", "backbone", _cspdarknet(0.25, 1 / 3), preprocess=_BACKBONE_INPUT),
            Architecture("cspdarknet_s", "backbone", _cspdarknet(0.5, 1 / 3), preprocess=_BACKBONE_INPUT),
            _with_swin("swin_b", "backbone", _swin(7)),
            _with_swin("swin_b_simmim", "backbone", _swin(6), None, replace(_BACKBONE_INPUT, size=(192, 192))),
            Architecture("yolov8_n", "detector", _yolov8("cspdarknet_n"), "cspdarknet_n"),
            Architecture("yolov8_s", "detector", _yolov8("cspdarknet_s"), "cspdarknet_s"),
            Architecture("yolov8_resnet50", "detector", _yolov8("resnet50"), "resnet50", options=_RESNET_OPTIONS),
            Architecture(
                "yolov8_resnet50_lite",
                "detector",
                _yolov8("resnet50", (64, 128, 256)),
                "resnet50",
                options=_RESNET_OPTIONS,
            ),
            _with_swin("yolov8_swin_b", "detector", _yolov8("swin_b"), "swin_b", Preprocess()),
            _with_swin("yolov8_swin_b_simmim", "detector", _yolov8("swin_b_simmim"), "swin_b_simmim", Preprocess()),
            _with_swin(
                "faster_rcnn_swin_b",
                "detector",
                _faster_rcnn("swin_b_simmim"),
                "swin_b_simmim",
                replace(layout_of("faster_rcnn_swin_b").preprocess, resize="pillow"),
                layout_of("faster_rcnn_swin_b").postprocess,
                pyramid_width=256,
                region_width=1024,
            ),
            _with_swin(
                "dino_swin_b",
                "detector",
                _dino("swin_b_simmim"),
                "swin_b_simmim",
                replace(layout_of("dino_swin_b").preprocess, resize="pillow"),
                layout_of("dino_swin_b").postprocess,
                **DINO_OPTIONS,
            ),
        )
    }
)
"""Every architecture, by name."""
