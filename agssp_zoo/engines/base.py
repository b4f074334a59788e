"""The interface of the engines, and the choice among them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import EngineError, InvalidArgumentError

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig
    from agssp_zoo.folder import ModelFolder

ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"

Provider = str | tuple[str, Mapping[str, Any]]

_SERVES = {"onnx": ("onnxruntime", ONNX_FILE), "pytorch": ("torch", WEIGHTS_FILE)}
"""Engine -> the package it needs and the file it reads, in the order in which "auto" tries them."""
_INSTALL = {"onnx": "pip install onnxruntime", "pytorch": "pip install 'agssp-zoo[torch]'"}


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
) -> Engine:
    """Loads a detector into an engine.

    Args:
        folder: the model.
        engine: ``"onnx"``, ``"pytorch"``, or ``"auto"``: the first of them that the folder's files and the installed
            packages serve.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, with PyTorch also ``"mps"``, ``"xpu"`` ...
        providers: ONNX Runtime's execution providers instead of a device, names or (name, options).

    Raises:
        EngineError: no engine serves, or the device or provider is not there.
        InvalidArgumentError: an unknown engine, or providers for an engine that has none.
        ModelNotFoundError, HubError, IntegrityError, ConfigError, CheckpointError: a file is missing or wrong.
    """
    chosen = choose_engine(folder, engine, device, providers)
    if chosen == "onnx":
        from agssp_zoo.engines.onnx import OnnxEngine

        return OnnxEngine.load(folder.file(ONNX_FILE), device=device, providers=providers, config=folder.config)
    from agssp_zoo.engines.pytorch import PyTorchEngine

    return PyTorchEngine.load(folder, device=device)


def choose_engine(
    folder: ModelFolder, engine: str = "auto", device: str = "cpu", providers: Sequence[Provider] | None = None
) -> str:
    """Which engine to take. Arguments and errors as for :func:`load_engine`."""
    if engine == "auto":
        for name in _SERVES:
            if _lacks(name, folder) is None and not (name != "onnx" and providers) and _has_device(name, device):
                return name
        reasons = "; ".join(f"{name}: {_lacks(name, folder) or f'no {providers or device}'}" for name in _SERVES)
        raise EngineError(f"No engine can run {folder.path} here ({reasons}).")
    if engine not in _SERVES:
        raise InvalidArgumentError(f"engine={engine!r}; choose 'auto', {' or '.join(map(repr, _SERVES))}.")
    if providers and engine != "onnx":
        raise InvalidArgumentError(f"providers are ONNX Runtime's; engine={engine!r} takes a device.")
    package = _SERVES[engine][0]
    if importlib.util.find_spec(package) is None:
        raise EngineError(f"engine={engine!r} needs {package}, which is not installed; run `{_INSTALL[engine]}`.")
    if engine == "onnx" and not folder.has(ONNX_FILE):
        raise EngineError(
            f"{folder.path} holds no {ONNX_FILE}; make it with `agssp-zoo export {folder.path}`, or take "
            "engine='pytorch'."
        )
    return engine


def _lacks(engine: str, folder: ModelFolder) -> str | None:
    """Why an engine does not serve; ``None`` when it does."""
    package, file = _SERVES[engine]
    if not folder.has(file):
        return f"there is no {file}"
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed, run `{_INSTALL[engine]}`"
    return None


def _has_device(engine: str, device: str) -> bool:
    """Whether "auto" may take an engine for a device; an explicit choice gets an error of the engine itself."""
    if engine != "onnx" or device == "cpu":
        return True
    from agssp_zoo.engines.onnx import provider_for

    try:
        provider_for(device)
    except EngineError:
        return False
    return True
