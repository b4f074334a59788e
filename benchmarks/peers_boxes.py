"""The same logits of a head for two post-processings: ours takes them as they are, the other one decoded boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BoxFiles:
    """What both sides of the comparison read.

    Attributes:
        ours: the part of our file behind its last convolutions.
        theirs: the same part of ultralytics' file.
        data: an ``.npz``: ``ours/NAME`` and ``theirs/NAME``, the inputs of those parts, and ``decoded``, what
            ultralytics' file would answer, (1, 4 + classes, 8400): centre, width, height in pixels, and scores.
    """

    ours: Path
    theirs: Path
    data: Path


def box_files(ours: Path, theirs: Path, classes: int, centre: float, out: Path, *, conf: float, iou: float) -> BoxFiles:
    """Writes the files.

    Args:
        ours: our ONNX file.
        theirs: ultralytics' of the same architecture.
        classes: of both.
        centre: mean of the classes' logits.
        out: where the files go.
        conf: score threshold.
        iou: of the suppression.
    """
    import numpy as np
    import onnx

    from benchmarks.inference import after_the_head, drawn_logits, open_session

    out.mkdir(parents=True, exist_ok=True)
    files = BoxFiles(out / "head_ours.onnx", out / "head_theirs.onnx", out / "head.npz")
    for source, target in ((ours, files.ours), (theirs, files.theirs)):
        onnx.save(after_the_head(onnx.load(source)), target)
    feed, _ = drawn_logits(open_session(str(files.ours)), classes, centre, conf, iou, np.random.default_rng(0))
    logits = [value for value in feed.values() if value.ndim == 4 and value.dtype == np.float32]
    session = open_session(str(files.theirs))
    names = [entry.name for entry in session.get_inputs() if entry.name != "images"]
    pairs = [logits[index ^ 1] for index in range(len(logits))]  # theirs: a level's boxes before its classes
    other = {**dict(zip(names, pairs, strict=True)), "images": np.zeros((1, 3, 640, 640), np.float32)}
    decoded = decode(logits[::2], logits[1::2])
    # Both have to mean the same, or the comparison means nothing.
    np.testing.assert_allclose(session.run(None, other)[0], decoded, rtol=1e-3, atol=1e-3)
    arrays = {f"ours/{name}": value for name, value in feed.items()}
    np.savez(files.data, decoded=decoded, **arrays, **{f"theirs/{name}": value for name, value in other.items()})
    return files


def decode(class_logits: list[Any], box_logits: list[Any]) -> Any:
    """What a YOLOv8 head's outputs mean, level by level: (1, 4 + classes, boxes), as ultralytics lays it out."""
    import numpy as np

    columns = []
    for scores, sides in zip(class_logits, box_logits, strict=True):
        classes, height, width = scores.shape[1:]
        stride = 640 // width
        bins = np.exp(sides.reshape(4, 16, height, width))
        left, top, right, bottom = (bins * np.arange(16)[:, None, None]).sum(1) / bins.sum(1)
        y, x = np.mgrid[:height, :width] + 0.5
        box = [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom]
        levels = [np.stack(box).reshape(4, -1) * stride, 1 / (1 + np.exp(-scores.reshape(classes, -1)))]
        columns.append(np.concatenate(levels))
    return np.concatenate(columns, axis=1)[None].astype(np.float32)
