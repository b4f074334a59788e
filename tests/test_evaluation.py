"""Evaluation: COCO's numbers, thresholds, kinds of errors."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time

import numpy as np
import pytest
from random_cases import NAMES, make, random_case

from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.evaluation import GroundTruth, Prediction, class_mapping, coco, evaluate, quick_map
from agssp_zoo.training.evaluation.coco import coco_dicts
from agssp_zoo.training.evaluation.curves import between, wilson
from agssp_zoo.training.evaluation.errors import KINDS
from agssp_zoo.training.evaluation.inputs import build_table
from agssp_zoo.training.evaluation.settings import ValidationSettings


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
