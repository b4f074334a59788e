"""Evaluation: COCO's numbers, thresholds, kinds of errors, and a detector run over a split."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import DataError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.geometry import nms
from agssp_zoo.training.evaluation import GroundTruth, Prediction, class_mapping, coco, evaluate, quick_map, validate
from agssp_zoo.training.evaluation.cli import advice
from agssp_zoo.training.evaluation.coco import coco_dicts
from agssp_zoo.training.evaluation.curves import between, wilson
from agssp_zoo.training.evaluation.errors import KINDS
from agssp_zoo.training.evaluation.inputs import build_table
from agssp_zoo.training.evaluation.settings import ValidationSettings
from agssp_zoo.training.evaluation.suppression import Stricter

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


def pycocotools_precision(table, max_det):
    """(T, C, A) average precision and the twelve summary figures, by the original code."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset, results = coco_dicts(table)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, max_det]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]
    return np.where(precision[:, 0] > -1, precision.mean(axis=1), np.nan)


def mean(values):
    known = values[~np.isnan(values)]
    return known.mean() if len(known) else math.nan


def greedy(truth, answers, label, threshold, iou=0.5):
    """COCO's matching written as a plain loop: (found, false alarms) of one class above a score threshold."""
    found = alarms = 0
    for gt, dt in zip(truth, answers, strict=True):
        ignore = gt.crowd
        mine = [row for row in np.flatnonzero(gt.labels == label)]
        mine.sort(key=lambda row: ignore[row])
        taken = set()
        rows = np.flatnonzero((dt.labels == label) & (dt.scores > threshold))
        for d in rows[np.argsort(-dt.scores[rows], kind="stable")]:
            best, best_iou = None, iou
            for g in mine:
                if g in taken and not ignore[g]:
                    continue
                if best is not None and not ignore[best] and ignore[g]:
                    break
                overlap = plain_iou(dt.boxes[d], gt.boxes[g], ignore[g])
                if overlap >= best_iou:
                    best, best_iou = g, overlap
            if best is None:
                alarms += 1
            elif not ignore[best]:
                taken.add(best)
                found += 1
    return found, alarms


def plain_iou(a, b, crowd):
    a, b = a.astype(float), b.astype(float)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1])
    union = area if crowd else area + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union else 0.0


