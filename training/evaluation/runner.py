"""Runs a detector over a split, scores it and writes metrics.json and the report."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError
from agssp_zoo.file_names import user_path

from .about import About, machine, versions
from .coco import require_library
from .inputs import GroundTruth, GroundTruthLike, Prediction, PredictionLike, class_mapping
from .metrics import Metrics, evaluate, without_nan
from .report import write_report
from .settings import ValidationSettings
from .suppression import STRICTER, Stricter, suppressed, try_stricter

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig, Size

    from ..data import Dataset, Record

DEFAULTS = ValidationSettings()
SINGLE_CLASS = "defect"
"""What the one class is called when classes are not told apart."""

BY_BOXES = ("voc", "labelme", "masks")
"""Formats that know their classes from the boxes; there a class may be missing because no image shows it."""


class DetectorLike(Protocol):
    """What evaluation needs of a detector."""

    @property
    def config(self) -> ModelConfig: ...  # noqa: D102

    def predict(  # noqa: D102
        self,
        source: Any,
        *,
        conf: float | None,
        iou: float | None,
        size: Size | None,
        batch: int,
        tile: Size | None = None,
        overlap: float = 0.2,
        tile_whole: bool = False,
    ) -> Sequence[PredictionLike]: ...


@dataclass(frozen=True)
class Validation:
    """A finished evaluation.

    Attributes:
        metrics: the figures.
        about: what it was made of.
        records: the images evaluated.
        ground_truth: their labels as scored.
        predictions: the detections as scored, in the data's class numbers.
        stricter: what a stricter suppression would score; ``None`` where the model's is as strict, or has none.
    """

    metrics: Metrics
    about: About
    records: Sequence[Record] = field(repr=False)
    ground_truth: Sequence[GroundTruthLike] = field(repr=False)
    predictions: Sequence[PredictionLike] = field(repr=False)
    stricter: Stricter | None = None

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json holds: the figures, then what they were made of."""
        stricter = {"stricter_nms": asdict(self.stricter)} if self.stricter else {}
        result: dict[str, Any] = without_nan({**self.metrics.to_dict(), **stricter, **self.about.to_dict()})
        return result

    def save(self, out: str | os.PathLike[str], *, gallery: int = 6) -> tuple[Path, Path]:
        """Writes metrics.json and report.html into a folder.

        Args:
            out: the folder; made where it is missing.
            gallery: how many best and how many worst images the report shows.

        Returns:
            The paths of metrics.json and report.html.

        Raises:
            DataError: the folder cannot be written.
        """
        try:
            return self._save(Path(out), gallery)
        except AgsspZooError:
            raise  # an image that cannot be read is an OSError, too, but says so itself
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror}); give another folder.") from None

    def _save(self, folder: Path, gallery: int) -> tuple[Path, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        figures = folder / "metrics.json"
        beside = figures.with_name("metrics.json.tmp")
        report = write_report(
            folder / "report.html",
            self.metrics,
            about=self.about,
            ground_truth=self.ground_truth,
            predictions=self.predictions,
            load_image=lambda index: self.records[index].load_image(),
            image_names=[record.key for record in self.records],
            gallery=gallery,
        )
        try:
            beside.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            beside.replace(figures)
        finally:
            beside.unlink(missing_ok=True)
        return figures, report


def validate(
    model: str | os.PathLike[str] | DetectorLike,
    data: str | os.PathLike[str] | Dataset,
    *,
    split: str = "val",
    format: str = "auto",
    val_fraction: float = 0.0,
    seed: int = 0,
    settings: ValidationSettings = DEFAULTS,
    command: str | None = None,
) -> Validation:
    """Runs a detector over one split of a data set and measures it.

    Args:
        model: a model's name or folder, as ``load_detector`` takes it, or a detector.
        data: a data set or where it lies, as ``read_dataset`` takes it.
        split: which part.
        format: the data's format.
        val_fraction: where the data have no split ``"val"``, which ``split`` asks for: measure on this share of the
            images, drawn by the seed; with those of a fine-tuning the images that it validated on. 0 draws none.
        seed: of that choice.
        settings: how the detector is run and scored.
        command: what the report states as its command; ``None``: that of this process.

    Raises:
        DataError: the data cannot be read, has no such split or no labels, or its classes are not the model's.
        InvalidArgumentError: a setting is wrong, or ``val_fraction`` is given for another split.
        MissingDependencyError: faster-coco-eval is not installed.
        AgsspZooError: the model cannot be loaded or run, more images than tolerated cannot be read.
    """
    from ..data import read_dataset
    from ..data.text import readable

    if val_fraction and split != "val":
        raise InvalidArgumentError(f"val_fraction makes a split val, but split is {split!r}; leave one of them out.")
    require_library()
    whole = read_dataset(data, format=format) if isinstance(data, (str, os.PathLike)) else data
    if val_fraction:
        whole = whole.with_val(val_fraction, seed)
    part = _checked(whole, split, settings.tolerance)
    detector, identity = _load(model, settings)
    names = tuple(whole.class_names)
    if whole.format in BY_BOXES and set(names) < set(detector.config.class_names):
        names += tuple(name for name in detector.config.class_names if name not in names)
    mapping = None if settings.single_class else class_mapping(detector.config.class_names, names)
    answers, ms_per_image, stages = predict_records(detector, part.records, settings)
    records = [record for record, answer in zip(part.records, answers, strict=True) if answer is not None]
    predictions = [answer for answer in answers if answer is not None]
    ground_truth: Sequence[GroundTruthLike] = records
    if settings.single_class:
        names = (SINGLE_CLASS,)
        ground_truth = [
            GroundTruth(r.boxes, np.zeros_like(r.labels), crowd=r.crowd, difficult=r.difficult) for r in records
        ]
        iou = _suppression(detector, settings)
        predictions = [suppressed(p, np.zeros_like(p.labels), iou) for p in predictions]
    elif mapping is not None:
        predictions = [Prediction(p.boxes, p.scores, mapping[p.labels]) for p in predictions]
    metrics = evaluate(
        ground_truth,
        predictions,
        names,
        max_det=settings.max_det,
        ignore_difficult=settings.ignore_difficult,
        miss_rate=settings.miss_rate,
        conf=settings.conf,
    )
    stricter = None
    if STRICTER < _suppression(detector, settings) < 1.0:  # at 1 the model needs none
        stricter = try_stricter(
            ground_truth,
            predictions,
            len(names),
            max_det=settings.max_det,
            ignore_difficult=settings.ignore_difficult,
        )
    about = replace(
        identity,
        command=shlex.join(["agssp-zoo", *sys.argv[1:]]) if command is None else command,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        data=readable(whole.path) or "(in memory)",
        data_fingerprint=part.fingerprint(),
        split=split,
        unreadable=[r.key for r, answer in zip(part.records, answers, strict=True) if answer is None],
        settings=_chosen(detector, settings),
        ms_per_image=ms_per_image,
        ms_per_stage=stages,
        machine=machine(),
        versions=versions(),
    )
    return Validation(metrics, about, records, ground_truth, predictions, stricter)


def predict_records(
    detector: DetectorLike, records: Sequence[Record], settings: ValidationSettings
) -> tuple[list[Prediction | None], float, dict[str, float]]:
    """Detections of all images, in their order.

    Images of one shape run together, so that a batch is not padded. The time is wall-clock, from arrays to
    detections; the first batch is left out of it, as engines allocate and compile there.

    Returns:
        The predictions with the detector's class numbers (``None`` where the image cannot be read), milliseconds an
        image, milliseconds of each stage an image.

    Raises:
        DataError: more images than tolerated, or all, cannot be read.
        AgsspZooError: an image cannot be read, where none may be.
    """
    from ..data.progress import progress

    allowed = settings.tolerance * len(records)
    unreadable: list[str] = []
    order = sorted(range(len(records)), key=lambda i: (records[i].height, records[i].width, i))
    together = settings.batch if settings.tile is None else 1  # tiles of one image fill a batch, and its memory
    batches = [order[start : start + together] for start in range(0, len(order), together)]
    predictions: list[Prediction | None] = [None] * len(records)
    seconds, timed = 0.0, 0
    stages: dict[str, float] = {}
    for number, batch in enumerate(progress(batches, len(batches), "evaluating (batches)")):
        images, read = [], []
        for index in batch:
            try:
                images.append(records[index].load_image())
                read.append(index)
            except (AgsspZooError, OSError) as error:
                unreadable.append(str(error))
                if not settings.tolerance:
                    raise
                if len(unreadable) > allowed or len(unreadable) == len(records):
                    raise DataError(_too_many(unreadable, len(records), settings.tolerance)) from None
        if not images:
            continue
        started = time.perf_counter()
        found = detector.predict(
            images, conf=settings.conf, iou=settings.iou, size=settings.size, batch=settings.batch, **settings.tiling
        )
        elapsed = time.perf_counter() - started
        if number or len(batches) == 1:
            seconds, timed = seconds + elapsed, timed + len(read)
            for answer in found:
                for stage, ms in getattr(answer, "timing", {}).items():
                    stages[stage] = stages.get(stage, 0.0) + float(ms)
        for index, answer in zip(read, found, strict=True):
            predictions[index] = Prediction(answer.boxes, answer.scores, answer.labels)
    per_stage = {stage: total / timed for stage, total in stages.items() if stage != "read"}
    return predictions, 1000.0 * seconds / max(timed, 1), per_stage


def _too_many(unreadable: Sequence[str], images: int, tolerance: float) -> str:
    listed = "; ".join(error.rstrip(".") for error in unreadable[:5])
    why = "which leaves none" if len(unreadable) == images else f"more than the tolerance of {tolerance:.2%}"
    return (
        f"{len(unreadable)} of {images} images cannot be read, {why}: {listed}. Repair or remove them, or raise the "
        "tolerance."
    )


def _checked(whole: Dataset, split: str, tolerance: float) -> Dataset:
    """One split, refused when labels were lost; a split of defect-free images only is fine."""
    try:
        part = whole.split(split)
    except DataError as error:
        if split != "val":
            raise
        raise DataError(
            f"{error} In measuring, --val-fraction 0.2 does the same; with the --seed of a fine-tuning (0) they are "
            "the images that it validated on."
        ) from None
    try:
        if not any(len(record.labels) for record in whole.records):
            whole.require_clean(tolerance=1.0)
    except DataError as error:
        raise DataError(
            f"{error} Sound surfaces are measured as a split of their own, e.g. test (--split test), of data with "
            "labels in another."
        ) from None
    return part.require_clean(tolerance, labels=False, whole=len(whole))


def _load(model: str | os.PathLike[str] | DetectorLike, settings: ValidationSettings) -> tuple[DetectorLike, About]:
    """The detector, and what identifies it."""
    if not isinstance(model, (str, os.PathLike)):
        return model, About(model=model.config.name, device=settings.device, engine=_engine_name(model))
    from agssp_zoo import hub
    from agssp_zoo.detector import load_detector
    from agssp_zoo.folder import sha256_file

    detector: DetectorLike = load_detector(model, engine=settings.engine, device=settings.device)
    engine = _engine_name(detector)
    if str(model).endswith(".onnx"):
        file = user_path(model)
    else:
        file = hub.resolve(model).file("model.safetensors" if engine == "pytorch" else "model.onnx")
    return detector, About(
        model=detector.config.name,
        model_path=str(model),
        model_file=file.name,
        model_sha256=sha256_file(file),
        engine=engine,
        device=settings.device,
    )


def _engine_name(detector: DetectorLike) -> str:
    return str(getattr(getattr(detector, "engine", None), "name", ""))


def _suppression(detector: DetectorLike, settings: ValidationSettings) -> float:
    """The IoU of the suppression of overlapping boxes that is in force."""
    if settings.iou is not None:
        return settings.iou
    postprocess = detector.config.postprocess
    return postprocess.iou if postprocess is not None else 0.7


def _chosen(detector: DetectorLike, settings: ValidationSettings) -> Mapping[str, Any]:
    """Everything that bears on the figures."""
    size = settings.size if settings.size is not None else detector.config.preprocess.size
    return {
        "size": size if isinstance(size, int) else list(size),
        "batch": settings.batch,
        "conf": settings.conf,
        "iou": _suppression(detector, settings),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in settings.tiling.items()},
        "max_det": settings.max_det,
        "miss_rate": settings.miss_rate,
        "single_class": settings.single_class,
        "ignore_difficult": settings.ignore_difficult,
    }
