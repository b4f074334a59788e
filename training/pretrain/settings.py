"""Every setting of stage 1, as one frozen dataclass that the command line and the recipes are made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agssp_zoo.config import from_plain
from agssp_zoo.errors import SettingError

from ..settings import setting


@dataclass(frozen=True)
class PretrainSettings:
    """What a pretraining is made of. Lengths are in pixels of the network's input, times in epochs if nothing is said.

    Raises:
        SettingError: a value out of range.
    """

    images: tuple[str, ...] = setting((), "folders of images, labelled or not, or of shards")
    exclude: str = setting("", "text file of the names of images to leave out, one a line")
    split: str = setting("all", "images to learn from: all below the folders, or one split of labelled data")
    format: str = setting("auto", "format of the data; auto recognises it")
    maps: str = setting("", "folder of the images' anomaly maps, as `agssp-zoo anomaly-maps` writes it")
    out: str = setting("runs/pretrain", "folder of this run: settings, metrics, state, pictures and the model")
    recipe: str = setting("", "name of a recipe, or a .toml file; what is given beside it comes first")
    model: str = setting("cspdarknet_n", "architecture of the backbone")
    weights: str = setting("none", "none: random; auto: the model's; or a model name, model folder, .safetensors file")
    options: tuple[str, ...] = setting(
        (), "options of the architecture, as v1_strides=true, for weights that do not state theirs"
    )
    pixels: Literal["model", "unit", "paper"] = setting(
        "model",
        "what pixels become: model: as its weights (or its architecture) have them; unit: 0-1, as the YOLOv8 detectors "
        "take them; paper: the authors' mean and deviation",
    )
    tolerance: float = setting(
        0.0, "share of the images that may be unreadable before the run stops, 0-1", runtime=True
    )

    taps: tuple[int, ...] = setting((3, 4), "stages, from 1, whose activations learn the anomaly maps")
    freeze: int = setting(0, "stages, from the input on, that keep their weights and statistics")
    drop_path: float = setting(0.0, "share of images whose residual branches swin leaves out, of its last block, 0-1")
    checkpointing: bool = setting(
        False, "swin computes its blocks twice in a step instead of keeping them: less memory"
    )
    form: Literal["cosine", "l2"] = setting("cosine", "loss between activation and anomaly maps")
    resizing: Literal["cumulative", "direct"] = setting(
        "cumulative", "how maps come to a stage's size: from the stage before, or each from the map itself"
    )
    map_weight: float = setting(1.0, "weight of that loss")
    map_power: float = setting(1.0, "maps (0-1) are raised to this power; above 1, strong anomalies count more")
    task: Literal["cls", "simmim", "mocov3", "none"] = setting(
        "cls", "what is learned beside the maps: cls: names of data sets or folders; simmim, mocov3, none"
    )
    task_weight: float = setting(0.1, "weight of the task's loss; 0: as --task none")
    labels: Literal["source", "folder"] = setting("source", "classes of cls: the data sets, or the folders of images")
    label_smoothing: float = setting(0.0, "of cls, 0-1")
    mask_ratio: float = setting(0.6, "share of the patches that simmim hides, 0-1")
    mask_patch: int = setting(32, "side of such a patch; a multiple of the backbone's stride")
    moco_momentum: float = setting(0.99, "of mocov3's second encoder at the start; it rises to 1")
    moco_temperature: float = setting(1.0, "of mocov3's similarities")
    moco_width: int = setting(1024, "width of mocov3's heads")

    size: int = setting(224, "side of the network's input")
    resize: int = setting(
        512, "images are resized to about as many pixels as a square of this side; views are cropped from them"
    )
    aspect: Literal["keep", "square"] = setting(
        "square", "square: images are squashed onto the square, as the authors do; keep: they keep their proportions"
    )
    scale_min: float = setting(0.5, "smallest factor on that side")
    scale_max: float = setting(2.0, "largest factor on that side")
    flip_lr: float = setting(0.5, "probability of mirroring left and right")
    flip_ud: float = setting(0.5, "probability of mirroring up and down (a steel surface has no up)")
    brightness: float = setting(0.25, "brightness factor is drawn between 1 - brightness and 1 + brightness")
    contrast: float = setting(0.5, "contrast factor, likewise")
    saturation: float = setting(0.5, "saturation factor, likewise; gray images keep theirs")
    hue: float = setting(0.05, "largest shift of the hue, in turns; gray images keep theirs")
    sampling: Literal["natural", "balanced"] = setting(
        "natural", "images of an epoch: each once, or as many of every data set (some often, some not)"
    )

    epochs: int = setting(20, "passes over the images")
    batch: int = setting(64, "images a step, over all processes")
    accumulate: int = setting(1, "steps whose gradients are added up before the weights move")
    optimizer: Literal["sgd", "adamw"] = setting("adamw", "adamw, or sgd with momentum")
    lr: float | None = setting(None, "learning rate after warm-up; left out: 0.001 for adamw, 0.01 for sgd")
    final_lr: float = setting(0.01, "learning rate of the last step, as a share of --lr (not of schedule step)")
    schedule: Literal["cosine", "linear", "step"] = setting("cosine", "how the learning rate falls")
    milestones: tuple[int, ...] = setting((), "schedule step: epochs after which the rate takes --step-factor")
    step_factor: float = setting(0.1, "factor on the rate at each milestone")
    warmup: float = setting(1.0, "epochs over which the learning rate rises from 0")
    momentum: float | None = setting(None, "first beta of adamw, or momentum of sgd; left out: 0.9")
    nesterov: bool = setting(False, "sgd takes Nesterov's momentum")
    weight_decay: float | None = setting(
        None, "decay of matrices and kernels; biases and norms have none; left out: 0.05 for adamw, 0.0001 for sgd"
    )
    clip_norm: float = setting(0.0, "largest norm of the gradient; 0 does not clip")
    ema_decay: float = setting(0.0, "decay a step of averaged weights, which are then what is saved; 0: no averaging")
    ema_ramp: float = setting(2000.0, "steps over which that decay rises: decay * (1 - exp(-step / ramp))")
    seed: int = setting(2024, "seed of weights, order and augmentation")
    channels_last: bool = setting(True, "order of the network's memory; the faster one nearly everywhere")

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", runtime=True)
    precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto", "arithmetic of the network: no (float32), bf16 or fp16 (mixed); auto: bf16 where it is faster"
    )
    threads: int = setting(0, "CPU threads of the network; 0 takes all cores", runtime=True)
    workers: int = setting(
        -1, "processes that prepare images; 0 prepares them in line; -1: 1 for the CPU, up to 8 a GPU", runtime=True
    )
    cache_mb: int = setting(2048, "decoded images are kept in memory up to this many megabytes", runtime=True)
    save_every: int = setting(
        0, "save the state after every this many steps too, not only after an epoch", runtime=True
    )
    time_limit: float = setting(0.0, "stop, with the state saved, after this many seconds; 0: no limit", runtime=True)
    log_every: int = setting(10, "steps between two entries of the step log (TensorBoard)", runtime=True)
    plots: bool = setting(True, "draw loss.png", runtime=True)
    pictures: int = setting(8, "images whose activation maps before and after are drawn; 0: none", runtime=True)
    license: str = setting("", "licence of the trained model, for its card (an SPDX identifier)", runtime=True)

    def __post_init__(self) -> None:
        at_least = {
            "size": 32,
            "resize": 1,
            "epochs": 1,
            "batch": 1,
            "accumulate": 1,
            "log_every": 1,
            "mask_patch": 1,
            "moco_width": 1,
        }
        for name, low in at_least.items():
            _check(getattr(self, name) >= low, name, self, f"it must be at least {low}")
        for name in (
            *(
                "freeze",
                "map_weight",
                "task_weight",
                "warmup",
                "weight_decay",
                "clip_norm",
                "ema_ramp",
                "threads",
            ),
            *("cache_mb", "save_every", "time_limit", "pictures", "seed"),
        ):
            _check((getattr(self, name) or 0) >= 0, name, self, "it must not be negative")
        for name in ("map_power", "scale_min", "step_factor", "moco_temperature"):
            _check(getattr(self, name) > 0, name, self, "it must be above 0")
        _check(self.lr is None or self.lr > 0, "lr", self, "it must be above 0")
        _check(0 <= self.hue <= 0.5, "hue", self, "it is in turns of the colour circle and must lie in 0-0.5")
        _check(self.workers >= -1, "workers", self, "it must be -1, 0 or more")
        for name in (
            *(
                "drop_path",
                "tolerance",
                "final_lr",
                "momentum",
                "ema_decay",
                "flip_lr",
                "flip_ud",
                "label_smoothing",
                "mask_ratio",
            ),
            *("brightness", "contrast", "saturation", "moco_momentum"),
        ):
            _check(0 <= (getattr(self, name) or 0) <= 1, name, self, "it must lie in 0-1")
        _check(self.scale_max >= self.scale_min, "scale_max", self, "it must not be below --scale-min")
        smallest = round(self.resize * self.scale_min)
        _check(smallest >= self.size, "resize", self, f"times --scale-min it gives {smallest}, less than --size")
        _check(bool(self.taps) and min(self.taps, default=0) >= 1, "taps", self, "stages are numbered from 1")
        _check(list(self.taps) == sorted(set(self.taps)), "taps", self, "give each stage once, in ascending order")
        _check(self.schedule != "step" or bool(self.milestones), "milestones", self, "schedule step needs some")
        learns = self.map_weight > 0 or self.active_task != "none"
        _check(learns, "map_weight", self, "with task none, or a task weight of 0, nothing would be learned")

    @property
    def active_task(self) -> str:
        """The task; ``"none"`` where its weight is 0, since what cannot teach anything is not built either."""
        return self.task if self.task_weight else "none"

    def resized(self, height: int, width: int, factor: float) -> tuple[float, float]:
        """Height and width in pixels that an image is resized to, at a factor between ``scale_min`` and ``scale_max``.

        With ``aspect`` keep they have the proportions of the image and the area of ``square``, but the shorter one is
        never less than ``size``, as a view is cropped from them.
        """
        side = round(self.resize * factor)
        if self.aspect == "square" or height == width:
            return float(side), float(side)
        per_pixel = max(side / math.sqrt(height * width), self.size / min(height, width))
        return height * per_pixel, width * per_pixel

    def chosen(self, name: str) -> float:
        """``lr``, ``momentum`` or ``weight_decay``: as given, else what suits the optimizer."""
        given: float | None = getattr(self, name)
        return _BY_OPTIMIZER[self.optimizer][name] if given is None else given

    def settled(self, precision: Literal["no", "bf16", "fp16"]) -> PretrainSettings:
        """The same settings without anything left to be chosen, so that the run's record says what was done."""
        chosen: dict[str, Any] = {name: self.chosen(name) for name in _BY_OPTIMIZER[self.optimizer]}
        return dataclasses.replace(self, precision=precision, **chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json") -> PretrainSettings:
        """The settings from plain values; unknown keys and wrong types are a ConfigError."""
        return from_plain(cls, values, where)


def check_frozen(weights: str, freeze: int, *, model: str, recipe: str, thaw: str = "--freeze 0") -> None:
    """Refuses to freeze stages that would stay as they were drawn.

    Args:
        weights: what the backbone starts from; ``"none"``: random weights.
        freeze: how many stages are frozen.
        model: architecture of the backbone.
        recipe: which may have said so; empty without one.
        thaw: the option that freezes none.

    Raises:
        SettingError: stages are frozen, and there are no weights.
    """
    if weights == "none" and freeze:
        raise SettingError(
            f"{f'--recipe {recipe}' if recipe else f'--freeze {freeze}'}: {freeze} stages of {model} are frozen, so "
            "they need weights: give --weights (a model name, a model folder or a .safetensors file), or thaw all "
            f"stages: {thaw}."
        )


_BY_OPTIMIZER = {
    "adamw": {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.05},
    "sgd": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
}
"""What is taken where a run does not say; sgd's are the authors'."""


def _check(good: bool, name: str, settings: PretrainSettings, rule: str) -> None:
    if not good:
        value = getattr(settings, name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise SettingError(f"--{name.replace('_', '-')} is {shown}; {rule}.")