# --- COCO's numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "options", "max_det"),
    [(0, {}, 100), (1, {"digits": 6, "flags": 0.3}, 100), (2, {"images": 12, "classes": 20, "size": 900}, 100),
     (3, {"detections": 60, "classes": 1, "digits": 1}, 10)],
)  # fmt: skip
def test_figures_equal_pycocotools(seed, options, max_det, capsys):
    truth, answers = random_case(seed, **options)
    classes = options.get("classes", 6)
    names = [f"class {label}" for label in range(classes)]
    metrics = evaluate(truth, answers, names, max_det=max_det, ignore_difficult=bool(seed % 2))
    assert capsys.readouterr() == ("", "")  # the library's own lines are silenced

    options = {"max_det": max_det, "ignore_difficult": bool(seed % 2)}
    ap = pycocotools_precision(build_table(truth, answers, classes, **options), max_det)
    wanted = [ap[0, :, 0], ap[:, :, 0], ap[5, :, 0], ap[:, :, 1], ap[:, :, 2], ap[:, :, 3]]
    got = [metrics.map50, metrics.map50_95, metrics.map75, metrics.map_small, metrics.map_medium, metrics.map_large]
    np.testing.assert_allclose(got, [mean(part.ravel()) for part in wanted], rtol=0, atol=1e-12)
    np.testing.assert_allclose([c.ap50 for c in metrics.classes], ap[0, :, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose([c.ap50_95 for c in metrics.classes], ap[..., 0].mean(axis=0), rtol=0, atol=1e-12)

    quick = quick_map(truth, answers, names, **options)
    np.testing.assert_allclose(
        [quick.map50, quick.map75, quick.map50_95, *quick.ap50, *quick.ap50_95],
        [mean(ap[0, :, 0]), mean(ap[5, :, 0]), mean(ap[..., 0].ravel()), *ap[0, :, 0], *ap[..., 0].mean(axis=0)],
        rtol=0, atol=1e-12,
    )  # fmt: skip


def test_classes_are_scored_on_their_own_images_alone(monkeypatch):
    truth, answers = random_case(3, images=20, classes=4, detections=12)
    table = build_table(truth, answers, 60, max_det=100, ignore_difficult=True)
    seen = []
    at_once = coco._run

    def counted(part, max_det):
        seen.append(part.images * part.classes)
        return at_once(part, max_det)

    monkeypatch.setattr(coco, "_run", counted)
    numbers = coco.coco_numbers(table, max_det=5)
    whole = at_once(table, 5)
    np.testing.assert_array_equal(numbers.precision, np.where(whole[..., 0] > -1, whole[..., 0], np.nan))
    known = whole[:, 0] > -1
    np.testing.assert_array_equal(numbers.ap, np.where(known, whole.mean(axis=1), np.nan))
    # The library takes memory for every class and image that it is given: not for 60 classes times all images.
    assert sum(seen) <= 4 * table.images


def test_average_precision_by_hand():
    truth = [make([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 0]), make([], [])]
    answers = [
        make([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 0], [0.9, 0.5]),
        make([[0, 0, 5, 5]], [0], [0.7]),  # a false alarm between the two hits
    ]
    # Precision 1 up to recall 0.5 (51 of the 101 points), 2/3 up to recall 1.
    assert quick_map(truth, answers, 1).map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert evaluate(truth, answers, ["pit"]).classes[0].ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_scoring_is_fast():
    truth, answers = random_case(0, images=361, detections=300)
    start = time.process_time()
    quick = quick_map(truth, answers, 6)
    quick_seconds = time.process_time() - start
    start = time.process_time()
    metrics = evaluate(truth, answers, NAMES)
    assert quick.map50 == pytest.approx(metrics.map50, abs=1e-12)
    assert quick_seconds < 1.0
    assert time.process_time() - start < 3.0


def test_difficult_boxes_count_unless_told_otherwise():
    truth = [GroundTruth(np.array([[0, 0, 10, 10], [50, 50, 60, 60]]), [0, 0], difficult=[False, True])]
    answers = [make([[0, 0, 10, 10]], [0], [0.9])]
    counted, ignored = (evaluate(truth, answers, ["pit"], ignore_difficult=flag) for flag in (False, True))
    assert (counted.boxes, counted.ignored_boxes, counted.best_f1.recall) == (2, 0, 0.5)
    assert (ignored.boxes, ignored.ignored_boxes, ignored.best_f1.recall) == (1, 1, 1.0)
    assert counted.map50 == pytest.approx(51 / 101) and ignored.map50 == 1.0
    for metrics in (counted, ignored):
        assert metrics.map50_counting_difficult == counted.map50
        assert metrics.map50_ignoring_difficult == ignored.map50
    crowd = [GroundTruth(t.boxes, t.labels, crowd=t.difficult) for t in truth]
    assert evaluate(crowd, answers, ["pit"]).best_f1.recall == 1.0


# --- nothing there --------------------------------------------------------------------------------------------------


def test_a_class_without_boxes_is_left_out_of_every_mean():
    truth, answers = random_case(5)
    with_two_more = evaluate(truth, answers, [*NAMES, "rust", "dent"])
    plain = evaluate(truth, answers, NAMES)
    assert with_two_more.classes_without_boxes == ("rust", "dent")
    assert with_two_more.map50 == plain.map50 and with_two_more.best_f1 == plain.best_f1
    text = json.dumps(with_two_more.to_dict(), allow_nan=False)  # raises where a nan is left
    entry = json.loads(text)["classes"][6]
    assert entry["ap50"] is None and entry["best_f1"]["recall"] is None and entry["advice"]["threshold"] is None


def test_nothing_detected_and_nothing_labelled():
    truth, answers = random_case(6)
    nothing = [make([], [], []) for _ in truth]
    clean = [make([], []) for _ in truth]

    metrics = evaluate(truth, nothing, NAMES)
    assert (metrics.map50, metrics.map50_95, metrics.best_f1.recall) == (0.0, 0.0, 0.0)
    assert metrics.best_f1.threshold is None and metrics.best_f1.precision is None
    assert metrics.confusion.matrix[:-1, -1].sum() == metrics.boxes == sum(c.advice.missed for c in metrics.classes)
    assert quick_map(truth, nothing, 6).map50 == 0.0

    metrics = evaluate(clean, answers, NAMES)
    assert math.isnan(metrics.map50) and metrics.to_dict()["map50"] is None
    assert metrics.clean_images == metrics.images == len(truth)
    assert math.isnan(quick_map(clean, answers, 6).map50)

    for metrics in (evaluate(clean, nothing, NAMES), evaluate([], [], NAMES)):
        assert math.isnan(metrics.map50_95) and metrics.boxes == metrics.detections == 0
        json.dumps(metrics.to_dict(), allow_nan=False)


# --- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [10, 11])
def test_thresholds_hold_what_they_promise(seed):
    """Filtering by the threshold as ``predict`` does and counting with a plain loop gives the figures stated."""
    truth, answers = random_case(seed)
    metrics = evaluate(truth, answers, NAMES, miss_rate=0.3)
    reachable = 0
    for label, entry in enumerate(metrics.classes):
        point = entry.best_f1
        assert greedy(truth, answers, label, point.threshold) == (point.found, point.false_alarms)
        assert point.f1 == pytest.approx(2 * point.precision * point.recall / (point.precision + point.recall))
        common = entry.at_common
        assert greedy(truth, answers, label, metrics.best_f1.threshold) == (common.found, common.false_alarms)

        advice = entry.advice
        found, alarms = greedy(truth, answers, label, advice.threshold)
        assert (entry.boxes - found, alarms / len(truth)) == (advice.missed, advice.false_alarms_per_image)
        assert advice.unprovoked_per_image <= advice.false_alarms_per_image
        if advice.reachable:
            reachable += 1
            assert advice.missed <= 0.3 * entry.boxes
            higher = min(s for a in answers for s in a.scores[a.labels == label] if s > advice.threshold)
            assert entry.boxes - greedy(truth, answers, label, higher)[0] > 0.3 * entry.boxes
        else:
            assert advice.missed > 0.3 * entry.boxes
    assert reachable  # or the test would prove little
    best = max(
        np.mean([2 * f / (f + a + c.boxes) for c, (f, a) in zip(metrics.classes, counts, strict=True)])
        for counts in ([greedy(truth, answers, label, t) for label in range(6)] for t in np.arange(0.1, 0.9, 0.1))
    )
    assert metrics.best_f1.f1 >= best


def test_thresholds_count_every_detection_of_a_crowded_image():
    """``predict`` answers them all; only average precision takes COCO's best hundred of a class in an image."""
    places = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 20.0
    boxes = np.concatenate([places, places + 10], axis=1)
    scores = np.linspace(0.9, 0.4, 150)
    truth = [make(boxes, [0] * 150), make([], [])]
    answers = [make(boxes, [0] * 150, scores), make(boxes[:120], [0] * 120, scores[:120] - 0.01)]
    metrics = evaluate(truth, answers, ["pit"], miss_rate=0.1)
    assert metrics.classes[0].ap50 == pytest.approx(pycocotools_precision(build_table(truth, answers, 1, max_det=100),
                                                                          100)[0, 0, 0])  # fmt: skip
    assert metrics.map50_low - 1e-9 <= metrics.map50 < 2 / 3 and metrics.detections == 270
    advice = metrics.classes[0].advice
    assert advice.reachable and (advice.missed, advice.boxes) == (15, 150)
    assert greedy(truth, answers, 0, advice.threshold) == (135, 2 * advice.false_alarms_per_image)
    every = metrics.curves[0]
    assert (every.found[-1], every.false_alarms[-1], every.flagged_clean[-1]) == (150, 120, 1)
    point = metrics.best_f1
    assert greedy(truth, answers, 0, point.threshold) == (point.found, point.false_alarms)
    assert metrics.confusion.matrix.sum() == 150 + point.false_alarms
    assert sum(len(image.detections) for image in metrics.per_image) == point.found + point.false_alarms


def test_an_unreachable_miss_rate_says_what_is_possible():
    truth = [make([[0, 0, 10, 10]], [0]), make([[0, 0, 10, 10]], [0])]
    answers = [make([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], [0.8, 0.4]), make([], [], [])]
    advice = evaluate(truth, answers, ["pit"], miss_rate=0.05, conf=0.001).classes[0].advice
    assert not advice.reachable and advice.missed == 1
    assert 0.001 <= advice.threshold < 0.4 and advice.unprovoked_per_image == 0.5


def test_false_alarms_on_clean_images_are_counted_by_image():
    truth = [make([[0, 0, 10, 10]], [0]), make([], []), make([], [])]
    answers = [
        make([[0, 0, 10, 10]], [0], [0.3]),
        make([[0, 0, 5, 5], [20, 20, 30, 30]], [0, 0], [0.9, 0.5]),
        make([[0, 0, 5, 5]], [0], [0.1]),
    ]
    advice = evaluate(truth, answers, ["pit"]).classes[0].advice
    assert advice.threshold == pytest.approx(0.2) and advice.clean_images_flagged == 1
    assert advice.false_alarms_per_image == pytest.approx(2 / 3)


def test_thresholds_lie_strictly_between_scores():
    scores = np.array([0.9, 0.89999, 0.5, 0.1234567, 0.0011])
    thresholds = between(scores, 0.001)
    assert (thresholds < scores).all() and (thresholds[:-1] >= scores[1:]).all() and thresholds[-1] >= 0.001
    assert thresholds[2] == 0.31  # as few digits as will do
    # Scores that print alike: the threshold must separate them for numpy, which compares in float32.
    scores = np.array([0.55, 0.54, 0.5399999, 0.5399998], np.float32)
    for above, threshold in enumerate(between(scores.astype(float)).tolist(), 1):
        assert (scores > threshold).sum() == above


def test_wilson_interval():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_interval_of_map50_covers_it_and_repeats():
    truth, answers = random_case(7)
    first, second = evaluate(truth, answers, NAMES), evaluate(truth, answers, NAMES)
    assert first.map50_low < first.map50 < first.map50_high < first.map50_low + 0.3
    assert (first.map50_low, first.map50_high) == (second.map50_low, second.map50_high)
    assert math.isnan(evaluate(truth, answers, NAMES, resamples=0).map50_low)
    rare = [make([[0, 0, 10, 10]], [0]), *[make([], [])] * 3]
    answers = [make([[0, 0, 10, 10]], [0], [0.5]), *[make([], [], [])] * 3]
    assert math.isnan(evaluate(rare, answers, ["pit"], resamples=1).map50_low), "the one draw holds no box"


# --- errors ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_error_is_told_apart():
    truth = [make([[0, 0, 20, 20], [40, 0, 60, 20], [100, 100, 150, 150], [0, 100, 20, 120]], [0, 1, 0, 1])]
    answers = [
        make(
            [[0, 0, 20, 20], [1, 0, 20, 20],  # found, and a second time
             [40, 0, 60, 20],  # the right place, the wrong class
             [100, 100, 125, 150 * 0.9],  # 35 of 100 % of the box
             [200, 200, 220, 220],  # nothing there
             [0, 100, 20, 120]],  # found
            [0, 0, 0, 0, 1, 1], [0.9] * 6,
        )
    ]  # fmt: skip
    metrics = evaluate(truth, answers, ["crack", "pit"])
    counts = {entry.name: entry.errors for entry in metrics.classes}
    assert counts["crack"] == dict(zip(KINDS, (1, 1, 1, 1, 0), strict=True))
    assert counts["pit"] == dict(zip(KINDS, (1, 0, 0, 0, 1), strict=True))
    assert metrics.confusion.matrix.tolist() == [[1, 0, 1], [1, 1, 0], [2, 1, 0]]
    result = metrics.per_image[0]
    assert (result.boxes, result.found, result.false_alarms, result.missed_boxes) == (4, 2, 4, (1, 2))
    assert sorted(zip(result.detections, result.hits, strict=True)) == [
        (0, True), (1, False), (2, False), (3, False), (4, False), (5, True),
    ]  # fmt: skip


def test_confusion_adds_up():
    truth, answers = random_case(8)
    metrics = evaluate(truth, answers, NAMES)
    matrix = metrics.confusion.matrix
    assert matrix[:-1].sum(axis=1).tolist() == [c.boxes for c in metrics.classes]
    assert matrix.diagonal()[:-1].tolist() == [c.at_common.found for c in metrics.classes]
    detected = [c.at_common.found + c.at_common.false_alarms for c in metrics.classes]
    assert matrix[:, :-1].sum(axis=0).tolist() == detected
    assert sum(r.found for r in metrics.per_image) == metrics.best_f1.found
    assert sum(r.false_alarms for r in metrics.per_image) == metrics.best_f1.false_alarms
    assert sum(sum(c.errors.values()) - c.errors["missed"] for c in metrics.classes) == metrics.best_f1.false_alarms


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "answer", "error", "words"),
    [
        (make([[0, 0, 1, 1]], [2]), make([], [], []), DataError, "class 2.*2 class names"),
        (make([[5, 0, 1, 1]], [0]), make([], [], []), DataError, "right edge lies left"),
        (make([], []), make([[0, 0, 1, 1]], [-1], [0.5]), InvalidArgumentError, "hold class -1"),
        (make([], []), make([[0, 0, 1, 1]], [0], [math.nan]), InvalidArgumentError, "score that is no number"),
        (make([], []), make([[0, math.inf, 1, 1]], [0], [0.5]), InvalidArgumentError, "no number"),
        (make([], []), Prediction(np.zeros((1, 5)), np.ones(1), np.zeros(1, int)), InvalidArgumentError, r"\(n, 4\)"),
        (make([], []), Prediction(np.zeros((1, 4)), np.ones(2), np.zeros(1, int)), InvalidArgumentError, "scores"),
    ],
)
def test_malformed_input_is_refused(truth, answer, error, words):
    for score in (lambda: evaluate([truth], [answer], ["a", "b"]), lambda: quick_map([truth], [answer], 2)):
        with pytest.raises(error, match=words):
            score()


