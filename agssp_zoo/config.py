"""A model's config.json, as frozen dataclasses.

One file tells everything an engine needs: which architecture to build, how an image becomes the network's input and
how the network's output becomes detections. Unknown keys and newer schemas are errors, so a typo never passes
silently and an old installation never misreads a new file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from agssp_zoo.errors import ConfigError

SCHEMA_VERSION = 1
"""The newest config.json layout that this version reads, and the one it writes."""

Size = int | tuple[int, int]
T = TypeVar("T")

NETWORK_STRIDES = {"yolov8": 32}
"""Family of architectures -> what the sides of its input must be multiples of; families not named take any side."""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input.

    Attributes:
        size: an int bounds the longer side, and the image is padded only up to the next multiple of ``stride``
            (rectangular); a pair (height, width) is a fixed canvas. In pixels.
        stride: the input's height and width are multiples of this; for a YOLOv8 a multiple of 32 itself.
        fit: ``"letterbox"`` keeps the aspect ratio and pads; ``"stretch"`` fills the size, changing the ratio.
        resize: ``"opencv"`` reproduces OpenCV bit for bit (INTER_AREA when shrinking, else INTER_LINEAR), as the
            authors' pipeline does; ``"opencv_linear"`` always takes INTER_LINEAR; ``"pillow"`` is Pillow's
            antialiased bilinear filter, the fast one.
        rounding: how the resized sides are rounded, ``"floor"`` (the authors' YOLO) or ``"nearest"``.
        upscale: whether images smaller than the size are enlarged.
        pad_value: gray level of the padding, 0-255.
        pad_position: ``"center"`` or ``"top_left"`` (the image in the top left corner).
        pad_after_normalize: the padding is zero *after* normalising (Faster R-CNN, DINO); the engine is then told
            each image's valid size.
        mean: subtracted per RGB channel, in 0-255 units.
        std: divided by per RGB channel, in 0-255 units.
    """

    size: Size = 640
    stride: int = 32
    fit: Literal["letterbox", "stretch"] = "letterbox"
    resize: Literal["opencv", "opencv_linear", "pillow"] = "pillow"
    rounding: Literal["floor", "nearest"] = "nearest"
    upscale: bool = True
    pad_value: int = 114
    pad_position: Literal["center", "top_left"] = "center"
    pad_after_normalize: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size
        if min(sides) < 1:
            raise ConfigError(f"preprocess.size is {self.size}; give a side, or (height, width), of at least 1 pixel.")
        if self.stride < 1:
            raise ConfigError(f"preprocess.stride is {self.stride}; it must be at least 1.")
        if not 0 <= self.pad_value <= 255:
            raise ConfigError(f"preprocess.pad_value is {self.pad_value}; it must lie in 0-255.")
        if self.pad_after_normalize and self.pad_position != "top_left":
            raise ConfigError('preprocess.pad_after_normalize needs pad_position "top_left".')
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"preprocess.mean is {self.mean}; every entry must be a finite number.")
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"preprocess.std is {self.std}; every entry must be above 0, and finite.")


