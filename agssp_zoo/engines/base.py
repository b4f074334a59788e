"""The interface of the engines, and the choice among them."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import EngineError, InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from agssp_zoo.config import ModelConfig
    from agssp_zoo.folder import ModelFolder

ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
PRECISION_FILES = {"float32": ONNX_FILE, "float16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""Precision -> the file of a model folder; made by ``agssp-zoo export``, with ``--fp16`` and ``--int8``."""

Provider = str | tuple[str, Mapping[str, Any]]

_PACKAGES = {"onnx": "onnxruntime", "pytorch": "torch", "openvino": "openvino"}
"""Engine -> the package it needs."""
_AUTO = ("onnx", "pytorch")
"""What "auto" tries, in order; OpenVINO computes in bfloat16 where it can, which nobody should get unasked."""
_INSTALL = {
    "onnx": "pip install onnxruntime",
    "pytorch": "pip install 'agssp-zoo[torch]'",
    "openvino": "pip install 'agssp-zoo[openvino]'",
}
_FILES: dict[str, dict[str | None, str]] = {
    "onnx": {None: ONNX_FILE} | dict(PRECISION_FILES.items()),
    "pytorch": {None: WEIGHTS_FILE, "float32": WEIGHTS_FILE},
    "openvino": {None: ONNX_FILE, "float32": ONNX_FILE, "bfloat16": ONNX_FILE, "float16": ONNX_FILE}
    | {"int8": PRECISION_FILES["int8"]},
}
"""Engine -> precision -> the file of a model folder that it reads. OpenVINO itself changes the precision of floats."""
_ONNX_ONLY = frozenset({"tensorrt", "rocm", "migraphx", "dml", "coreml"})
"""Devices that PyTorch does not know by that name."""
_MAKE = {"int8": " --int8 --calibration DIR", "float16": " --fp16"}