def test_arguments_out_of_range_are_refused():
    truth, answers = random_case(0, images=2)
    for options, words in (
        ({"miss_rate": 1.0}, "miss_rate"), ({"iou": 0.05}, "iou"), ({"max_det": 0}, "max_det"),
        ({"resamples": -1}, "resamples"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=words):
            evaluate(truth, answers, NAMES, **options)
    with pytest.raises(InvalidArgumentError, match="2 images have labels and 1"):
        evaluate(truth, answers[:1], NAMES)
    with pytest.raises(InvalidArgumentError, match="batch"):
        ValidationSettings(batch=0)


def test_classes_are_matched_by_name():
    assert class_mapping(["a", "b"], ["a", "b"]) is None
    assert class_mapping(["b", "c", "a"], ["a", "b", "c"]).tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"Model \(2\): a, b\. Data \(3\): a, b, c"):
        class_mapping(["a", "b"], ["a", "b", "c"])
    with pytest.raises(DataError, match="--single-class"):
        class_mapping(["anomaly"], ["a", "b"])


# --- a detector over a split ----------------------------------------------------------------------------------------


class FakeDetector:
    """Answers with what it was told for images of that brightness."""

    def __init__(self, answers, names):
        self.config = ModelConfig("fake", "yolov8_n", "detector", class_names=tuple(names))
        self.answers = answers
        self.batches = []

    def predict(self, source, *, conf, size, batch, iou):
        self.batches.append([image.shape for image in source])
        picked = [self.answers[int(image[0, 0, 0])] for image in source]
        return [
            SimpleNamespace(
                boxes=p.boxes[p.scores > conf], scores=p.scores[p.scores > conf], labels=p.labels[p.scores > conf],
                timing={"read": 9.0, "preprocess": 1.0, "inference": 2.0},
            )
            for p in picked
        ]  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """30 images of two shapes, number i of brightness i, 4 of them in another split."""
    from agssp_zoo.training.data import Dataset, Record

    truth, answers = random_case(20, images=30)
    records = []
    for index, labels in enumerate(truth):
        width, height = (300, 300) if index % 3 else (320, 300)
        path = tmp_path / f"{index:02d}.png"
        Image.new("RGB", (width, height), (index, 80, 80)).save(path)
        split = "train" if index < 4 else "val"
        records.append(
            Record(f"{index:02d}", str(path), split, width, height, labels.boxes, labels.labels, labels.crowd,
                   labels.difficult)
        )  # fmt: skip
    return Dataset(NAMES, tuple(records), path=str(tmp_path)), truth, answers


