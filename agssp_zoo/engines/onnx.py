"""ONNX Runtime, from the file of ``agssp-zoo export``: the only engine that the base installation needs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agssp_zoo.config import ModelConfig
from agssp_zoo.engines.base import Provider, RawDetections, score_thresholds
from agssp_zoo.engines.contract import check_same_model, read_metadata, thread_count
from agssp_zoo.engines.providers import (
    check_in_use,
    check_installation,
    check_providers,
    full_names,
    load_libraries,
    providers_for,
)
from agssp_zoo.errors import EngineError, InvalidArgumentError

_ERROR_SEVERITY = 3
_SPIN_MICROSECONDS = "50"


class OnnxModel:
    """An ONNX file of ours in a session of ONNX Runtime.

    Attributes:
        path: the file.
        config: the model's configuration.
        outputs: ``"detections"``, ``"raw"`` or ``"features"``.
        session: ONNX Runtime's session.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        providers: Sequence[Provider] | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        """Opens the file.

        Args:
            path: the ONNX file.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"`` ...
            providers: ONNX Runtime's names, in short (``"cuda"``) or in full, or (name, options), instead of a device.
            config: the config to go by, e.g. of the file's folder; ``None`` takes the one in the file.

        Raises:
            EngineError: it is no ONNX file, none of ours, of a newer contract or of another model than the config
                says, or a provider is not there.
            InvalidArgumentError: ``providers`` is no list of providers.
        """
        self.path = Path(path)
        if isinstance(providers, str):
            raise InvalidArgumentError(f"providers={providers!r}: give a list, [{providers!r}].")
        check_installation()
        wanted = full_names(providers) if providers else providers_for(device)
        names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
        check_providers(names)
        load_libraries(names)
        self.session = _open_session(self.path, wanted)
        check_in_use(names, self.session.get_providers())
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.outputs, own = read_metadata(self.path, metadata)
        if config is not None:
            check_same_model(self.path, own, config)
        self.config = own if config is None else config
        self.output_names = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]], names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Runs the network; ``names`` are the outputs wanted, all by default.

        Raises:
            EngineError: ONNX Runtime cannot.
        """
        try:
            answer: list[NDArray[Any]] = self.session.run(list(names or self.output_names), dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            shape = feeds["images"].shape
            raise EngineError(
                f"{self.path} cannot be run on images of shape {shape}: {_first_line(error)} "
                "Should memory be short, take a smaller batch or size."
            ) from error
        return answer


class OnnxEngine:
    """A detector in ONNX Runtime; see :class:`agssp_zoo.engines.base.Engine`."""

    name = "onnx"

    def __init__(self, model: OnnxModel) -> None:
        if model.outputs != "detections":
            made = "with --raw" if model.outputs == "raw" else "from a backbone"
            raise EngineError(f"{model.path} was exported {made}, it answers no detections; export the detector.")
        self.model = model
        self.config = model.config
        self.inputs = {entry.name for entry in model.session.get_overridable_initializers()}
        self.inputs |= {entry.name for entry in model.session.get_inputs()}
        outputs = {entry.name: entry.shape for entry in model.session.get_outputs()}
        if "images" not in self.inputs or not {"boxes", "scores", "labels", "count"} <= outputs.keys():
            raise EngineError(f"{model.path} has not the inputs and outputs of a detector; export it again.")
        most = outputs["scores"][1]
        self.max_det: int | None = most if isinstance(most, int) else None
        if self.config.postprocess and self.config.postprocess.class_conf and not takes_class_thresholds(model.session):
            raise EngineError(
                f"{model.path} takes one score threshold for all classes, but the config has some of their own "
                "(postprocess.class_conf); export it again with `agssp-zoo export`."
            )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        providers: Sequence[Provider] | None = None,
        config: ModelConfig | None = None,
    ) -> OnnxEngine:
        """Opens a detector's file; arguments and errors as for :class:`OnnxModel`."""
        return cls(OnnxModel(path, device=device, providers=providers, config=config))

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> RawDetections:
        """See :meth:`agssp_zoo.engines.base.Engine.run`; ``max_det`` is fixed in the file, so more are answered."""
        settings = self.config.postprocess
        # The folder's config may say otherwise than the file, whose defaults are those of its export.
        feeds: dict[str, NDArray[Any]] = {
            "images": images,
            "conf_threshold": np.array(score_thresholds(self.config, conf), np.float32),
        }
        overlap = settings.iou if iou is None and settings else iou
        if overlap is not None:
            feeds["iou_threshold"] = np.array([overlap], np.float32)
        if "sizes" in self.inputs and sizes is not None:
            feeds["sizes"] = sizes
        boxes, scores, labels, count = self.model.run(feeds, ("boxes", "scores", "labels", "count"))
        return RawDetections(boxes, scores, labels, count)


def takes_class_thresholds(session: Any) -> bool:
    """Whether a detector's ``conf_threshold`` may hold a number for every class; older exports have one for all."""
    shapes = [entry.shape for entry in session.get_overridable_initializers() if entry.name == "conf_threshold"]
    return shapes not in ([], [[1]])


def session_options() -> Any:
    """How our sessions are set up: for quick starts and changing input sizes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR_SEVERITY
    # A memory pattern is kept for every input size ever seen, and doubles the first one's memory; without patterns
    # the speed is the same.
    options.enable_mem_pattern = False
    options.intra_op_num_threads = thread_count()
    # Waiting threads spin, by default for so long that they take the cores from whoever decodes the next image. Older
    # versions do not know the entry and pass over it.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    return options


def _open_session(path: Path, providers: Sequence[Provider]) -> Any:
    """A session on a file."""
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), session_options(), providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise EngineError(
            f"{path} cannot be opened as ONNX: {_first_line(error)} It is damaged, no ONNX file, or too new for "
            f"ONNX Runtime {onnxruntime.__version__}."
        ) from error
    _give_back_memory()
    return session


def _give_back_memory() -> None:
    """Returns what optimising the graph has left in glibc's heap: about the size of the file."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _first_line(error: Exception) -> str:
    """ONNX Runtime's messages without their later lines, which are about its source code."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if text.endswith(".") else text + "."
