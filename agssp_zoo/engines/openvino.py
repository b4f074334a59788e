"""OpenVINO, for Intel's hardware and for bfloat16 on any CPU that is quick in it; reads the same file as ONNX Runtime.

The extra ``openvino`` brings it. A file of ``agssp-zoo export`` is compiled when it is opened; for the first few sizes
of input it is compiled again for exactly that size, which takes a fraction of a second and makes every run quicker.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.config import ModelConfig
from agssp_zoo.engines.base import RawDetections, score_thresholds
from agssp_zoo.engines.contract import check_same_model, read_metadata, thread_count
from agssp_zoo.errors import EngineError, MissingDependencyError
from agssp_zoo.onnx_file import without_initializers

PRECISIONS = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16"), "float16": ("FP16", "f16")}
"""Precision -> what a device says it is capable of, and OpenVINO's name of it."""
STATIC_SIZES = 4
"""So many sizes of input get a network compiled for them; further ones run in one that takes any size."""
_OPTIONAL = ("conf_threshold", "iou_threshold", "sizes")
_OUTPUTS = ("boxes", "scores", "labels", "count")
_ALL_VALID = 2**31 - 1


class OpenVinoEngine:
    """A detector in OpenVINO; see :class:`agssp_zoo.engines.base.Engine`.

    Attributes:
        path: the ONNX file.
        precision: what the network computes in: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    name = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        """Opens and compiles a file.

        Args:
            path: a detector's ONNX file of ``agssp-zoo export``.
            device: ``"cpu"``, ``"gpu"``, ``"gpu.1"``, ``"npu"``, as OpenVINO has them.
            precision: of the arithmetic; ``None`` takes bfloat16 (GPU: float16) where the device has it and, on a CPU,
                is quicker in it than in float32, which is tried out (0.2 s, once a process); else float32. For what a
                quantised file leaves in floats it takes float32.
            config: the config to go by, e.g. of the file's folder; ``None`` takes the one in the file.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
            EngineError: the file is none of ours or cannot be compiled, or the device or precision is not there.
        """
        self.path = Path(path)
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self._device = _find_device(self._core, device)
        try:
            # OpenVINO takes initialisers that are inputs as well for constants; without them they are inputs only.
            content = b"".join(without_initializers(self.path, _OPTIONAL))
        except OSError as error:
            raise EngineError(f"{self.path} cannot be read ({error.strerror}).") from error
        try:
            self._model = self._core.read_model(content)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(
                f"{self.path} cannot be opened as ONNX: {_first_line(error)} It is damaged, no ONNX file, or too new "
                f"for OpenVINO {self._openvino.__version__}."
            ) from error
        stored: dict[str, Any] = {}
        if self._model.has_rt_info("framework"):
            stored = _plain(self._model.get_rt_info("framework"))
        metadata = {key: str(_plain(value)) for key, value in stored.items()}
        outputs, own = read_metadata(self.path, metadata)
        if config is not None:
            check_same_model(self.path, own, config)
        self.config = own if config is None else config
        self.inputs = {entry.get_any_name() for entry in self._model.inputs}
        shapes = {entry.get_any_name(): entry.partial_shape for entry in self._model.outputs}
        if outputs != "detections" or "images" not in self.inputs or not set(_OUTPUTS) <= shapes.keys():
            raise EngineError(f"{self.path} has not the inputs and outputs of a detector; export the detector again.")
        most = shapes["scores"][1]
        self.max_det: int | None = most.get_length() if most.is_static else None
        if precision is None and metadata.get("precision") == "int8":
            precision = "float32"  # what is not in 8 bits; the file's figures were measured so
        self.precision = _find_precision(self._core, self._device, precision)
        self._lock = threading.Lock()
        self._any_size = self._compile(self._model)
        self._of_size: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> RawDetections:
        """See :meth:`agssp_zoo.engines.base.Engine.run`; ``max_det`` is fixed in the file, so more are answered.

        Threads that share the engine wait for each other: one run has all of OpenVINO's threads anyhow.
        """
        settings = self.config.postprocess
        feeds: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(images)}
        for name, values in (
            ("conf_threshold", score_thresholds(self.config, conf)),
            ("iou_threshold", (settings.iou if iou is None and settings else iou,)),
        ):
            if name in self.inputs:
                feeds[name] = np.array(values, np.float32)
        if "sizes" in self.inputs:
            feeds["sizes"] = np.full((1, 2), _ALL_VALID, np.int64) if sizes is None else sizes
        try:
            with self._lock:  # a request holds the inputs and outputs of one run; what it answers is copied
                found = self._request(images.shape).infer(feeds, share_inputs=True, share_outputs=False)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(
                f"{self.path} cannot be run on images of shape {images.shape}: {_first_line(error)} "
                "Should memory be short, take a smaller batch or size."
            ) from error
        boxes, scores, labels, count = (found[name] for name in _OUTPUTS)
        return RawDetections(boxes, scores, labels, count)

    def _request(self, shape: tuple[int, ...]) -> Any:
        """What runs inputs of a shape."""
        if shape not in self._of_size and len(self._of_size) < STATIC_SIZES and shape[3:] == (3,):
            model = self._model.clone()
            model.reshape({"images": list(shape)})
            self._of_size[shape] = self._compile(model)
        return self._of_size.get(shape, self._any_size)

    def _compile(self, model: Any) -> Any:
        """A request of a compiled network."""
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[self.precision][1]
        if self._device == "CPU":
            # Pinned threads of several processes sit on the same cores.
            settings |= {"INFERENCE_NUM_THREADS": thread_count(), "ENABLE_CPU_PINNING": False}
        try:
            return self._core.compile_model(model, self._device, settings).create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(f"{self.path} cannot be compiled for {self._device}: {_first_line(error)}") from error


def _import_openvino() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "engine='openvino' needs OpenVINO, which is not installed; run `pip install 'agssp-zoo[openvino]'`."
        ) from error
    return openvino


def _find_device(core: Any, device: str) -> str:
    """OpenVINO's name of a device.

    Raises:
        EngineError: there is no such device here; the message lists those that are.
    """
    there = [str(name) for name in core.available_devices]
    name = device.upper().replace(":", ".")
    if name not in there and f"{name}.0" not in there:
        raise EngineError(f"device={device!r} is not there; OpenVINO has {', '.join(there).lower()} here.")
    return name


def _find_precision(core: Any, device: str, precision: str | None) -> str:
    """The precision to compute in.

    Raises:
        EngineError: the device does not compute in it.
    """
    able = set(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    if precision is None:
        half = next((name for name in ("bfloat16", "float16") if PRECISIONS[name][0] in able), "float32")
        return half if half == "float32" or device != "CPU" or _gain(half) > 1 else "float32"
    if precision not in PRECISIONS or (precision != "float32" and PRECISIONS[precision][0] not in able):
        has = ", ".join(name for name, (capability, _) in PRECISIONS.items() if capability in able)
        raise EngineError(f"precision={precision!r}: OpenVINO computes in {has} on this {device}.")
    return precision


@functools.cache
def _gain(precision: str) -> float:
    """How many times as quick as in float32 the CPU convolves in a precision: on some its instructions are slow."""
    import openvino
    from openvino import opset13

    generator = np.random.default_rng(0)
    given = opset13.parameter([1, 64, 40, 40], np.float32)
    last = given
    for _ in range(3):
        weight = opset13.constant(generator.standard_normal((64, 64, 3, 3), np.float32) / 24)
        last = opset13.relu(opset13.convolution(last, weight, [1, 1], [1, 1], [1, 1], [1, 1]))
    core, model = openvino.Core(), openvino.Model([last], [given])
    settings = {"INFERENCE_NUM_THREADS": thread_count(), "ENABLE_CPU_PINNING": False}
    image = generator.standard_normal((1, 64, 40, 40), np.float32)
    best = dict.fromkeys((precision, "float32"), np.inf)
    requests = {
        name: core.compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": PRECISIONS[name][1]})
        for name in best
    }
    for _ in range(6):
        for name, request in requests.items():
            begun = time.perf_counter()
            request([image])
            best[name] = min(best[name], time.perf_counter() - begun)
    return best["float32"] / best[precision]


def _plain(value: Any) -> Any:
    """What OpenVINO wraps as being of any type."""
    return getattr(value, "value", value)


def _first_line(error: Exception) -> str:
    """OpenVINO's messages name the place in its source first; what went wrong comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[-1][:300]
    return text if text.endswith(".") else text + "."