def test_validate_scores_the_split_whatever_the_order_of_the_classes(dataset):
    data, truth, answers = dataset
    expected = evaluate(truth[4:], answers[4:], NAMES, conf=0.05)
    straight = FakeDetector(answers, NAMES)
    result = validate(straight, data, settings=ValidationSettings(conf=0.05, batch=5), command="agssp-zoo val")
    assert result.metrics.map50_95 == expected.map50_95 and result.metrics.images == 26
    assert sum(map(len, straight.batches)) == 26
    assert all(len(set(shapes)) == 1 for shapes in straight.batches[:-1]) or len(straight.batches) == 6
    assert result.about.ms_per_image >= 0 and result.about.ms_per_stage == {"preprocess": 1.0, "inference": 2.0}

    turned = [Prediction(a.boxes, a.scores, (a.labels + 2) % 6) for a in answers]
    names = [NAMES[(label - 2) % 6] for label in range(6)]
    mapped = validate(FakeDetector(turned, names), data, settings=ValidationSettings(conf=0.05))
    assert mapped.metrics.to_dict() == result.metrics.to_dict()

    values = result.to_dict()
    assert values["data"]["fingerprint"] == data.split("val").fingerprint() and values["data"]["split"] == "val"
    assert values["versions"]["numpy"] == np.__version__ and values["machine"]["cores"] >= 1
    assert values["settings"]["conf"] == 0.05 and values["command"] == "agssp-zoo val"


