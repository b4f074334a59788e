"""thresholds.json: for every class the score threshold that a wish asks for, and what it does on the split measured.

Two wishes, each on its own and for every class by itself. A detection finds a labelled box of its class by the rule of
:mod:`.matching` from an IoU of 0.5 on; a detection that finds none is a false alarm, also a second one on the same box.

* miss rate r: the highest threshold at which at most the share r of the labelled boxes is found by no detection.
* false alarms f: of the thresholds with at most f false alarms an image, the one that finds most boxes, and of several
  such the highest. Without labelled boxes the lowest with at most f: a split of sound surfaces tells false alarms too.

Where no threshold does it, the closest one stands there with ``"reached": false``: the highest of those that miss the
fewest boxes, or for false alarms the highest that finds a box at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.thresholds import SCHEMA_VERSION, WEIGHTS

from .curves import ClassCurve, wilson

if TYPE_CHECKING:
    from .runner import Validation

DEFINITION = {
    "miss_rate": "the highest threshold at which at most this share of the class's labelled boxes is found by none of "
    "its detections",
    "false_alarms": "of the thresholds with at most so many detections of the class an image that find no labelled "
    "box, the one that finds most boxes",
}


@dataclass(frozen=True)
class Wish:
    """What thresholds are wanted for; one of the two.

    Attributes:
        miss_rate: share of a class's labelled boxes that may be missed, from 0 to below 1.
        false_alarms: detections of a class an image that may find no box, at least 0.
    """

    miss_rate: float | None = None
    false_alarms: float | None = None

    def __post_init__(self) -> None:
        if (self.miss_rate is None) == (self.false_alarms is None):
            raise InvalidArgumentError("give a miss rate or a number of false alarms, one of the two.")
        if self.miss_rate is not None and not 0.0 <= self.miss_rate < 1.0:
            raise InvalidArgumentError(f"miss_rate is {self.miss_rate}; give a share from 0 to below 1.")
        if self.false_alarms is not None and not 0.0 <= self.false_alarms < math.inf:
            raise InvalidArgumentError(f"false_alarms is {self.false_alarms}; give a number an image, of at least 0.")

    @property
    def name(self) -> str:
        """``"miss_rate"`` or ``"false_alarms"``."""
        return "miss_rate" if self.false_alarms is None else "false_alarms"

    @property
    def value(self) -> float:
        """The number wished for."""
        return float(getattr(self, self.name))


@dataclass(frozen=True)
class Outcome:
    """The threshold of one class, and what it does on the split.

    Attributes:
        threshold: the score threshold; ``None`` where none can be named, and the model's own ``conf`` stays.
        reached: whether the wish is met; ``None`` where the split says nothing about it.
        boxes: labelled boxes that this rests on.
        missed: of these, how many no detection finds.
        miss_rate: their share.
        miss_rate_low: lower end of the 95 % interval of the true miss rate (Wilson, 1927).
        miss_rate_high: upper end.
        false_alarms: detections of this class that find no box.
        false_alarms_per_image: the same an image.
    """

    threshold: float | None
    reached: bool | None
    boxes: int
    missed: int | None
    miss_rate: float | None
    miss_rate_low: float | None
    miss_rate_high: float | None
    false_alarms: int | None
    false_alarms_per_image: float | None


def outcome(curve: ClassCurve, images: int, wish: Wish) -> Outcome:
    """The threshold of a class for a wish; ``images``: number of images of the split."""
    if wish.miss_rate is not None:
        threshold, reached = _for_miss_rate(curve, wish.miss_rate)
    else:
        threshold, reached = _for_false_alarms(curve, wish.value * images)
    if threshold is None:
        return Outcome(None, reached, curve.boxes, None, None, None, None, None, None)
    point = curve.at(threshold)
    missed = curve.boxes - point.found
    low, high = wilson(missed, curve.boxes) if curve.boxes else (None, None)
    return Outcome(
        threshold=threshold,
        reached=reached,
        boxes=curve.boxes,
        missed=missed if curve.boxes else None,
        miss_rate=missed / curve.boxes if curve.boxes else None,
        miss_rate_low=low,
        miss_rate_high=high,
        false_alarms=point.false_alarms,
        false_alarms_per_image=point.false_alarms / max(images, 1),
    )


def _for_miss_rate(curve: ClassCurve, rate: float) -> tuple[float | None, bool | None]:
    """Threshold, and whether the miss rate is reached."""
    if not curve.boxes:
        return None, None
    if not curve.found.any():
        return None, False
    allowed = math.floor(rate * curve.boxes + 1e-9)
    enough = np.flatnonzero(curve.boxes - curve.found <= allowed)
    index = enough[0] if len(enough) else np.argmax(curve.found)
    return float(curve.thresholds[index]), bool(len(enough))


def _for_false_alarms(curve: ClassCurve, allowed: float) -> tuple[float | None, bool | None]:
    """Threshold, and whether so few false alarms on all images can be had."""
    if not len(curve.found):
        return None, False if curve.boxes else None
    within = np.flatnonzero(curve.false_alarms <= math.floor(allowed + 1e-9))
    if not curve.boxes:
        if len(within):
            return float(curve.thresholds[within[-1]]), True
        return min(1.0, math.ceil(float(curve.scores[0]) * 1e4) / 1e4), True  # nothing is above the best score
    if len(within) and curve.found[within[-1]]:
        return float(curve.thresholds[np.argmax(curve.found == curve.found[within[-1]])]), True
    return (float(curve.thresholds[np.argmax(curve.found > 0)]) if curve.found.any() else None), False


def write_thresholds(path: str | os.PathLike[str], validation: Validation, wish: Wish) -> dict[str, Outcome]:
    """Writes thresholds.json, which ``agssp-zoo thresholds`` puts into a model.

    Args:
        path: the file.
        validation: what was measured.
        wish: what the thresholds are for.

    Returns:
        Class name -> its threshold and what it does.

    Raises:
        InvalidArgumentError: classes were not told apart, so that none can have a threshold of its own.
    """
    metrics, about = validation.metrics, validation.about
    if about.settings.get("single_class"):
        raise InvalidArgumentError(
            "with --single-class no class can have a threshold of its own; leave one of them out."
        )
    outcomes = {
        entry.name: outcome(curve, metrics.images, wish)
        for entry, curve in zip(metrics.classes, metrics.curves, strict=True)
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "wish": {wish.name: wish.value, "definition": DEFINITION[wish.name]},
        "classes": {name: asdict(one) for name, one in outcomes.items()},
        "images": metrics.images,
        "iou_of_a_find": metrics.iou,
        "size": about.settings.get("size"),
        "iou": about.settings.get("iou"),
        "weights_sha256": _weights_sha256(about.model_path),
        **{key: value for key, value in about.to_dict().items() if not key.startswith("ms_") and key != "settings"},
    }
    file = Path(path)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return outcomes


def _weights_sha256(model: str) -> str | None:
    """The SHA-256 of the weights in a model's folder, where it has them."""
    from agssp_zoo import hub
    from agssp_zoo.folder import sha256_file

    if not model or model.endswith(".onnx"):
        return None
    folder = hub.resolve(model)
    if WEIGHTS in folder.checksums:
        return folder.checksums[WEIGHTS]
    return sha256_file(folder.path / WEIGHTS) if (folder.path / WEIGHTS).is_file() else None


