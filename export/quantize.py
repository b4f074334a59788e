"""From a float detector to 8 bits: calibrated on a user's images, chosen by measurement, kept only when it is as good.

Static quantisation in ONNX's QDQ form by onnxruntime.quantization: uint8 activations of one scale a tensor, int8
weights of one scale an output channel. The last convolutions, decoding and suppression stay in float32, and inputs,
outputs and metadata are those of the float file. :mod:`agssp_zoo.export.int8_graph` says what is done to the graph
around it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.engines.base import PRECISION_FILES
from agssp_zoo.errors import ExportError, InvalidArgumentError

from .calibration import METHODS, CalibrationImages, Progress, choose_ranges, collect
from .exporter import building, enter, need_packages, target_file
from .judges import Agreement, Judge, Judgement, Labels, open_detector
from .sources import FloatFile, float_file

if TYPE_CHECKING:
    import onnx

    from agssp_zoo.config import ModelConfig
    from agssp_zoo.folder import ModelFolder

    from .calibration import Ranges
    from .int8_graph import Plan
    from .rounding import Rounding

HELD_OUT = 4
"""Without labels, one of so many calibration images is kept to compare the two files on."""
MOST_COMPARED = 400
"""Of those. Of 100 images a detection more or less is a tenth of the points that may be lost by default, and more."""
_LEAST_WIDTH = 1e-6
"""Of a range: a tensor may be the same everywhere."""


@dataclass(frozen=True)
class Int8Settings:
    """How a detector is quantised.

    Attributes:
        max_drop: points that map50_95 (without labels: the agreement) may fall by, of 100.
        full_range: weights in all 8 bits instead of 7. CPUs without VNNI add two products of 8 bits in 16, which
            overflows with all 8; 7 bits give the same answers on every CPU.
        methods: ways to choose ranges, of :data:`agssp_zoo.export.calibration.METHODS`; all are tried, and the best of
            them once more with weights rounded to the nearest.
        images: numbers of calibration images; the methods are tried with the first, the best of them with the others.
        split: of the validation data.
    """

    max_drop: float = 0.5
    full_range: bool = False
    methods: tuple[str, ...] = METHODS
    images: tuple[int, ...] = (256, 64, 16)
    split: str = "val"

    def __post_init__(self) -> None:
        """Refuses values that make no sense, before a long run begins."""
        if not 0 <= self.max_drop <= 100:
            raise InvalidArgumentError(f"max_drop is {self.max_drop}; give points from 0 to 100.")
        if not self.methods or not set(self.methods) <= set(METHODS):
            raise InvalidArgumentError(f"methods are {self.methods}; choose of {', '.join(METHODS)}.")
        if not self.images or min(self.images) < 1:
            raise InvalidArgumentError(f"images are {self.images}; give whole numbers from 1.")


@dataclass(frozen=True)
class Trial:
    """One way to quantise, and what came of it.

    Attributes:
        method: how the ranges were chosen.
        images: the number of calibration images.
        fitted: whether weights are rounded by what the convolutions have seen (:mod:`agssp_zoo.export.rounding`), or
            each to the nearest whole number.
        judgement: how good the file is.
    """

    method: str
    images: int
    fitted: bool
    judgement: Judgement

    @property
    def rounding(self) -> str:
        """``"fitted"`` or ``"nearest"``."""
        return _rounding(self.fitted)

    def __str__(self) -> str:
        return f"{self.method} on {self.images} images{'' if self.fitted else ', weights rounded to the nearest'}"


@dataclass(frozen=True)
class Int8Result:
    """A quantised file.

    Attributes:
        path: the file.
        measure: ``"map50_95"``, or ``"agreement"`` where there were no labels.
        before: what the float file is worth.
        chosen: the trial that the file is of.
        trials: all of them, in order.
    """

    path: Path
    measure: str
    before: Judgement
    chosen: Trial
    trials: tuple[Trial, ...]

    @property
    def after(self) -> Judgement:
        """What the quantised file is worth."""
        return self.chosen.judgement

    @property
    def drop(self) -> float:
        """Points of the measure that quantising costs."""
        return self.before.points - self.after.points


def export_int8(
    model: ModelFolder | str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    validation: str | os.PathLike[str] | None = None,
    settings: Int8Settings = Int8Settings(),
    progress: Progress | None = None,
) -> Int8Result:
    """Quantises a detector, and puts the file in place when it is nearly as good as the float one.

    Args:
        model: a YOLOv8 detector: a model folder, a model's name, or an ONNX file of ``agssp-zoo export``.
        calibration: a folder of images from the line, a hundred or more; they go through the model's own letterbox.
        out: the file; ``None`` takes ``model.int8.onnx`` in the model's own folder; its card and checksums follow.
        validation: labelled images to measure map50_95 on; ``None`` compares the detections with the float file's on
            calibration images that are held out.
        settings: the limits, and what is tried.
        progress: shows how far the work is.

    Raises:
        DataError: no calibration images, or all alike; validation data that cannot be read.
        ExportError: no such detector, or the quantised one is too much worse; then nothing is written.
        InvalidArgumentError: no place for the file, or what it is made of lies there.
        MissingDependencyError: the ``export`` extra is not installed, or with labels the ``train`` extra.
        ModelNotFoundError, HubError, IntegrityError, CheckpointError, EngineError: the model cannot be loaded.
    """
    need_packages()
    show = no_progress if progress is None else progress
    source = float_file(model)
    target = target_file(out, source.folder, PRECISION_FILES["int8"], source.path)
    _check_kind(source)
    images = CalibrationImages(calibration, source.config.preprocess, max(settings.images) + MOST_COMPARED)
    with source.opened() as path, building(target) as temporary:
        judge: Judge
        if validation is None:
            number = min(max(len(images) // HELD_OUT, 1), MOST_COMPARED)
            judge, images = Agreement(images[:number], open_detector(path, source.config), show), images[number:]
        else:
            judge = Labels(validation, settings.split)
        result = _search(path, temporary, source.config, images, judge, settings, show)
        if result.drop > settings.max_drop:
            raise ExportError(_too_bad(source, result, settings, labelled=validation is not None))
    enter(target, source.config.task)
    return dataclasses.replace(result, path=target)


def _search(
    path: Path,
    temporary: Path,
    config: ModelConfig,
    images: Sequence[Any],
    judge: Judge,
    settings: Int8Settings,
    progress: Progress,
) -> Int8Result:
    """Tries every method with the most images, the best with weights rounded to the nearest, what is best with fewer.

    The best file lies in ``temporary``.
    """
    import onnx

    from .int8_graph import plan, prepare
    from .rounding import Inputs, fit_rounding

    before = judge.measured(open_detector(path, config))  # first, since it tells whether the data suit the model
    prepared = prepare(onnx.load(path))
    todo = plan(prepared)
    numbers = list(dict.fromkeys(min(number, len(images)) for number in settings.images))
    inputs = Inputs(prepared, todo.nodes)
    histograms = collect(prepared, todo, images[: max(numbers)], numbers, progress, inputs)
    steps = quantize(prepared, todo, choose_ranges(histograms[numbers[0]], todo, "minmax"), settings.full_range)
    rounding = fit_rounding(prepared, steps, inputs, progress)
    trials: list[Trial] = []
    tries = temporary.with_name(temporary.name + ".try")

    def rank(trial: Trial) -> tuple[Any, ...]:
        return before.points - trial.judgement.points <= settings.max_drop, *trial.judgement.rank

    def attempt(method: str, number: int, fitted: bool) -> None:
        ranges = choose_ranges(histograms[number], todo, method)
        quantized = quantize(prepared, todo, ranges, settings.full_range, rounding if fitted else None)
        what = {"method": method, "images": number, "full_range": settings.full_range, "rounding": _rounding(fitted)}
        _add_metadata(quantized, {"calibration": json.dumps(what)})
        onnx.save(quantized, tries)
        trial = Trial(method, number, fitted, judge.measured(open_detector(tries, config)))
        if not trials or rank(trial) > max(map(rank, trials)):
            tries.replace(temporary)
        trials.append(trial)

    try:
        for method in progress(settings.methods, len(settings.methods), "trying calibrations"):
            attempt(method, numbers[0], fitted=True)
        attempt(max(trials, key=rank).method, numbers[0], fitted=False)
        best = max(trials, key=rank)
        for number in progress(numbers[1:], len(numbers) - 1, "trying numbers of images"):
            attempt(best.method, number, best.fitted)
        onnx.checker.check_model(os.fspath(temporary))
    finally:
        tries.unlink(missing_ok=True)
    return Int8Result(temporary, judge.measure, before, max(trials, key=rank), tuple(trials))


def quantize(
    prepared: onnx.ModelProto, plan: Plan, ranges: Ranges, full_range: bool, rounding: Rounding | None = None
) -> onnx.ModelProto:
    """Quantises a prepared float graph.

    Args:
        prepared: of :func:`agssp_zoo.export.int8_graph.prepare`.
        plan: what of it.
        ranges: name of an activation -> its lowest and highest value.
        full_range: see :class:`Int8Settings`.
        rounding: whole numbers for the weights; ``None`` takes the nearest.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

    from .int8_graph import finish
    from .rounding import set_weights, shift_biases

    model = onnx.ModelProto()
    model.CopyFrom(prepared if rounding is None else shift_biases(prepared, rounding))
    known = {entry.name for entry in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in plan.tensors
        if name not in known
    )
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(max(high, low + _LEAST_WIDTH)))
        for name, (low, high) in ranges.items()
    }
    kinds = {node.op_type for node in model.graph.node if node.name in set(plan.nodes)}
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=not full_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=list(plan.nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(kinds),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
    finished: onnx.ModelProto = quantizer.model.model
    if rounding is not None:
        set_weights(finished, rounding)
    finish(finished)
    _add_metadata(finished, {"precision": "int8"})
    finished.producer_name, finished.producer_version = prepared.producer_name, prepared.producer_version
    return finished


def _check_kind(source: FloatFile) -> None:
    """Only detectors that decide after their last convolutions can be split into 8 bits and float there."""
    config = source.config
    if config.task != "detector" or config.preprocess.pad_after_normalize:
        raise ExportError(
            f"{config.name} is a {config.architecture}; only YOLOv8 detectors are quantised to 8 bits. Export it as it "
            "is, or as float16 (--fp16)."
        )


def _too_bad(source: FloatFile, result: Int8Result, settings: Int8Settings, *, labelled: bool) -> str:
    what = "map50_95" if labelled else "agreement with the float model"
    more = "" if labelled else ", labelled images, which are the sharper test (--validation)"
    more += "" if settings.full_range else ", or 8-bit weights for CPUs with VNNI (--full-range)"
    return (
        f"{source.config.name} in 8 bits: {what} falls from {result.before.points:.2f} to {result.after.points:.2f}, "
        f"by {result.drop:.2f} points, and {settings.max_drop:g} are allowed; the best of {len(result.trials)} trials "
        f"was {result.chosen}. Nothing was written, the float file stays. Give more calibration images or others, a "
        f"larger --max-drop{more}."
    )


def _rounding(fitted: bool) -> str:
    return "fitted" if fitted else "nearest"


def _add_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    import onnx

    there = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, there | entries)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime.quantization speaks through the root logger of things that are seen to."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def no_progress(items: Iterable[Any], total: int, text: str) -> Iterator[Any]:
    """Shows nothing."""
    del total, text
    yield from items
