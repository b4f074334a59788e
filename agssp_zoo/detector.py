"""Images -> engine -> detections."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from agssp_zoo.config import ModelConfig, Size
from agssp_zoo.detections import Detections
from agssp_zoo.engines.base import Engine, Provider, load_engine, load_file
from agssp_zoo.errors import EngineError, InvalidArgumentError
from agssp_zoo.file_names import user_path
from agssp_zoo.geometry import Letterbox
from agssp_zoo.images import ChannelOrder, check_channel_order
from agssp_zoo.pipeline import OnError, Pipeline, Settings
from agssp_zoo.sources import with_an_end
from agssp_zoo.tiling import OVERLAP, Tiling

if TYPE_CHECKING:
    from agssp_zoo.models import DetectorModule


def load_detector(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    engine: str = "auto",
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
    precision: str | None = None,
    **hub: Any,
) -> Detector:
    """Finds a detector, verifies its files and loads it.

    Args:
        name_or_path: a registered name (``agssp-zoo list``), a model folder, an ``.onnx`` file of ``agssp-zoo
            export``, or ``hf://owner/repo[@revision]``; ``None`` takes the registry's default detector.
        engine: ``"onnx"``, ``"pytorch"``, ``"openvino"``, or ``"auto"``: the first of the first two that the model's
            files and the installed packages serve.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, with ONNX Runtime also ``"tensorrt"``, ``"dml"`` ...
        providers: ONNX Runtime's execution providers, instead of a device, which is left at ``"cpu"`` then.
        precision: ``"int8"`` or ``"float16"`` take the model's file ``model.int8.onnx`` or ``model.fp16.onnx``, which
            ``agssp-zoo export`` makes; with OpenVINO ``"bfloat16"``, ``"float16"`` and ``"float32"`` say what it
            computes in. ``None``: the float32 file; OpenVINO computes it in bfloat16 where that is quicker.
        **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``, as in huggingface_hub.

    Raises:
        ModelNotFoundError: no such model (close names are offered); WeightsNotPublishedError where its weights are
            published nowhere yet.
        HubError, IntegrityError, ConfigError, CheckpointError: its files cannot be had or are wrong.
        EngineError: no engine serves, or the device, provider or precision is not there.
        MissingDependencyError: PyTorch or OpenVINO is asked for and not installed.
        InvalidArgumentError: a keyword that makes no sense.
    """
    check_loading("" if name_or_path is None else name_or_path, device, hub)
    if name_or_path is not None and os.fspath(name_or_path).endswith(".onnx"):
        if hub.get("revision") is not None:
            raise InvalidArgumentError(f"{name_or_path} is a file on disk, which has no revisions; leave out revision.")
        return Detector(_load_file(user_path(name_or_path), engine, device, providers, precision))
    from agssp_zoo import hub as hub_module
    from agssp_zoo.registry import default_detector

    folder = hub_module.resolve(default_detector() if name_or_path is None else name_or_path, **hub)
    if folder.config.task != "detector":
        raise InvalidArgumentError(f"{folder.config.name} is a {folder.config.task}; load it with load_backbone.")
    return Detector(load_engine(folder, engine, device, providers, precision))


def check_loading(name_or_path: object, device: object, hub: dict[str, Any]) -> None:
    """Refuses arguments of the wrong type, and keywords that are none of the Hub's, with InvalidArgumentError."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InvalidArgumentError(f"name_or_path is {name_or_path!r}; give a model's name, a path or an address.")
    if not isinstance(device, str):
        raise InvalidArgumentError(f"device is {device!r}; give a name, such as 'cpu' or 'cuda:1'.")
    known = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    if unknown := [name for name in hub if name not in known]:
        raise InvalidArgumentError(f"unknown keyword {unknown[0]!r}; those of the Hub are {', '.join(known)}.")


def _load_file(
    path: Path, engine: str, device: str, providers: Sequence[Provider] | None, precision: str | None
) -> Engine:
    """A single ONNX file, which holds its config."""
    if engine not in ("auto", "onnx", "openvino"):
        raise InvalidArgumentError(f"{path} is an ONNX file; take engine='onnx' or 'openvino', or give a model folder.")
    if precision is not None and engine != "openvino":
        raise InvalidArgumentError(f"{path} has its precision in it; precision={precision!r} is for model folders.")
    if not path.is_file():
        raise EngineError(f"There is no file {path}; make one with `agssp-zoo export`.")
    return load_file(path, "onnx" if engine == "auto" else engine, device, providers, precision)


