"""The settings of the whole chain, and what they mean for each of its three steps."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agssp_zoo.errors import InvalidArgumentError

from ..anomaly.settings import MapSettings
from ..settings import add_setting_arguments, setting
from .recipes import list_recipes, with_recipe
from .settings import PretrainSettings, check_frozen
from .stage2_settings import HIDDEN, DetectorSettings

STEPS = ("maps", "backbone", "detector")
"""The steps in order, and the folders that they leave."""
PLACES = ("out", "images", "exclude")
"""Settings that name places; a run that goes on may find the same things elsewhere."""


@dataclass(frozen=True)
class ChainSettings:
    """What the chain is made of: what matters to all steps, and options of each of them.

    Raises:
        InvalidArgumentError: a value out of range, or an option that a step does not have.
    """

    images: tuple[str, ...] = setting((), "folders of images, or of shards; labels are not looked at")
    exclude: str = setting("", "text file of the names of images to leave out, one a line")
    out: str = setting("runs/agssp", "folder of this run: maps, backbone, detector, report.html")
    model: str = setting("yolov8_n", "architecture of the detector; its backbone is pretrained first")
    method: str = setting("auto", "method of the anomaly maps; see agssp-zoo anomaly-maps --help")
    encoder: str = setting("", "network that the maps compare features of; left out: the method's")
    encoder_weights: str = setting("", "file of its weights; left out: those that are known by its name")
    normal: str = setting("", "folder of normal images, for methods that compare with them")
    recipe: str = setting(
        "", "recipe of the backbone's pretraining, or a .toml file; left out: the small one for this machine"
    )
    weights: str = setting(
        "none", "weights that the backbone starts from: none: random; or a model name, model folder, .safetensors file"
    )
    quantile: float | None = setting(
        None, "boxes: a threshold for each image, this quantile of its pixels, instead of one for each data set"
    )
    size: int = setting(640, "longer side of the detector's input")
    backbone_epochs: int = setting(0, "passes over the images to pretrain the backbone; 0: the recipe's")
    detector_epochs: int = setting(10, "passes over the images to pretrain the detector")
    seed: int = setting(-1, "of all that is drawn; left out: each step's own")
    maps: tuple[str, ...] = setting((), "more options of anomaly-maps, as NAME=VALUE: size=224 layers=2,3")
    backbone: tuple[str, ...] = setting((), "more options of pretrain-backbone: batch=128 task=none")
    detector: tuple[str, ...] = setting((), "more options of pretrain-detector: optimizer=adamw margin=0.2")
    tolerance: float = setting(0.0, "share of the images that may be unreadable, 0-1", runtime=True)

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", runtime=True)
    threads: int = setting(0, "CPU threads of the networks; 0 takes all cores", runtime=True)
    workers: int = setting(
        -1, "processes that prepare images; 0 prepares them in line; -1: 1 for the CPU, up to 8 a GPU", runtime=True
    )
    pictures: int = setting(6, "images of each data set that the report shows", runtime=True)
    license: str = setting("", "licence of the trained models, for their cards (an SPDX identifier)", runtime=True)

    def __post_init__(self) -> None:
        for name, low in {"size": 32, "backbone_epochs": 0, "detector_epochs": 1, "pictures": 0, "seed": -1}.items():
            if getattr(self, name) < low:
                flag = name.replace("_", "-")
                raise InvalidArgumentError(f"--{flag} is {getattr(self, name)}; it must be at least {low}.")
        if not 0.0 <= self.tolerance <= 1.0:
            raise InvalidArgumentError(f"--tolerance is {self.tolerance}; it must lie in 0-1.")
        for step in STEPS:
            self.options(step)

    def folder(self, step: str) -> Path:
        """Where a step leaves its result."""
        return Path(self.out) / step

    def options(self, step: str) -> dict[str, Any]:
        """The further options of a step, as values of its settings."""
        cls, taken = _OPTIONS[step]
        return read_options(cls, getattr(self, step), step, taken)

    def map_settings(self) -> MapSettings:
        """The settings of the first step."""
        return MapSettings(
            data=self.images,
            exclude=self.exclude,
            out=str(self.folder("maps")),
            method=self.method,
            encoder=self.encoder,
            encoder_weights=self.encoder_weights,
            normal=self.normal,
            tolerance=self.tolerance,
            device=self.device,
            threads=self.threads,
            workers=self.workers,
            **self._seed(),
            **self.options("maps"),
        )

    def backbone_values(self, backbone: str, *, single: bool) -> dict[str, Any]:
        """The settings of the second step that are given; what they leave out is the recipe's.

        Args:
            backbone: architecture of the detector's backbone.
            single: whether all images are of one data set, so that the names of data sets teach nothing.

        Raises:
            TrainingError: no such recipe, or stages would be frozen at random weights.
            ConfigError: the recipe is no recipe.
        """
        values: dict[str, Any] = {
            "images": self.images,
            "exclude": self.exclude,
            "maps": str(self.folder("maps")),
            "out": str(self.folder("backbone")),
            "model": backbone,
            "recipe": self.recipe,
            "weights": self.weights,
            "tolerance": self.tolerance,
            **self._training(),
            **({"epochs": self.backbone_epochs} if self.backbone_epochs else {}),
            **self.options("backbone"),
        }
        merged = with_recipe(values)
        named = self.options("backbone").keys() & {"task", "labels"}
        if single and not named and merged.get("task", PretrainSettings.task) == "cls":
            values["task"] = "none"
        frozen = merged.get("freeze", 0)
        check_frozen(self.weights, frozen, model=backbone, recipe=self.recipe, thaw="--backbone freeze=0")
        return values

    def detector_values(self) -> dict[str, Any]:
        """The settings of the third step."""
        return {
            "images": self.images,
            "exclude": self.exclude,
            "maps": str(self.folder("maps")),
            "out": str(self.folder("detector")),
            "model": self.model,
            "backbone_weights": str(self.folder("backbone") / "last"),
            "size": self.size,
            "epochs": self.detector_epochs,
            "quantile": self.quantile,
            "tolerance": self.tolerance,
            **self._training(),
            **self.options("detector"),
        }

    def _training(self) -> dict[str, Any]:
        """What both trainings share."""
        return {
            "device": self.device,
            "threads": self.threads,
            "workers": self.workers,
            "license": self.license,
            **self._seed(),
        }

    def _seed(self) -> dict[str, Any]:
        return {} if self.seed == -1 else {"seed": self.seed}


_COMMON = ("images", "exclude", "maps", "out", "model", "tolerance", "device", "threads", "workers", "license", "seed")
_OPTIONS: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "maps": (
        MapSettings,
        (*_COMMON[1:2], *_COMMON[3:], "data", "method", "encoder", "encoder_weights", "normal", "visualize", "split"),
    ),
    "backbone": (PretrainSettings, (*_COMMON, "recipe", "weights", "epochs", "split", "format")),
    "detector": (
        DetectorSettings,
        (*_COMMON, *HIDDEN, "backbone_weights", "weights", "size", "epochs", "quantile", "split", "format"),
    ),
}
"""Step -> its settings, and those of them that the chain sets itself."""


class _Parser(argparse.ArgumentParser):
    """Complains by an exception of ours."""

    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(message)


def read_options(cls: type[Any], texts: Sequence[str], step: str, taken: Sequence[str]) -> dict[str, Any]:
    """``("size=224", "layers=2,3")`` as values of a class of settings, each read as its command reads it.

    Args:
        cls: of the settings.
        texts: the options.
        step: whose they are, for messages.
        taken: settings that the chain sets itself.

    Raises:
        InvalidArgumentError: no such option, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    parser = _Parser(add_help=False, allow_abbrev=False, prog=f"--{step}")
    add_setting_arguments(parser, cls)
    words: list[str] = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        where = f"--{step} {text}"
        if name in taken:
            raise InvalidArgumentError(f"{where}: the chain sets {name} itself; see agssp-zoo agssp --help.")
        if not equals or name not in fields:
            close = difflib.get_close_matches(name, [known for known in fields if known not in taken], n=1)
            hint = f"did you mean {close[0]}=...?" if close and name not in fields else "give it as NAME=VALUE."
            raise InvalidArgumentError(f"{where}: {hint}")
        flag = f"--{name.replace('_', '-')}"
        if isinstance(fields[name].default, bool):
            if value.lower() not in ("true", "false"):
                raise InvalidArgumentError(f"{where}: give true or false.")
            words.append(flag if value.lower() == "true" else f"--no-{flag[2:]}")
        elif isinstance(fields[name].default, tuple):
            words += [flag, *value.split(",")]
        else:
            words.append(f"{flag}={value}")
    try:
        found = vars(parser.parse_args(words))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"--{step}: {error}") from None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def same_options(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The steps whose given options differ from the stored ones at most in what may change when a run goes on.

    Args:
        stored: settings of the chain, as chain.json has them.
        given: settings of the chain that were given again.

    Raises:
        InvalidArgumentError: no such option.
    """
    same = []
    for step, (cls, taken) in _OPTIONS.items():
        fixed = {field.name for field in dataclasses.fields(cls) if not field.metadata["runtime"]}
        before, now = (
            {k: v for k, v in read_options(cls, values.get(step, ()), step, taken).items() if k in fixed}
            for values in (stored, given)
        )
        if step in given and before == now:
            same.append(step)
    return same


def small_recipe(backbone: str, kind: str) -> str:
    """The name of the small recipe for a backbone and a kind of device (``cpu``, ``cuda``); empty without one."""
    wanted = f"{backbone.partition('_')[0]}_{'cpu' if kind == 'cpu' else 'gpu_hour'}"
    return wanted if wanted in list_recipes() else ""