def test_validate_says_what_a_stricter_suppression_would_score(dataset):
    data, _, _ = dataset
    # Each labelled box is found exactly, and again by a worse scored box that overlaps it by 65 percent.
    answers = [Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))] * 30
    for record in data.records:
        kept = ~record.crowd
        boxes, labels = record.boxes[kept], record.labels[kept]
        narrow = boxes.copy()
        narrow[:, 2] -= 0.35 * (boxes[:, 2] - boxes[:, 0])
        scores = np.linspace(0.9, 0.8, len(boxes), dtype=np.float32)
        place = int(record.load_image()[0, 0, 0])
        answers[place] = Prediction(np.concatenate([boxes, narrow]), np.concatenate([scores, scores - 0.3]),
                                    np.tile(labels, 2))  # fmt: skip
    detector = FakeDetector(answers, NAMES)
    result = validate(detector, data)
    suppressed = [Prediction(a.boxes[k], a.scores[k], a.labels[k]) for a in answers
                  for k in [nms(a.boxes, a.scores, a.labels, 0.5)]]  # fmt: skip
    records = data.split("val").records
    order = [int(record.load_image()[0, 0, 0]) for record in records]
    expected = quick_map(records, [suppressed[place] for place in order], 6)
    assert result.stricter == Stricter(0.5, expected.map50, expected.map50_95)
    assert result.to_dict()["stricter_nms"]["map50"] == expected.map50
    assert sum(len(one.scores) for one in suppressed) < sum(len(one.scores) for one in answers)
    for own in (0.5, 1.0):
        strict = validate(detector, data, settings=ValidationSettings(iou=own))
        assert strict.stricter is None and "stricter_nms" not in strict.to_dict()

    better = replace(result, stricter=Stricter(0.5, result.metrics.map50 + 0.02, 0.3))
    (line,) = advice(better)
    assert "agssp-zoo thresholds MODEL --iou 0.5" in line
    assert advice(replace(better, stricter=Stricter(0.5, result.metrics.map50 + 0.005, 0.9))) == []
    assert advice(replace(better, stricter=None)) == [] == advice(replace(better, stricter=Stricter(0.5, math.nan, 0)))


def test_classes_that_no_image_shows_may_be_missing_where_boxes_name_them(dataset):
    data, _, answers = dataset
    few = [replace(r, boxes=r.boxes[keep], labels=r.labels[keep], crowd=r.crowd[keep], difficult=r.difficult[keep])
           for r in data.records for keep in [r.labels < 5]]  # fmt: skip
    data = replace(data, class_names=NAMES[:5], records=tuple(few), format="voc")
    turned = [Prediction(a.boxes, a.scores, 5 - a.labels) for a in answers]
    result = validate(FakeDetector(turned, NAMES[::-1]), data)
    full = validate(FakeDetector(answers, NAMES), replace(data, class_names=NAMES))
    assert result.metrics.to_dict() == full.metrics.to_dict()
    assert result.metrics.classes_without_boxes == ("inclusion",)
    with pytest.raises(DataError, match=r"The data lack inclusion: list these, too, .*classes\.txt"):
        validate(FakeDetector(answers, NAMES), replace(data, format="coco"))
    with pytest.raises(DataError, match=r"Data \(5\): crack, pit, scale, scratch, rust\. Fine-tune"):
        validate(FakeDetector(answers, NAMES), replace(data, class_names=(*NAMES[:4], "rust")))
    with pytest.raises(DataError, match=r"a model that knows patch, too, evaluate both with --single-class"):
        validate(FakeDetector(answers, NAMES[:4]), data)


def test_validate_as_one_class(dataset):
    data, _, answers = dataset
    merged = [Prediction(a.boxes, a.scores, np.zeros_like(a.labels)) for a in answers]
    result = validate(FakeDetector(merged, ["anomaly"]), data, settings=ValidationSettings(single_class=True))
    assert [c.name for c in result.metrics.classes] == ["defect"]
    assert result.metrics.boxes == sum((~r.crowd).sum() for r in data.split("val").records)
    # A box that answers with two classes is one detection here.
    twice = [
        Prediction(np.concatenate([a.boxes] * 2), np.concatenate([a.scores] * 2), np.tile(a.labels, 2)) for a in answers
    ]
    again = validate(FakeDetector(twice, NAMES), data, settings=ValidationSettings(single_class=True))
    assert again.metrics.to_dict() == result.metrics.to_dict()


def test_validate_refuses_what_cannot_be_measured(dataset):
    from agssp_zoo.training.data import Dataset

    data, _, answers = dataset
    with pytest.raises(DataError, match=r"Model \(2\): crack, rust\. Data \(6\)"):
        validate(FakeDetector(answers, ["crack", "rust"]), data)
    with pytest.raises(DataError, match="no split 'test'"):
        validate(FakeDetector(answers, NAMES), data, split="test")
    bare = [r for r in data.records if not len(r.labels)]
    with pytest.raises(DataError, match=r"has a label.* Sound surfaces are measured as a split.*--split test"):
        validate(FakeDetector(answers, NAMES), Dataset(NAMES, tuple(bare)))
    # Defect-free images alone can be measured when the data set has labels elsewhere.
    labelled_training = [r for r in data.records if len(r.labels) and r.split == "train"]
    clean = [r for r in bare if r.split == "val"]
    assert clean and labelled_training
    result = validate(FakeDetector(answers, NAMES), Dataset(NAMES, (*labelled_training, *clean)))
    assert result.metrics.boxes == 0 and result.metrics.clean_images == len(clean)
    Path(data.records[10].path).write_bytes(b"no image")
    with pytest.raises(Exception, match=r"10\.png"):
        validate(FakeDetector(answers, NAMES), data)


def test_unreadable_images_within_the_tolerance_are_left_out_and_named(dataset, tmp_path):
    data, truth, answers = dataset
    for number in (10, 20):
        Path(data.records[number].path).write_bytes(b"no image")
    detector = FakeDetector(answers, NAMES)
    with pytest.raises(DataError, match=r"2 of 26 images cannot be read, more than the tolerance of 5.00%: .*10\.png"):
        validate(detector, data, settings=ValidationSettings(tolerance=0.05))
    result = validate(detector, data, settings=ValidationSettings(tolerance=0.1, batch=1))
    kept = [number for number in range(4, 30) if number not in (10, 20)]
    expected = evaluate([truth[i] for i in kept], [answers[i] for i in kept], NAMES, conf=0.001)
    assert result.metrics.map50_95 == expected.map50_95 and result.metrics.images == 24
    assert result.to_dict()["data"]["unreadable"] == ["10", "20"]
    _, page = result.save(tmp_path / "out")
    assert "2 images cannot be read and are left out: 10, 20." in page.read_text()


# --- the command ----------------------------------------------------------------------------------------------------


