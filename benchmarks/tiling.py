"""What joining at the seams of tiles brings, against suppression alone, on drawn strips with exact boxes.

    python -m benchmarks.tiling --images 60 --write

draws strips of hot-rolled steel (400x1600), runs the default detector on them whole and in tiles of 300, and puts the
table into docs/large-images.md. Every arm is given the same detections of the same tiles.
"""

from __future__ import annotations

import argparse
import shlex
import sys
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


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__)
    parser.add_argument("--images", type=int, default=60, help="strips to draw (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=300, help="side of a tile (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=0.2, help="share that neighbours share (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="of the drawn strips (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/large-images.md")
    args = parser.parse_args()
    truth, found = _detect(args)
    names = found.pop("names")
    lines = [
        f"| | map50 | map50_95 | precision at {CONF} | recall at {CONF} | defects with more than one box |",
        "|---|--:|--:|--:|--:|--:|",
        *(f"| {ARMS[arm]} | {' | '.join(_figures(truth, answers, names))} |" for arm, answers in found.items()),
        "",
        f"`{shlex.join(['python', '-m', 'benchmarks.tiling', *sys.argv[1:]])}`: {sum(len(t.labels) for t in truth)} "
        f"defects of {len(names)} classes.",
    ]
    print("\n".join(lines))
    if args.write:
        write_between(DOCS, BEGIN, END, "\n".join(["", *lines, ""]))
    return 0


def _detect(args: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """The true boxes of every strip, and what each arm finds there."""
    import agssp_zoo
    from agssp_zoo.geometry import nms
    from agssp_zoo.tiling import Tiling
    from agssp_zoo.training.evaluation import GroundTruth, Prediction
    from agssp_zoo.training.synthetic import draw_sample

    detector = agssp_zoo.load_detector(MODEL, engine="onnx")
    post = detector.config.postprocess
    iou = post.iou if post else 0.7
    both, plain = Tiling(args.tile, args.overlap, whole=True), Tiling(args.tile, args.overlap)
    truth, found = [], {arm: [] for arm in ARMS}
    for index in range(args.images):
        sample = draw_sample(index, seed=args.seed, size=SIZE, style="neu")
        truth.append(GroundTruth(sample.boxes, sample.labels))
        parts = []
        for top, left, bottom, right in both.windows(SIZE):
            one = detector.predict(np.ascontiguousarray(sample.image[top:bottom, left:right]), conf=0.001)[0]
            parts.append((one.boxes + np.array([left, top, left, top], np.float32), one.scores, one.labels))
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts[:-1], strict=True))
        kept = nms(boxes, scores, labels, iou)
        answers = {
            "none": parts[-1],
            "suppression": (boxes[kept], scores[kept], labels[kept]),
            "joined": plain.merge(parts[:-1], SIZE, iou),
            "whole": both.merge(parts, SIZE, iou),
        }
        for arm, answer in answers.items():
            found[arm].append(Prediction(*(column[:300] for column in answer)))
    return truth, {**found, "names": detector.names}


def _figures(truth: list[Any], found: list[Any], names: tuple[str, ...]) -> list[str]:
    """The cells of a row."""
    from agssp_zoo.geometry import box_iou
    from agssp_zoo.training.evaluation import evaluate

    metrics = evaluate(truth, found, names, conf=0.001, resamples=0)
    hits = answered = defects = several = 0
    for true, answer in zip(truth, found, strict=True):
        sure = answer.scores > CONF
        boxes, labels = answer.boxes[sure], answer.labels[sure]
        answered, defects = answered + len(boxes), defects + len(true.labels)
        free = np.ones(len(true.labels), bool)
        for box, label in zip(boxes, labels, strict=True):  # the best first
            overlap = box_iou(box[None], true.boxes)[0] * ((true.labels == label) & free)
            if len(overlap) and overlap.max() >= 0.5:
                free[overlap.argmax()] = False
                hits += 1
        for box, label in zip(true.boxes, true.labels, strict=True):
            sides = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None)
            share = sides.prod(1) / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1)
            several += int(((share > 0.5) & (labels == label)).sum() > 1)
    cells = [metrics.map50, metrics.map50_95, hits / max(answered, 1), hits / defects, several / defects]
    return [f"{100 * value:.1f}" for value in cells]


if __name__ == "__main__":
    sys.exit(main())
