"""Labels and detections that nobody has drawn."""

from __future__ import annotations

import numpy as np

from agssp_zoo.training.evaluation import GroundTruth, Prediction

NAMES = ("crack", "pit", "scale", "scratch", "patch", "inclusion")


def random_case(seed, images=60, classes=6, detections=40, size=300, flags=0.06, digits=2):
    """Random labels, and detections of which some lie near them; scores and boxes rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    truth, answers = [], []
    for _ in range(images):
        n = int(rng.integers(0, 7))
        corner, sides = rng.uniform(0, size * 0.7, (n, 2)), rng.uniform(6, size * 0.6, (n, 2))
        boxes = np.round(np.concatenate([corner, np.minimum(corner + sides, size)], axis=1))
        labels = rng.integers(0, classes, n)
        truth.append(GroundTruth(boxes, labels, rng.random(n) < flags, rng.random(n) < flags))
        corner, sides = rng.uniform(0, size * 0.7, (detections, 2)), rng.uniform(6, size * 0.6, (detections, 2))
        found = np.concatenate([corner, np.minimum(corner + sides, size)], axis=1)
        kinds, scores = rng.integers(0, classes, detections), rng.beta(0.6, 5, detections)
        if n:
            near = rng.random(detections) < 0.4
            source = rng.integers(0, n, detections)[near]
            found[near] = np.round(boxes[source] + rng.normal(0, 9, (near.sum(), 4)))
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
            kinds[near] = np.where(rng.random(near.sum()) < 0.8, labels[source], kinds[near])
            scores[near] = rng.beta(2, 2, near.sum())
        answers.append(Prediction(found.astype(np.float32), np.round(scores, digits).astype(np.float32), kinds))
    return truth, answers


def make(boxes, labels, scores=None):
    if scores is None:
        return GroundTruth(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))
    return Prediction(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )
