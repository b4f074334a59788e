"""Every setting of a training run, as one frozen dataclass that the command line is made from."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from agssp_zoo.config import from_plain
from agssp_zoo.errors import SettingError, TrainingError
from agssp_zoo.tiling import Tiling

SettingsT = TypeVar("SettingsT")


def setting(default: Any, text: str, *, runtime: bool = False) -> Any:
    """A field with its help text; ``runtime`` settings may change when a run is resumed."""
    return dataclasses.field(default=default, metadata={"help": text, "runtime": runtime})


@dataclass(frozen=True)
class TrainSettings:
    """What a run is made of. Lengths are in pixels of the network's input, times in epochs unless said otherwise.

    Raises:
        SettingError: a value out of range.
    """

    data: str = setting("", "folder of labelled images (COCO, YOLO, Pascal VOC, labelme, masks) or of shards")
    out: str = setting("runs/train", "folder of this run: settings, metrics, state, last and best model")
    model: str = setting("yolov8_n", "architecture, model name, or model folder to start from")
    weights: Literal["auto", "none"] = setting("auto", "none: random weights; auto: the model's, where they fit")
    backbone_weights: str = setting("", "model folder or name of a backbone whose weights start the detector's")
    format: str = setting("auto", "format of the labels; auto recognises it")
    train_split: str = setting("train", "split to train on")
    val_split: str = setting("val", "split to validate on")
    val_fraction: float = setting(
        0.0, "where the data have no such split: validate on this share of the images, drawn by the seed"
    )
    tolerance: float = setting(
        0.0, "share of the images that may be unreadable before training stops, 0-1", runtime=True
    )

    size: int = setting(
        0,
        "longer side of the network's input; 0: what the weights learned at, or that of the images if it is more (to "
        "640 at most)",
    )
    tile: int = setting(
        0, "cut large images into tiles of this side, in their own pixels, to train and to validate on; 0: do not"
    )
    overlap: float = setting(0.2, "share of a tile that the next one covers too")
    tile_empty: float = setting(
        0.25, "tiles without any defect to train on, drawn by the seed, as a share of the tiles with labels"
    )
    epochs: int = setting(100, "passes over the training images")
    batch: int = setting(16, "images a step, over all processes")
    accumulate: int = setting(1, "steps whose gradients are added up before the weights move")
    optimizer: Literal["sgd", "adamw"] = setting(
        "adamw",
        "adamw, which learns faster in the few thousand steps that a few hundred images make; sgd with Nesterov "
        "momentum for long runs on many",
    )
    lr: float | None = setting(
        None, "learning rate after warm-up; left out: 0.001 for adamw (DINO: 0.0001), 0.01 for sgd"
    )
    backbone_lr: float = setting(1.0, "learning rate of the backbone, as a share of --lr")
    final_lr: float = setting(0.01, "share of --lr that the learning rate falls towards")
    schedule: Literal["cosine", "linear"] = setting("cosine", "how the learning rate falls")
    warmup: float = setting(3.0, "epochs over which the learning rate rises from 0, at most half of them all")
    momentum: float | None = setting(None, "first beta of adamw (left out: 0.9), momentum of sgd (left out: 0.937)")
    weight_decay: float | None = setting(
        None,
        "decay of matrices and kernels; biases and norms have none; left out: 0.02 for adamw (DINO: 0.0001), "
        "0.0005 for sgd",
    )
    clip_norm: float = setting(10.0, "largest norm of the gradient; 0 does not clip")
    ema_decay: float = setting(0.9998, "decay a step of the averaged weights; 0 switches averaging off")
    ema_ramp: float = setting(2000.0, "steps over which that decay rises: decay * (1 - exp(-step / ramp))")
    freeze: int = setting(0, "backbone stages, from the input on, that keep their weights and statistics")
    drop_path: float = setting(0.0, "share of images whose residual branches swin leaves out, of its last block, 0-1")
    checkpointing: bool = setting(
        False, "swin computes its blocks twice in a step instead of keeping them: less memory"
    )
    cls_pw: float = setting(0.0, "class imbalance: boxes of a class count as its frequency to the power -cls_pw, 0-1")
    box_weight: float = setting(7.5, "weight of the box loss (CIoU)")
    cls_weight: float = setting(0.5, "weight of the class loss (BCE)")
    dfl_weight: float = setting(1.5, "weight of the distance loss (DFL)")
    nms_iou: float | None = setting(
        None,
        "of two boxes of one class that overlap by more than this IoU the better one stays, in validation and in the "
        "finished model; left out: 0.5 for YOLOv8 detectors, the model's own for others",
    )
    patience: int = setting(0, "stop after this many epochs without a better map50_95; 0 never stops early")
    val_every: int = setting(1, "validate after every this many epochs, and after the last")
    seed: int = setting(0, "seed of weights, order and augmentation")

    mosaic: float = setting(1.0, "probability of composing four images into one")
    close_mosaic: int = setting(10, "last epochs without mosaic")
    degrees: float = setting(0.0, "largest rotation")
    translate: float = setting(0.1, "largest shift, as a share of the size")
    scale: float = setting(0.5, "scale is drawn between 1 - scale and 1 + scale")
    shear: float = setting(0.0, "largest shear, in degrees")
    flip_lr: float = setting(0.5, "probability of mirroring left and right")
    flip_ud: float = setting(0.5, "probability of mirroring up and down (a steel surface has no up)")
    quarter_turn: float = setting(
        0.0, "probability of turning by 90 degrees, either way, where defects may lie in any direction"
    )
    turn_classes: tuple[str, ...] = setting(
        (), "turn only images all of whose defects are of these classes, each for itself; left out: every image"
    )
    brightness: float = setting(0.3, "brightness factor is drawn between 1 - brightness and 1 + brightness")
    contrast: float = setting(0.3, "contrast factor, likewise")
    saturation: float = setting(0.5, "saturation factor, likewise; gray images keep theirs")
    hue: float = setting(0.015, "largest shift of the hue, in turns; gray images keep theirs")

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", runtime=True)
    precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto",
        "arithmetic of the network: no (float32), bf16 or fp16 (mixed); auto takes bf16 on most "
        "GPUs, and on CPUs where it is faster, which is tried out",
    )
    threads: int = setting(0, "CPU threads of the network; 0 takes all cores", runtime=True)
    workers: int = setting(
        -1, "processes that prepare images; 0 prepares them in line; -1: 1 for the CPU, up to 8 a GPU", runtime=True
    )
    cache_mb: int = setting(2048, "decoded images are kept in memory up to this many megabytes", runtime=True)
    save_every: int = setting(
        0, "save the state after every this many steps too, not only after an epoch", runtime=True
    )
    time_limit: float = setting(
        0.0, "stop, with the state saved, after this many seconds; 0 has no limit", runtime=True
    )
    log_every: int = setting(10, "steps between two entries of the step log (TensorBoard)", runtime=True)
    plots: bool = setting(True, "draw loss.png and map.png", runtime=True)
    report: bool = setting(
        True, "measure the best model at the end and write val/report.html (as agssp-zoo val does)", runtime=True
    )
    export: bool = setting(False, "write best/model.onnx at the end (needs the export extra)", runtime=True)
    license: str = setting("", "licence of the trained model, for its card (an SPDX identifier)", runtime=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turn_classes", _names(self.turn_classes))
        _check(self.size == 0 or self.size >= 32, "size", self, "it must be at least 32, or 0 to have it chosen")
        at_least = {"epochs": 1, "batch": 1, "accumulate": 1, "val_every": 1, "log_every": 1}
        for name, low in at_least.items():
            _check(getattr(self, name) >= low, name, self, f"it must be at least {low}")
        for name in (
            *("warmup", "weight_decay", "clip_norm", "freeze", "ema_ramp", "close_mosaic", "degrees", "patience"),
            *("shear", "threads", "cache_mb", "save_every", "time_limit", "seed"),
            *("box_weight", "cls_weight", "dfl_weight", "tile_empty"),
        ):
            _check((getattr(self, name) or 0) >= 0, name, self, "it must not be negative")
        _check(self.momentum != 1, "momentum", self, "it must be below 1")
        _check(self.lr is None or self.lr > 0, "lr", self, "it must be above 0")
        _check(self.tile == 0 or self.tile >= 32, "tile", self, "it must be 0, or at least 32 pixels")
        if self.turn_classes and not self.quarter_turn:
            raise SettingError("--turn-classes says what --quarter-turn turns; give --quarter-turn 0.5 with it.")
        _check(0 <= self.overlap <= 0.9, "overlap", self, "it must lie in 0-0.9")
        _check(0 <= self.hue <= 0.5, "hue", self, "it is in turns of the colour circle and must lie in 0-0.5")
        _check(0 <= self.val_fraction < 1, "val_fraction", self, "it must be at least 0 and below 1")
        _check(self.workers >= -1, "workers", self, "it must be -1, 0 or more")
        for name in (
            *("tolerance", "final_lr", "momentum", "ema_decay", "cls_pw", "mosaic", "translate"),
            *("drop_path", "scale", "flip_lr", "flip_ud", "quarter_turn", "brightness", "contrast", "saturation"),
            *("backbone_lr", "nms_iou"),
        ):
            _check(0 <= (getattr(self, name) or 0) <= 1, name, self, "it must lie in 0-1")

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut; ``None`` where they are not."""
        return Tiling(self.tile, self.overlap) if self.tile else None

    def chosen(self, name: str) -> float:
        """``lr``, ``momentum`` or ``weight_decay``: as given, else what suits the optimizer."""
        given: float | None = getattr(self, name)
        return _BY_OPTIMIZER[self.optimizer][name] if given is None else given

    def settled(
        self, precision: Literal["no", "bf16", "fp16"], suits: Mapping[str, Mapping[str, float]] | None = None
    ) -> TrainSettings:
        """The same settings without anything left to be chosen, so that the run's record says what was done.

        Args:
            precision: what ``auto`` stands for.
            suits: what suits the detector, by optimizer; of the rest, what suits the optimizer.
        """
        chosen: dict[str, Any] = {name: self.chosen(name) for name in _BY_OPTIMIZER[self.optimizer]}
        for name, value in (suits or {}).get(self.optimizer, {}).items():
            if getattr(self, name) is None:
                chosen[name] = value
        return dataclasses.replace(self, precision=precision, **chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json") -> TrainSettings:
        """The settings from plain values; unknown keys and wrong types are a ConfigError."""
        return from_plain(cls, values, where)


_BY_OPTIMIZER = {
    "adamw": {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.02},
    "sgd": {"lr": 0.01, "momentum": 0.937, "weight_decay": 5e-4},
}
"""What is taken where a run does not say. On 1439 images of steel at 256 px, from random weights, adamw so set is ahead
of sgd from the first epochs on."""


def _names(given: Any) -> tuple[Any, ...]:
    """One name, or several values, as a tuple: Python callers may give a list."""
    return (given,) if isinstance(given, str) else tuple(given)


def _check(good: bool, name: str, settings: TrainSettings, rule: str) -> None:
    if not good:
        raise SettingError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; {rule}.")


def add_setting_arguments(
    parser: argparse.ArgumentParser, cls: type[Any] = TrainSettings, *, leave_out: Sequence[str] = ()
) -> None:
    """An option for every setting of a class. Options that were not given are absent from the namespace."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        hint, text = hints[field.name], field.metadata["help"]
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        shown = "" if default in ("", None, -1) else f" (default: {default})"
        kind: dict[str, Any]
        if hint is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif typing.get_origin(hint) is Literal:
            kind = {"choices": typing.get_args(hint)}
        elif typing.get_origin(hint) is tuple:
            of = typing.get_args(hint)[0]
            kind = {"type": of, "nargs": "+", "metavar": of.__name__.upper()}
        else:
            of = float if hint == float | None else hint
            kind = {"type": of, "metavar": of.__name__.upper()}
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text + shown, **kind)


def given_settings(args: argparse.Namespace, cls: type[Any] = TrainSettings) -> dict[str, Any]:
    """The settings of a class that were given on the command line."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items() if name in names
    }


def merge_for_resume(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> TrainSettings:
    """The settings of a fine-tuning that goes on; see :func:`merge_settings`."""
    return merge_settings(TrainSettings, stored, given, where, movable=("out", "data"))


_LEFT_OPEN = {"precision": "auto", "lr": None, "momentum": None, "weight_decay": None, "nms_iou": None}
"""Settings that are settled when a run begins, and what leaves them open. Of any other setting ``auto`` is a value."""


def merge_settings(
    cls: type[SettingsT], stored: Mapping[str, Any], given: Mapping[str, Any], where: str, *, movable: Sequence[str]
) -> SettingsT:
    """The settings of a run that goes on: the stored ones, with those changed that may change.

    Args:
        cls: class of the settings.
        stored: as the run's record has them.
        given: those that were given again.
        where: the record, for messages.
        movable: settings that name places, which may have other names now.

    Raises:
        TrainingError: a given setting that shapes the result differs from the stored one.
    """
    before = from_plain(cls, stored, where)
    given = {k: _names(v) if isinstance(getattr(before, k), tuple) else v for k, v in given.items()}
    runtime = {f.name for f in dataclasses.fields(cls) if f.metadata["runtime"]} | set(movable)  # type: ignore[arg-type]
    differing = [
        f"--{name.replace('_', '-')} {value} (was {getattr(before, name)})"
        for name, value in given.items()
        # What was left to be chosen was settled when the run began; leaving it open again asks for the same.
        if not (name in runtime or value == getattr(before, name) or (name, value) in _LEFT_OPEN.items())
    ]
    if differing:
        raise TrainingError(
            f"{where}: the run cannot be resumed with other settings: {', '.join(differing)}; leave them out, or start "
            "a new run with another --out."
        )
    changed = {k: v for k, v in given.items() if k in runtime}
    return dataclasses.replace(before, **changed)  # type: ignore[type-var]