class Detector:
    """A detector, ready to run; made by :func:`load_detector`.

    Attributes:
        engine: what runs the network.
        config: the model's configuration.
        names: names of the classes, in label order.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        return f"Detector({self.config.name!r}, engine={self.engine.name!r}, classes={len(self.names)})"

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.engine.config

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.config.class_names

    @property
    def model(self) -> DetectorModule:
        """The trainable torch module behind the detector; what is trained shows in the next prediction.

        Raises:
            EngineError: the engine is not ``"pytorch"``.
        """
        module = getattr(self.engine, "module", None)
        if module is None:
            raise EngineError(f"engine={self.engine.name!r} holds no torch module; load with engine='pytorch'.")
        return cast("DetectorModule", module)

    def predict(
        self,
        source: Any,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: Size | None = None,
        batch: int = 1,
        tile: Size | None = None,
        overlap: float = 0.2,
        tile_whole: bool = False,
        channel_order: ChannelOrder = "rgb",
        on_error: OnError | None = None,
    ) -> list[Detections]:
        """Detects defects in images.

        Args:
            source: path, folder, glob pattern, URL, bytes, open file, PIL image, numpy array (H, W) or (H, W, 3) of
                uint8, uint16 or float in 0-1, a video file, or a list of these. How images become 8-bit RGB stands in
                :mod:`agssp_zoo.images`, what a folder or pattern stands for in :mod:`agssp_zoo.sources`.
            conf: drop detections with a score of this or below, 0-1; ``None`` means the model's own, as for ``iou``,
                ``max_det`` and ``size``.
            iou: of boxes of one class that overlap by more than this IoU, keep the best.
            max_det: at most this many detections an image.
            size: an int bounds the longer side and pads only to the stride; (height, width) is a fixed canvas.
            batch: images run together, where their canvases are of one size.
            tile: cut images into tiles of this side, or (height, width), in their own pixels, for small defects in
                large images.
            overlap: least share of a tile that the next one covers again, 0-0.9; with ``tile`` only. What a tile's
                border cuts is joined with its other half; see :mod:`agssp_zoo.seams`.
            tile_whole: look at the whole image as well, shrunk to the network's size, for defects larger than the
                overlap.
            channel_order: of arrays; ``"bgr"`` for what OpenCV has read.
            on_error: is called with the path and the error of an image that cannot be read, and the others go on.
                ``None``: an image that was named itself raises its error; bad files in a folder or pattern are left
                out, and one warning at the end lists them.

        Returns:
            One :class:`Detections` an image, in order; every page of a TIFF and every frame of a video is an image.

        Raises:
            InvalidArgumentError: an argument that makes no sense.
            SourceError: nothing is found at a path; its kind ImageError where what is there is no image.
            EngineError: the network cannot be run.
        """
        return list(
            self.stream(
                with_an_end(source),
                conf=conf,
                iou=iou,
                max_det=max_det,
                size=size,
                batch=batch,
                tile=tile,
                overlap=overlap,
                tile_whole=tile_whole,
                channel_order=channel_order,
                on_error=on_error,
            )
        )

    def stream(
        self,
        source: Any,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: Size | None = None,
        batch: int = 1,
        tile: Size | None = None,
        overlap: float = 0.2,
        tile_whole: bool = False,
        channel_order: ChannelOrder = "rgb",
        on_error: OnError | None = None,
        keep_images: bool = False,
    ) -> Iterator[Detections]:
        """As :meth:`predict`, with the same arguments, one answer after the other, in constant memory.

        ``source`` may also be a generator, a camera's number, or the address of a network stream (``rtsp://...``);
        videos and cameras need the extra ``video``.
        While the network works on an image, a thread reads the next one, unless ``source`` is a generator.

        With ``keep_images`` an answer holds its image's pixels as long as it lives, so that ``plot`` and ``save`` do
        not read the file again. Together the answers hold at most 256 MiB; the images beyond are read again.
        """
        check_channel_order(channel_order)
        settings = replace(self._check(conf, iou, max_det, size, batch), keep_images=bool(keep_images))
        tiling = Tiling(1 if tile is None else tile, overlap, bool(tile_whole))  # refuses a wrong overlap in any case
        if tile is not None:
            settings = replace(settings, tiling=_check_tiling(tiling, settings.letterbox))
        elif tile_whole:
            raise InvalidArgumentError("tile_whole looks at the whole image besides its tiles; give tile, too.")
        elif overlap != OVERLAP:
            raise InvalidArgumentError("overlap is a share of a tile; give tile, too, or leave overlap out.")
        return Pipeline(self.engine, settings).run(source, channel_order, on_error)

    def _check(
        self, conf: float | None, iou: float | None, max_det: int | None, size: Size | None, batch: int
    ) -> Settings:
        """Checks the arguments of a call before any image is read."""
        for name, value in (("conf", conf), ("iou", iou)):
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise InvalidArgumentError(f"{name}={value!r}: give a number in 0-1.")
        for name, count in (("max_det", max_det), ("batch", batch)):
            if name == "max_det" and count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
                raise InvalidArgumentError(f"{name}={count!r}: give a whole number of at least 1.")
        if max_det is None and self.config.postprocess is not None:
            max_det = self.config.postprocess.max_det
        most = self.engine.max_det
        if most is not None and max_det is not None and max_det > most:
            raise InvalidArgumentError(
                f"max_det={max_det}: this model was exported for at most {most} detections an image; ask for fewer, or "
                "set postprocess.max_det in its config.json and export it again."
            )
        return Settings(Letterbox(self.config.preprocess, size), conf, iou, max_det, int(batch), None)


def _check_tiling(tiling: Tiling, letterbox: Letterbox) -> Tiling:
    """Refuses tiles that the network cannot see, or that would be mostly padding on its canvas."""
    height, width = tiling.sides
    stride, size = letterbox.preprocess.stride, letterbox.size
    if min(height, width) < stride:
        raise InvalidArgumentError(
            f"tile={tiling.tile!r}: smaller than the network's stride of {stride} pixels; give at least that, better "
            "its input size."
        )
    if isinstance(size, tuple) and letterbox.preprocess.fit == "letterbox":
        used = letterbox.place((height, width)).resized
        if any(canvas - side >= stride for side, canvas in zip(used, size, strict=True)):
            raise InvalidArgumentError(
                f"tile={tiling.tile!r}: leaves much of the fixed canvas, {size[1]} wide and {size[0]} high, empty; "
                f"give a tile of its shape, e.g. tile={size}, or size={max(size)} for a canvas that fits the tile."
            )
    return tiling


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
