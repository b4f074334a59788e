"""Score thresholds of single classes: the file that ``agssp-zoo val`` writes, and how it gets into a model.

docs/thresholds.md has the file's layout and the definitions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agssp_zoo.errors import ConfigError, InvalidArgumentError
from agssp_zoo.file_names import user_path

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig, Postprocess

SCHEMA_VERSION = 1
"""The newest layout of thresholds.json that this version reads, and the one it writes."""
Unreached = Literal["refuse", "closest", "own"]
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ClassThreshold:
    """One class of a thresholds.json.

    Attributes:
        threshold: detections with a score above this are kept; ``None``: none is known.
        reached: whether the wish that the file was made for is met on the images it was measured on; ``None`` where
            that cannot be said.
    """

    threshold: float | None
    reached: bool | None = None


@dataclass(frozen=True)
class ThresholdFile:
    """What a model takes from a thresholds.json.

    Attributes:
        path: the file.
        classes: class name -> its threshold.
        weights_sha256: SHA-256 of the ``model.safetensors`` that it was measured with; ``None``: unknown.
        settings: ``size`` and ``iou`` that it was measured with, where known.
    """

    path: Path
    classes: Mapping[str, ClassThreshold]
    weights_sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ThresholdFile:
        """Reads a file; by hand ``{"classes": {"scratch": 0.3}}`` will do.

        Raises:
            ConfigError: it cannot be read, is of a newer layout, or holds something else than thresholds.
        """
        file = Path(path)
        try:
            values = json.loads(file.read_bytes())
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror}); `agssp-zoo val` writes one.") from None
        except ValueError as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None
        classes = values.get("classes") if isinstance(values, dict) else None
        if not isinstance(classes, dict) or not classes:
            raise ConfigError(f'{file}: holds no thresholds; it needs {{"classes": {{"name": 0.3}}}} at least.')
        version = values.get("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ConfigError(
                f"{file}: schema_version {version!r} is newer than this installation reads ({SCHEMA_VERSION}); "
                "run `pip install -U agssp-zoo`."
            )
        return cls(
            file,
            {name: _class_threshold(entry, f"{file}: {name!r}") for name, entry in classes.items()},
            values.get("weights_sha256"),
            {key: values[key] for key in ("size", "iou") if key in values},
        )

    def choose(self, unreached: Unreached = "refuse") -> dict[str, float]:
        """The thresholds to use.

        Args:
            unreached: what becomes of a class whose wish was not reached: ``"refuse"`` the file, take the
                ``"closest"`` threshold all the same, or leave the class at the model's ``"own"`` ``conf``.

        Raises:
            InvalidArgumentError: a wish was not reached, and that is refused.
        """
        missing = [name for name, entry in self.classes.items() if entry.reached is False]
        if missing and unreached == "refuse":
            raise InvalidArgumentError(
                f"{self.path}: the wish is not reached for {', '.join(missing)}. Change it, write thresholds for them "
                "into the file by hand, or say what becomes of them: --unreached closest takes the file's all the "
                "same, --unreached own leaves them at the model's conf."
            )
        return {
            name: entry.threshold
            for name, entry in self.classes.items()
            if entry.threshold is not None and not (name in missing and unreached == "own")
        }


def _class_threshold(entry: Any, where: str) -> ClassThreshold:
    """One entry of a file: a number, or an object with ``threshold``."""
    value = entry.get("threshold") if isinstance(entry, dict) else entry
    reached = entry.get("reached") if isinstance(entry, dict) else None
    if isinstance(value, bool) or not (value is None or (isinstance(value, (int, float)) and 0 <= value <= 1)):
        raise ConfigError(f"{where} has the threshold {value!r}; it must lie in 0-1.")
    if not (reached is None or isinstance(reached, bool)):
        raise ConfigError(f"{where} has reached = {reached!r}; it must be true, false or null.")
    return ClassThreshold(None if value is None else float(value), reached)


def check_fits(file: ThresholdFile, config: ModelConfig, weights_sha256: str | None) -> None:
    """Refuses thresholds that were measured with another model, input size or suppression.

    Args:
        file: the thresholds.
        config: of the model that is to take them.
        weights_sha256: of that model's weights, where known.

    Raises:
        InvalidArgumentError: they do not fit.
    """
    unknown = [name for name in file.classes if name not in config.class_names]
    if unknown:
        raise InvalidArgumentError(
            f"{file.path}: {config.name} has no class {unknown[0]!r}; its classes are {', '.join(config.class_names)}."
        )
    if file.weights_sha256 and weights_sha256 and file.weights_sha256 != weights_sha256:
        raise InvalidArgumentError(
            f"{file.path} was measured with other weights than those of {config.name} here; measure again with "
            "`agssp-zoo val`. (Without weights_sha256 in the file this is not checked.)"
        )
    post = config.postprocess
    size = config.preprocess.size
    own = {"size": size if isinstance(size, int) else list(size), "iou": post.iou if post else None}
    remove = " --remove" if post and post.class_conf else ""
    # Not by hand: the IoU stands in the ONNX files, too.
    change = {
        "size": "change size in config.json",
        "iou": f"give the model that IoU first: `agssp-zoo thresholds MODEL --iou {file.settings.get('iou')}{remove}`",
    }
    for key, value in file.settings.items():
        if value != own[key]:
            raise InvalidArgumentError(
                f"{file.path} was measured with {key} {value}, but {config.name} runs with {own[key]}; measure again "
                f"without --{key}, or {change[key]}."
            )


def set_thresholds(
    model: str | os.PathLike[str], class_conf: Mapping[str, float], iou: float | None = None
) -> list[Path]:
    """Gives the classes of a model thresholds of their own, in place of all it had, and another IoU of the suppression.

    Args:
        model: a model folder, whose config.json and ONNX files are changed and whose checksums are brought up to date;
            or an ONNX file.
        class_conf: class name -> threshold; a class that is not named takes the model's ``conf``. Empty: all do.
        iou: of two boxes of one class that overlap by more, the better one stays; ``None``: as it is.

    Returns:
        The files that were changed.

    Raises:
        InvalidArgumentError: the model is no detector, or cannot be written.
        ModelNotFoundError, IntegrityError, ConfigError: the folder is none, damaged, or has no such class.
        EngineError: an ONNX file is damaged, or was exported with one threshold for all classes.
    """
    from agssp_zoo.folder import CHECKSUMS, CONFIG, update_checksums
    from agssp_zoo.onnx_file import with_thresholds

    config, folder, onnx_files = open_model(model)
    post = _postprocess(config)
    post = replace(post, class_conf=dict(class_conf), iou=post.iou if iou is None else iou)
    config = config.replace(postprocess=post)
    thresholds = post.thresholds(config.class_names)
    done: list[tuple[Path, Path]] = []
    try:
        try:
            for file in onnx_files:  # all are made before the first is put in place
                done.append((_beside(file), file))
                with done[-1][0].open("wb") as stream:
                    stream.writelines(with_thresholds(file, thresholds, post.iou, config.to_json()))
            if folder is not None:
                done.append((_beside(folder / CONFIG), folder / CONFIG))
                done[-1][0].write_text(config.to_json(), encoding="utf-8", newline="\n")
            for temporary, file in done:
                temporary.replace(file)
            if folder is not None and (folder / CHECKSUMS).is_file():
                update_checksums(folder, [file.name for _, file in done])
        finally:
            for temporary, _ in done:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"{model} cannot be written ({error.strerror}).") from None
    return [file for _, file in done]


def open_model(model: str | os.PathLike[str]) -> tuple[ModelConfig, Path | None, list[Path]]:
    """A detector's config, its folder (``None`` for an ONNX file) and its ONNX files; errors as above."""
    from agssp_zoo.folder import ModelFolder

    path = user_path(model)
    if path.suffix == ".onnx":
        from agssp_zoo.engines.onnx import OnnxModel
        from agssp_zoo.errors import EngineError

        if not path.is_file():
            raise EngineError(f"There is no file {path}; make one with `agssp-zoo export`.")
        config, folder, files = OnnxModel(path).config, None, [path]
    else:
        opened = ModelFolder.open(path)
        config, folder = opened.config, path
        # Through the folder, so that a file that was changed behind our back is not blessed with a new checksum.
        files = [opened.file(name) for name in opened.names if name.endswith(".onnx")]
    if config.task != "detector":
        raise InvalidArgumentError(f"{config.name} is a {config.task}; only a detector has score thresholds.")
    return config, folder, files


def _postprocess(config: ModelConfig) -> Postprocess:
    if config.postprocess is None:
        raise ConfigError(f"{config.name}: a detector's config needs postprocess.")
    return config.postprocess


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