def write_onnx(path, config, answer):
    """A detector's ONNX file that answers every image alike, as the contract of inputs and outputs has it."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    found = len(answer.scores)
    n = config.postprocess.max_det
    answer = Prediction(
        np.pad(answer.boxes, ((0, n - found), (0, 0))), np.pad(answer.scores, (0, n - found)),
        np.pad(answer.labels, (0, n - found)),
    )  # fmt: skip
    constants = {
        "b": answer.boxes.astype(np.float32)[None], "s": answer.scores.astype(np.float32)[None],
        "l": answer.labels.astype(np.int64)[None], "c": np.array([found], np.int64),
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "n": np.array([n], np.int64),
        "four": np.array([4], np.int64), "conf_threshold": np.array([0.25], np.float32),
        "iou_threshold": np.array([0.7], np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "n", "four"], ["bn4"], axis=0),
        helper.make_node("Concat", ["batch", "n"], ["bn"], axis=0),
        helper.make_node("Expand", ["b", "bn4"], ["boxes"]),
        helper.make_node("Expand", ["s", "bn"], ["scores"]),
        helper.make_node("Expand", ["l", "bn"], ["labels"]),
        helper.make_node("Expand", ["c", "batch"], ["count"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "constant",
        [value("images", TensorProto.UINT8, ["batch", "height", "width", 3]),
         value("conf_threshold", TensorProto.FLOAT, [1]), value("iou_threshold", TensorProto.FLOAT, [1])],
        [value("boxes", TensorProto.FLOAT, ["batch", n, 4]), value("scores", TensorProto.FLOAT, ["batch", n]),
         value("labels", TensorProto.INT64, ["batch", n]), value("count", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, text in (("config", config.to_json()), ("contract_version", "1"), ("outputs", "detections")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    onnx.save(model, path)


def yolo_folder(path, names, boxes):
    """A YOLO data set whose images, 64 x 64, all hold the same boxes: (class, x1, y1, x2, y2)."""
    for kind in ("images/val", "labels/val"):
        (path / kind).mkdir(parents=True)
    lines = [
        f"{label} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}"
        for label, x1, y1, x2, y2 in boxes
    ]
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path / f"images/val/{index}.png")
        (path / f"labels/val/{index}.txt").write_text("\n".join(lines))
    listed = "\n".join(f"  {i}: {name}" for i, name in enumerate(names))
    (path / "data.yaml").write_text(f"path: .\nval: images/val\nnames:\n{listed}\n")
    return path


def test_the_command_measures_an_onnx_model(tmp_path, capsys, monkeypatch):
    from agssp_zoo.cli import main
    from agssp_zoo.folder import sha256_file, write_folder

    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24), (1, 32, 32, 56, 56)])
    config = ModelConfig("toy", "yolov8_n", "detector", class_names=("crack", "pit"))  # the other order
    answer = Prediction(np.array([[8, 8, 24, 24], [32, 32, 56, 40]]), np.array([0.9, 0.6]), np.array([1, 0]))
    model = write_folder(tmp_path / "model", config, {"model.onnx": lambda path: write_onnx(path, config, answer)})
    arguments = ["val", "--data", str(data), "--model", str(model), "--size", "64", "--out", str(tmp_path / "out")]

    assert main([*arguments, "--batch", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "crack" in printed.out and str(tmp_path / "out" / "report.html") in printed.out
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(c["name"], c["ap50"]) for c in values["classes"]] == [("pit", 1.0), ("crack", 0.0)]
    assert values["images"] == 5 and values["engine"] == "onnx" and values["map50"] == 0.5
    assert values["model"] == {
        "name": "toy", "path": str(model), "file": "model.onnx", "sha256": sha256_file(model / "model.onnx"),
    }  # fmt: skip
    assert [c["advice"]["reachable"] for c in values["classes"]] == [True, False]
    assert values["classes"][0]["advice"]["false_alarms_per_image"] == 0.0

    assert main([*arguments, "--json", "--model", str(model / "model.onnx")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["map50"] == 0.5 and again["model"]["sha256"] == values["model"]["sha256"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert main([*arguments, "--json", "--model=~/model/model.onnx"]) == 0, "no shell expands it behind an ="
    assert json.loads(capsys.readouterr().out)["model"]["sha256"] == values["model"]["sha256"]


@pytest.mark.parametrize("out", ["file", "file/deeper/still", "link"])
def test_the_command_asks_first_whether_it_can_write(tmp_path, capsys, out):
    from agssp_zoo.cli import main

    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    # Before the data and the model are looked for.
    assert main(["val", "--data", "no/data", "--model", "no/model", "--out", str(tmp_path / out)]) == 2
    message = capsys.readouterr().err
    assert "--out" in message and ("is a link to nothing" if out == "link" else "file is a file") in message


def test_the_command_refuses_other_classes(tmp_path, capsys):
    from agssp_zoo.cli import main
    from agssp_zoo.folder import write_folder

    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24)])
    config = ModelConfig("toy", "yolov8_n", "detector", class_names=("anomaly",))
    answer = Prediction(np.array([[8, 8, 24, 24]]), np.array([0.9]), np.array([0]))
    model = write_folder(tmp_path / "model", config, {"model.onnx": lambda path: write_onnx(path, config, answer)})
    arguments = ["val", "--data", str(data), "--model", str(model), "--size", "64", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "Model (1): anomaly" in message and "Data (2): pit, crack" in message and "--single-class" in message
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--single-class", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map50"] == 1.0
    assert main([*arguments, "--miss-rate", "5"]) == 2 and "miss_rate" in capsys.readouterr().err
    assert (
        main([*arguments, "--images", "-1"]) == 2 and "--images is -1; it must be at least 0" in capsys.readouterr().err
    )


def test_the_command_measures_a_torch_model(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from agssp_zoo import models
    from agssp_zoo.cli import main
    from agssp_zoo.folder import write_folder

    torch.manual_seed(0)
    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24)])
    config = models.default_config("yolov8_n", class_names=("pit", "crack"), name="toy")
    module = models.build(config)
    write_folder(tmp_path / "model", config, {"model.safetensors": lambda p: models.save_weights(module, p, config)})
    code = main(
        ["val", "--data", str(data), "--model", str(tmp_path / "model"), "--engine", "pytorch", "--size", "64",
         "--out", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    values = json.loads(capsys.readouterr().out)
    assert code == 0 and values["engine"] == "pytorch" and values["model"]["file"] == "model.safetensors"
    assert values["detections"] > 0 and values["classes_without_boxes"] == ["crack"]


def test_a_missing_library_is_told_before_the_run(dataset, monkeypatch):
    data, _, answers = dataset
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    detector = FakeDetector(answers, NAMES)
    with pytest.raises(MissingDependencyError, match=r"agssp-zoo\[train\]"):
        validate(detector, data)
    assert not detector.batches
    assert quick_map(*random_case(0), 6).map50 > 0  # needs numpy alone


def test_scoring_imports_no_torch_and_the_command_no_numpy():
    code = (
        "import sys, agssp_zoo.training.evaluation.cli as cli, argparse\n"
        "cli.add_arguments(argparse.ArgumentParser())\n"
        "assert 'numpy' not in sys.modules\n"
        "from agssp_zoo.training.evaluation import evaluate, quick_map, write_report, validate\n"
        "assert 'torch' not in sys.modules and 'faster_coco_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