def lines(outcomes: dict[str, Outcome], wish: Wish) -> list[str]:
    """What the thresholds do, as lines of text."""
    from .words import number, percent, threshold

    what = (
        f"at most {percent(wish.value)} missed" if wish.name == "miss_rate" else f"{wish.value:g} false alarms an image"
    )
    rows = [[f"for {what}", "threshold", "missed", "of", "true miss rate", "false alarms/image", ""]]
    for name, one in outcomes.items():
        rows.append(
            [name, threshold(one.threshold), percent(one.miss_rate), str(one.boxes),
             f"{percent(one.miss_rate_low)} to {percent(one.miss_rate_high)}" if one.missed is not None else "–",
             number(one.false_alarms_per_image), _remark(one)]
        )  # fmt: skip
    return _aligned(rows)


def _remark(one: Outcome) -> str:
    if one.threshold is None:
        return "no threshold: " + ("nothing is found" if one.reached is False else "nothing is known")
    return "NOT REACHED" if one.reached is False else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first and the last one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = []
    for row in rows:
        middle = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        aligned.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return aligned


def wished(miss_rate: float | None, false_alarms: float | None) -> Wish | None:
    """The wish of a command line, ``None`` without one."""
    return None if miss_rate is None and false_alarms is None else Wish(miss_rate, false_alarms)
