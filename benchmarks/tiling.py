"""What joining at the seams of tiles brings, against suppression alone, on drawn strips with exact boxes.

    python -m benchmarks.tiling --images 60 --write

draws strips of hot-rolled steel (400x1600), runs the default detector on them whole and in tiles of 300, and puts the
table into docs/large-images.md. Every arm is given the same detections of the same tiles. What the detector itself
finds twice, without any seam, is told by a tile around every defect.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import ROOT, write_between

DOCS = ROOT / "docs" / "large-images.md"
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"
MODEL = ROOT / "model_cards" / "yolov8_n.agssp_neu_det"
SIZE = (400, 1600)
CONF = 0.25
ARMS = {
    "none": "the whole image, no tiles",
    "suppression": "tiles, suppression only",
    "joined": "tiles, joined at the seams",
    "whole": "the same, and the whole image too",
}
CENTRED = "a tile around every defect, no seams"


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__)
    parser.add_argument("--images", type=int, default=60, help="strips to draw (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=300, help="side of a tile (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=0.2, help="share that neighbours share (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="of the drawn strips (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/large-images.md")
    args = parser.parse_args()
    drawn = _detect(args)
    several = drawn.several(drawn.centred)
    lines = [
        f"| | map50 | map50_95 | precision at {CONF} | recall at {CONF} | defects with more than one box "
        "| of those that no tile holds |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(f"| {ARMS[arm]} | {' | '.join(_figures(drawn, arm))} |" for arm in ARMS),
        f"| {CENTRED} | | | | | {' | '.join(several)} |",
        "",
        f"`{shlex.join(['python', '-m', 'benchmarks.tiling', *sys.argv[1:]])}`: {len(drawn.cut)} defects of "
        f"{len(drawn.names)} classes; {sum(drawn.cut)} of them lie in no tile as a whole.",
    ]
    print("\n".join(lines))
    if args.write:
        write_between(DOCS, BEGIN, END, "\n".join(["", *lines, ""]))
    return 0


@dataclass
class _Drawn:
    """What was drawn and what was found.

    Attributes:
        names: of the classes.
        truth: the true boxes of every strip.
        found: what each arm finds on every strip.
        centred: for every defect, how many boxes of its class lie in it when a tile of its own is around it.
        cut: for every defect, whether no tile holds it as a whole.
    """

    names: tuple[str, ...]
    truth: list[Any] = field(default_factory=list)
    found: dict[str, list[Any]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    centred: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)

    def several(self, counts: list[int]) -> list[str]:
        """The shares, in percent, of all defects and of those that are cut that have more than one box."""
        more = np.array(counts) > 1
        cut = np.array(self.cut)
        return [f"{100 * more.mean():.1f}", f"{100 * more[cut].mean():.1f}" if cut.any() else ""]


def _detect(args: argparse.Namespace) -> _Drawn:
    """Draws, and finds."""
    import agssp_zoo
    from agssp_zoo.geometry import nms
    from agssp_zoo.tiling import Tiling
    from agssp_zoo.training.evaluation import GroundTruth, Prediction
    from agssp_zoo.training.synthetic import draw_sample

    detector = agssp_zoo.load_detector(MODEL, engine="onnx")
    post = detector.config.postprocess
    iou = post.iou if post else 0.7
    both, plain = Tiling(args.tile, args.overlap, whole=True), Tiling(args.tile, args.overlap)
    drawn = _Drawn(detector.names)
    for index in range(args.images):
        sample = draw_sample(index, seed=args.seed, size=SIZE, style="neu")
        drawn.truth.append(GroundTruth(sample.boxes, sample.labels))

        def look(window: tuple[int, int, int, int], image: Any = sample.image) -> Any:
            top, left, bottom, right = window
            one = detector.predict(np.ascontiguousarray(image[top:bottom, left:right]), conf=0.001)[0]
            return one.boxes + np.array([left, top, left, top], np.float32), one.scores, one.labels

        windows = list(both.windows(SIZE))
        parts = [look(window) for window in windows]
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts[:-1], strict=True))
        kept = nms(boxes, scores, labels, iou)
        answers = {
            "none": parts[-1],
            "suppression": (boxes[kept], scores[kept], labels[kept]),
            "joined": plain.merge(parts[:-1], SIZE, iou),
            "whole": both.merge(parts, SIZE, iou),
        }
        for arm, answer in answers.items():
            drawn.found[arm].append(Prediction(*(column[:300] for column in answer)))
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            drawn.cut.append(not any(_holds(window, box) for window in windows[:-1]))
            answer = Prediction(*look(_around(box, args.tile)))
            drawn.centred.append(_boxes_inside(answer, box, label))
    return drawn


def _around(box: Any, tile: int) -> tuple[int, int, int, int]:
    """The tile (top, left, bottom, right) inside the strip in whose middle a box (x1, y1, x2, y2) lies."""
    left, top = (
        int(np.clip((box[axis] + box[axis + 2] - tile) / 2, 0, max(0, SIZE[1 - axis] - tile))) for axis in range(2)
    )
    return top, left, min(top + tile, SIZE[0]), min(left + tile, SIZE[1])


def _holds(window: tuple[int, int, int, int], box: Any) -> bool:
    top, left, bottom, right = window
    return bool(left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom)


def _boxes_inside(answer: Any, box: Any, label: Any) -> int:
    """How many boxes of a class that the detector is sure of lie with more than half of their area in a box."""
    chosen = (answer.scores > CONF) & (answer.labels == label)
    boxes = answer.boxes[chosen]
    sides = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None)
    return int((sides.prod(1) > 0.5 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).sum())


def _figures(drawn: _Drawn, arm: str) -> list[str]:
    """The cells of a row."""
    from agssp_zoo.geometry import box_iou
    from agssp_zoo.training.evaluation import evaluate

    metrics = evaluate(drawn.truth, drawn.found[arm], drawn.names, conf=0.001, resamples=0)
    hits = answered = 0
    counts = []
    for true, answer in zip(drawn.truth, drawn.found[arm], strict=True):
        sure = answer.scores > CONF
        boxes, labels = answer.boxes[sure], answer.labels[sure]
        answered += len(boxes)
        free = np.ones(len(true.labels), bool)
        for box, label in zip(boxes, labels, strict=True):  # the best first
            overlap = box_iou(box[None], true.boxes)[0] * ((true.labels == label) & free)
            if len(overlap) and overlap.max() >= 0.5:
                free[overlap.argmax()] = False
                hits += 1
        counts += [_boxes_inside(answer, box, label) for box, label in zip(true.boxes, true.labels, strict=True)]
    cells = [metrics.map50, metrics.map50_95, hits / max(answered, 1), hits / len(counts)]
    return [*(f"{100 * value:.1f}" for value in cells), *drawn.several(counts)]


if __name__ == "__main__":
    sys.exit(main())