@dataclass(frozen=True, slots=True)
class RawDetections:
    """What an engine answers for a batch of B canvases; M is the most detections an image.

    Attributes:
        boxes: (B, M, 4) float32 xyxy in canvas pixels, best first.
        scores: (B, M) float32.
        labels: (B, M) int64.
        count: (B,) int64; rows from there on mean nothing.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    count: NDArray[np.int64]


class Engine(Protocol):
    """A detector network with its normalising, decoding and suppression.

    Attributes:
        name: ``"onnx"``, ``"pytorch"`` ...
        config: the model's configuration.
        max_det: the most detections an image that it can answer; ``None`` when there is no bound.
    """

    name: str
    config: ModelConfig
    max_det: int | None

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> RawDetections:
        """Detects.

        Args:
            images: (B, H, W, 3) uint8 RGB canvases, sides multiples of the config's stride.
            conf: score threshold of all classes; ``None`` takes the config's, as below, which may differ from class to
                class.
            iou: of the suppression.
            max_det: most detections an image; at most ``self.max_det``. An engine may answer more, best first.
            sizes: (B, 2) valid (height, width) of each canvas, for models that pad after normalising.

        Raises:
            EngineError: the network cannot be run.
        """
        ...


def score_thresholds(config: ModelConfig, conf: float | None) -> tuple[float, ...]:
    """The thresholds to run with: one for all classes, or one for each in label order.

    Every engine drops by them before anything else, so that what lies below takes no place among ``max_det``.

    Args:
        config: the model's.
        conf: what the caller wants for all classes; ``None``: the config's own.

    Raises:
        EngineError: the config has no postprocess.
    """
    if conf is not None:
        return (conf,)
    if config.postprocess is None:
        raise EngineError(f"{config.name} has no postprocess in its config.json.")
    return config.postprocess.thresholds(config.class_names)


def load_engine(
    folder: ModelFolder,
    engine: str = "auto",
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
    precision: str | None = None,
) -> Engine:
    """Loads a detector into an engine.

    Args:
        folder: the model.
        engine: ``"onnx"``, ``"pytorch"``, ``"openvino"``, or ``"auto"``: the first of the first two that the folder's
            files and the installed packages serve.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, with ONNX also ``"tensorrt"``, with PyTorch also ``"mps"``,
            ``"xpu"``, with OpenVINO also ``"gpu"`` ...
        providers: ONNX Runtime's execution providers instead of a device, names or (name, options).
        precision: see :func:`agssp_zoo.load_detector`.

    Raises:
        EngineError: no engine serves, or the device, provider or precision is not there.
        MissingDependencyError: PyTorch or OpenVINO is asked for and not installed.
        InvalidArgumentError: an unknown engine or precision, providers for an engine that has none, or beside a device.
        ModelNotFoundError, HubError, IntegrityError, ConfigError, CheckpointError: a file is missing or wrong.
    """
    chosen = choose_engine(folder, engine, device, providers, precision)
    file = folder.file(_FILES[chosen][precision])
    if chosen == "pytorch":
        from agssp_zoo.engines.pytorch import PyTorchEngine

        return PyTorchEngine.load(folder, device=device)
    return load_file(file, chosen, device, providers, precision, folder.config)


def load_file(
    path: Path,
    engine: str = "onnx",
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
    precision: str | None = None,
    config: ModelConfig | None = None,
) -> Engine:
    """Opens a detector's ONNX file. Arguments and errors as for :func:`load_engine`.

    Args:
        path: the file.
        engine: ``"onnx"`` or ``"openvino"``.
        device: where it runs.
        providers: ONNX Runtime's.
        precision: with ONNX Runtime the file's own; with OpenVINO what it computes in.
        config: the folder's; ``None`` takes the one in the file.
    """
    _check_place(device, providers)
    if engine == "openvino":
        from agssp_zoo.engines.openvino import OpenVinoEngine

        if providers:
            raise InvalidArgumentError(f"providers are ONNX Runtime's; engine={engine!r} takes a device.")
        wanted = None if precision == "int8" else precision  # that is the file's
        return OpenVinoEngine(path, device=device, precision=wanted, config=config)
    from agssp_zoo.engines.onnx import OnnxEngine

    return OnnxEngine.load(path, device=device, providers=providers, config=config)


def choose_engine(
    folder: ModelFolder,
    engine: str = "auto",
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
    precision: str | None = None,
) -> str:
    """Which engine to take. Arguments and errors as for :func:`load_engine`."""
    _check_place(device, providers)
    known = list(dict.fromkeys(name for files in _FILES.values() for name in files if name is not None))
    if precision is not None and precision not in known:
        raise InvalidArgumentError(f"precision={precision!r}; choose one of {', '.join(map(repr, known))}.")
    if engine == "auto":
        for name in _AUTO:
            if not _unfit(name, folder, precision, device, providers):
                return name
        reasons = "; ".join(f"{name}: {_unfit(name, folder, precision, device, providers)}" for name in _AUTO)
        raise EngineError(f"No engine can run {folder.path} here ({reasons}).")
    if engine not in _FILES:
        raise InvalidArgumentError(f"engine={engine!r}; choose 'auto', {' or '.join(map(repr, _FILES))}.")
    if providers and engine != "onnx":
        raise InvalidArgumentError(f"providers are ONNX Runtime's; engine={engine!r} takes a device.")
    if precision not in _FILES[engine]:
        others = " or ".join(repr(name) for name, files in _FILES.items() if precision in files)
        raise InvalidArgumentError(f"engine={engine!r} has no precision={precision!r}; {others} has.")
    package = _PACKAGES[engine]
    if importlib.util.find_spec(package) is None:
        kind = EngineError if engine == "onnx" else MissingDependencyError  # the base install has ONNX Runtime
        raise kind(f"engine={engine!r} needs {package}, which is not installed; run `{_INSTALL[engine]}`.")
    file = _FILES[engine][precision]
    if file != WEIGHTS_FILE and not folder.has(file):
        instead = ", or take engine='pytorch'" if file == ONNX_FILE else ""
        raise EngineError(
            f"{folder.path} holds no {file}; make it with "
            f"`agssp-zoo export {shlex.quote(str(folder.path))}{_MAKE.get(precision or '', '')}`{instead}."
        )
    return engine


def _lacks(engine: str, folder: ModelFolder, precision: str | None) -> str | None:
    """Why an engine does not serve; ``None`` when it does."""
    package, file = _PACKAGES[engine], _FILES[engine].get(precision)
    if file is None:
        return f"no {precision}"
    if not folder.has(file):
        return f"there is no {file}"
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed, run `{_INSTALL[engine]}`"
    return None


def _unfit(
    engine: str, folder: ModelFolder, precision: str | None, device: str, providers: Sequence[Provider] | None
) -> str:
    """Why "auto" does not take an engine; empty when it may. An explicit choice gets an error of the engine itself."""
    if lacks := _lacks(engine, folder, precision):
        return lacks
    return "it has no providers" if providers and engine != "onnx" else _no_device(engine, device)


def _check_place(device: str, providers: Sequence[Provider] | None) -> None:
    """Refuses a device beside providers, which would be passed over."""
    if providers and device != "cpu":
        raise InvalidArgumentError(f"providers take the place of a device; leave out providers, or device={device!r}.")


def _no_device(engine: str, device: str) -> str:
    """Why "auto" does not take an engine for a device; empty when it may."""
    if engine != "onnx":
        return "" if device.partition(":")[0] not in _ONNX_ONLY else f"it knows no {device}"
    if device == "cpu":
        return ""
    from agssp_zoo.engines.providers import providers_for

    try:
        providers_for(device)
    except EngineError as error:
        return str(error).rstrip(".")
    return ""