@dataclass(frozen=True)
class Postprocess:
    """How a detector's output becomes detections; the defaults of ``Detector.predict``.

    Attributes:
        conf: detections with a score at or below this are dropped.
        class_conf: class name -> the threshold that stands in ``conf``'s place for detections of that class; mostly
            written by ``agssp-zoo thresholds``.
        iou: boxes of one class overlapping a better one by more than this IoU are dropped (class-wise NMS).
        max_det: at most this many detections an image, the best ones.
        max_candidates: at most this many candidates, the best ones, enter NMS.
        multi_label: whether one box may answer with several classes.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    max_candidates: int = 30000
    multi_label: bool = True
    class_conf: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"postprocess.{name} is {getattr(self, name)}; it must lie in 0-1.")
        for name, value in self.class_conf.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"postprocess.class_conf: the threshold of {name!r} is {value}; it must lie in 0-1.")
        for name in ("max_det", "max_candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"postprocess.{name} is {getattr(self, name)}; it must be at least 1.")

    def thresholds(self, class_names: Sequence[str]) -> tuple[float, ...]:
        """The score threshold of every class in label order, or the one threshold of all where no class has its own."""
        if not self.class_conf:
            return (self.conf,)
        return tuple(self.class_conf.get(name, self.conf) for name in class_names)


@dataclass(frozen=True)
class ModelConfig:
    """All of config.json.

    Attributes:
        name: the model's name, ``architecture[.tag]``.
        architecture: which network to build, a key of ``agssp_zoo.models``.
        task: ``"detector"`` or ``"backbone"``.
        class_names: names of the classes in label order; empty for a backbone.
        options: architecture options that differ from the default, e.g. ``{"v1_strides": true}`` for resnet50.
        preprocess: how an image becomes the input.
        postprocess: how the output becomes detections; ``None`` for a backbone.
        provenance: where the weights come from (free form: source file, its sha256, command, data, seed, figures).
        schema_version: the layout of this file.
    """

    name: str
    architecture: str
    task: Literal["detector", "backbone"]
    class_names: tuple[str, ...] = ()
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.task == "detector":
            if not self.class_names:
                raise ConfigError(f"{self.name}: a detector needs class_names.")
            if self.postprocess is None:
                object.__setattr__(self, "postprocess", Postprocess())
        needed = NETWORK_STRIDES.get(self.architecture.partition("_")[0], 1)
        if self.preprocess.stride % needed:
            raise ConfigError(
                f"{self.name}: preprocess.stride is {self.preprocess.stride}, but {self.architecture} needs a multiple "
                f"of {needed}; set it to {needed} in config.json, and renew the checksums with "
                "`python -m agssp_zoo.folder DIR`."
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(f"{self.name}: class_names holds a name twice: {list(self.class_names)}.")
        for name in self.postprocess.class_conf if self.postprocess else ():
            if name not in self.class_names:
                close = difflib.get_close_matches(name, self.class_names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(self.class_names)}."
                raise ConfigError(f"{self.name}: postprocess.class_conf names no class of the model: {name!r}; {hint}")

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The plain dict that JSON holds, ``schema_version`` first; tuples are lists.

        ``postprocess.class_conf`` stands there only when a class has a threshold of its own. So files without any stay
        readable to every version of schema 1, and a version that does not know the key refuses a file with it by name,
        as it must: it would run with other thresholds than those that were measured.
        """
        plain = _plain(self)
        if plain["postprocess"] and not plain["postprocess"]["class_conf"]:
            del plain["postprocess"]["class_conf"]
        return {"schema_version": plain.pop("schema_version"), **plain}

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
        """Builds a config from plain values.

        Args:
            values: what config.json holds.
            where: the file's name, for messages.

        Raises:
            ConfigError: unknown or missing keys, values of a wrong type, or a schema that this version does not know.
        """
        version = values.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise ConfigError(f"{where}: schema_version is missing; is this a model folder of agssp-zoo?")
        if version < 1:
            raise ConfigError(f"{where}: schema_version is {version}; the first one is 1: is the file damaged?")
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{where}: schema_version {version} is newer than this installation reads ({SCHEMA_VERSION}); "
                "run `pip install -U agssp-zoo`."
            )
        return from_plain(cls, values, where)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "config.json") -> ModelConfig:
        """Builds a config from JSON text; errors as in :meth:`from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not valid JSON ({error}).") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: holds a {type(values).__name__}, not an object of settings.")
        return cls.from_dict(values, where=where)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelConfig:
        """Reads config.json from a file, or from the folder that holds it.

        Raises:
            ConfigError: the file is missing or wrong.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror}); a model folder holds config.json.") from None
        return cls.from_json(text, where=str(file))


def from_plain(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a frozen dataclass from plain JSON or TOML values, checking every key and type.

    Args:
        cls: a dataclass whose fields are scalars, literals, tuples, mappings or such dataclasses.
        values: the plain values.
        where: file and section, for messages.

    Raises:
        ConfigError: an unknown or missing key, or a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(fields)}."
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(map(repr, missing))}.")
    return cls(**{key: _convert(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    """One plain value as the type a field is annotated with."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be an object of settings, not {value!r}.")
        return from_plain(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; choose one of {', '.join(map(repr, args))}.")
        return value
    if origin in (typing.Union, UnionType):
        if isinstance(value, Mapping):  # so that the message is about what is wrong inside
            for option in args:
                if dataclasses.is_dataclass(option):
                    return _convert(value, option, where)
        for option in args:
            try:
                return _convert(value, option, where)
            except ConfigError:
                continue
        names = " or ".join("null" if a is type(None) else getattr(a, "__name__", str(a)) for a in args)
        raise ConfigError(f"{where} is {value!r}; it must be {names}.")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            if len(args) == 2 and args[1] is Ellipsis:
                return tuple(_convert(v, args[0], where) for v in value)
            if len(value) == len(args):
                return tuple(_convert(v, a, where) for v, a in zip(value, args, strict=True))
        raise ConfigError(
            f"{where} is {value!r}; it must be a list of {len(args)} values."
            if args[-1] is not Ellipsis
            else f"{where} is {value!r}; it must be a list."
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be an object, not {value!r}.")
        return {str(k): _convert(v, args[1] if args else Any, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {getattr(hint, '__name__', hint)}.")


def _plain(value: Any) -> Any:
    """A dataclass as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
