"""AUROC, AP, best F1 and AUPRO against values computed by hand and against scikit-learn, and the error of the bins."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.training.anomaly.grid import enlarge
from agssp_zoo.training.anomaly.metrics import (
    Counts,
    PixelCounter,
    ScoreBins,
    aupro,
    auroc,
    average_precision,
    best_f1,
    image_figures,
)


def counts(scores: list[float], positive: list[int]) -> Counts:
    return Counts.of(np.array(scores), np.array(positive, bool))


def test_figures_of_four_samples_are_those_computed_by_hand() -> None:
    # Falling: 0.9 +, 0.7 -, 0.6 +, 0.2 -. Of the four pairs three are in order.
    made = counts([0.9, 0.6, 0.7, 0.2], [1, 1, 0, 0])
    assert auroc(made) == pytest.approx(3 / 4)
    assert average_precision(made) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert best_f1(made) == pytest.approx(2 * 2 / (2 * 2 + 1 + 0))  # at 0.6: 2 found, 1 false, none missed


def test_equal_scores_count_half_and_are_one_step() -> None:
    # One level holds a positive and a negative; below it a negative and a positive.
    made = counts([0.5, 0.5, 0.3, 0.1], [1, 0, 0, 1])
    assert auroc(made) == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert average_precision(made) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert best_f1(made) == pytest.approx(2 * 2 / (4 + 2))  # everything: 2 found, 2 false
    same = counts([0.4] * 5, [1, 0, 0, 0, 0])
    assert auroc(same) == pytest.approx(0.5)
    assert average_precision(same) == pytest.approx(0.2)


@pytest.mark.parametrize("positive", [[0, 0, 0], [1, 1, 1]])
def test_samples_of_one_kind_have_no_figures(positive: list[int]) -> None:
    made = counts([0.1, 0.2, 0.3], positive)
    assert [auroc(made), average_precision(made), best_f1(made), aupro(made)] == [None] * 4
    assert image_figures(np.array([0.1, 0.2, 0.3]), np.array(positive, bool)) == {}
    counter = PixelCounter(ScoreBins([np.array([0.0, 1.0])], total=2))
    counter.add(np.zeros((4, 4), np.float32), np.full((4, 4), bool(positive[0])))
    assert counter.figures() == {}


def test_a_reversed_ranking_is_worth_nothing() -> None:
    made = counts([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0])
    assert auroc(made) == 0.0
    assert average_precision(made) == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4)


@pytest.mark.parametrize(("scores", "positive"), [([0.1], [1, 0]), ([0.1, np.nan], [1, 0]), ([np.inf, 0.1], [1, 0])])
def test_scores_that_cannot_be_ranked_are_refused(scores: list[float], positive: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="finite"):
        counts(scores, positive)


def test_figures_of_many_samples_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    positive = rng.random(4000) < 0.2
    scores = np.round(rng.normal(size=4000) + positive, 2)  # with many ties
    made = Counts.of(scores, positive)
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    assert auroc(made) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    assert average_precision(made) == pytest.approx(metrics.average_precision_score(positive, scores), abs=1e-12)
    assert best_f1(made) == pytest.approx((2 * precision * recall / (precision + recall + 1e-30)).max(), abs=1e-12)


# --- AUPRO ---------------------------------------------------------------------------------------------------------


def count_pixels(maps: list[np.ndarray], masks: list[np.ndarray]) -> PixelCounter:
    values = [np.asarray(values, np.float32) for values in maps]
    counter = PixelCounter(ScoreBins(values, total=sum(v.size for v in values)))
    for scores, mask in zip(values, masks, strict=True):
        counter.add(scores, np.asarray(mask, bool))
    return counter


def test_aupro_of_two_regions_is_that_computed_by_hand() -> None:
    # Ten sound pixels, a region of four (half of it found at 0.9, all at 0.4), a region of one (found at 0.6);
    # sound pixels at 0.7 (one), 0.5 (one) and 0.1 (eight).
    scores = [[0.9, 0.9, 0.7, 0.6, 0.5], [0.4, 0.4, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1]]
    mask = [[1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    counter = count_pixels([scores], [mask])
    assert counter.regions == 2
    # (false positive rate, overlap), falling thresholds: 0.9 (0, .25); 0.7 (.1, .25); 0.6 (.1, .75); 0.5 (.2, .75);
    # 0.4 (.2, 1); 0.1 (1, 1). Up to 0.3: .1 * .25 + .1 * .75 + .1 * 1.
    assert counter.figures()["aupro"] == pytest.approx((0.025 + 0.075 + 0.1) / 0.3)


def test_aupro_is_cut_between_two_levels() -> None:
    # All pixels in two levels: the curve goes (0, 0), (0, .5), then straight to (1, 1): at 0.3 it is at 0.65.
    counter = count_pixels([[[0.9, 0.2, 0.2, 0.2, 0.2, 0.2]]], [[[1, 1, 0, 0, 0, 0]]])
    assert counter.figures()["aupro"] == pytest.approx((0.5 + 0.65) / 2)
    assert aupro(Counts(np.array([1.0, 1.0]), np.array([4.0, 0.0])), limit=1.0) == pytest.approx(0.75)


def test_pixels_that_touch_at_a_corner_are_one_region_and_images_are_apart() -> None:
    corner = np.eye(3)
    assert count_pixels([corner], [corner]).regions == 1
    assert count_pixels([corner, corner], [corner, corner]).regions == 2
    assert count_pixels([np.eye(3)], [[[1, 0, 1], [0, 0, 0], [1, 0, 1]]]).regions == 4


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    # A large region is found, a pixel is not: pixel figures hardly notice, AUPRO is a half.
    scores, mask = np.zeros((20, 20)), np.zeros((20, 20))
    scores[:10, :10] = mask[:10, :10] = mask[15, 15] = 1
    scores[12:] += np.linspace(0.2, 0.4, 160).reshape(8, 20)
    scores[15, 15] = 0.0
    figures = count_pixels([scores], [mask]).figures()
    assert figures["pixel_auroc"] > 0.98
    assert figures["aupro"] < 0.6


# --- bins ----------------------------------------------------------------------------------------------------------


def _maps(kind: str) -> np.ndarray:
    values = np.random.default_rng(5).normal(size=(24, 16, 16)).astype(np.float32)
    if kind == "heavy-tailed":
        values = np.exp(2 * values)
    elif kind == "narrow":
        values = (0.5 + values * 6e-4).astype(np.float16).astype(np.float32)  # a handful of values
    elif kind == "outlier":
        values = values * 1e-5 + 1
        values[0, 0, 0] = 1000.0
    elif kind == "clipped":
        values = np.clip(values, 0, 1)
    return values


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("normal", 0.97),
        ("heavy-tailed", 0.97),
        ("narrow", 0.97),
        ("outlier", 0.97),
        ("clipped", 0.8),
        ("normal", 0.9999),
    ],
)
def test_bins_are_within_1e_4_of_every_pixel_sorted(kind: str, rank: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    maps, rng = _maps(kind), np.random.default_rng(8)
    middle = np.median(maps)
    limit = np.quantile(maps, rank) - middle
    counter = PixelCounter(ScoreBins([maps[:10], maps[10:]], total=maps.size))
    scores, masks, weights = [], [], []
    for values in maps:
        large = enlarge(values, (120, 150))
        noise = enlarge(rng.normal(size=(16, 16)).astype(np.float32), (120, 150))
        mask = (large - middle) / limit + 0.4 * noise > 1.3
        counter.add(large, mask)
        scores.append(large.ravel())
        masks.append(mask.ravel())
        weights.append(_region_weights(mask).ravel())
    true, score, weight = np.concatenate(masks), np.concatenate(scores), np.concatenate(weights)
    precision, recall, _ = metrics.precision_recall_curve(true, score)
    figures = counter.figures()
    assert 0 < true.mean() < 0.2
    assert figures["pixel_auroc"] == pytest.approx(metrics.roc_auc_score(true, score), abs=1e-4)
    assert figures["pixel_ap"] == pytest.approx(metrics.average_precision_score(true, score), abs=1e-4)
    assert figures["pixel_f1"] == pytest.approx((2 * precision * recall / (precision + recall + 1e-30)).max(), abs=1e-4)
    assert figures["aupro"] == pytest.approx(_aupro_by_sorting(score, true, weight), abs=1e-4)


def test_bins_serve_a_few_hundred_defective_pixels_in_a_heavy_tail() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    maps = np.exp(2 * rng.normal(size=(200, 16, 16))).astype(np.float32)
    limit = 0.8 * np.quantile(maps, 0.999)
    counter = PixelCounter(ScoreBins([maps], total=maps.size))
    scores, masks = [], []
    for values in maps:
        large = enlarge(values, (60, 70))
        mask = large * np.exp(0.3 * rng.normal(size=large.shape)) > limit
        counter.add(large, mask)
        scores.append(large.ravel())
        masks.append(mask.ravel())
    true, score = np.concatenate(masks), np.concatenate(scores)
    assert 300 < true.sum() < 1500
    figures = counter.figures()
    assert figures["pixel_auroc"] == pytest.approx(metrics.roc_auc_score(true, score), abs=1e-4)
    assert figures["pixel_ap"] == pytest.approx(metrics.average_precision_score(true, score), abs=1e-4)


def _region_weights(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    regions, count = label(mask, np.ones((3, 3)))
    weights = np.zeros(mask.shape)
    for number in range(1, count + 1):
        weights[regions == number] = 1 / (regions == number).sum()
    return weights


def _aupro_by_sorting(scores: np.ndarray, true: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last of each group of equal scores
    overlap = np.concatenate([[0], np.cumsum(weights[order])[ends]]) / weights.sum()
    rate = np.concatenate([[0], np.cumsum(~true[order])[ends]]) / (~true).sum()
    fine = np.linspace(0, 0.3, 200_001)
    return float(np.trapezoid(np.interp(fine, rate, overlap), fine) / 0.3)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    mask = np.zeros((300, 200), bool)
    mask[20:40, 30:60] = True
    large = enlarge(values, (300, 200))

    def peak(images: int) -> int:
        tracemalloc.start()
        counter = PixelCounter(ScoreBins([values], total=values.size))
        for _ in range(images):
            counter.add(large, mask)
        assert counter.figures()["pixel_auroc"] > 0
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(80), peak(240)  # 240 images are 14 million pixels, over 100 MB as numbers of 8 bytes
    assert many < few * 1.1
    assert many < 150e6


def test_samples_of_the_maps_place_the_bins_when_there_are_many() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    bins = ScoreBins(np.split(values, 20), total=len(values), most=20_000)
    assert bins.index(np.array([values.min()]))[0] == 0
    assert bins.index(np.array([values.max()]))[0] == len(bins) - 1
    assert bins.index(np.array([values.max() + 1, values.min() - 1])).tolist() == [len(bins) - 1, 0]
    share = np.bincount(bins.index(values), minlength=len(bins)).max() / len(values)
    assert share < 1e-3


def test_flat_maps_are_one_tie() -> None:
    counter = count_pixels([np.full((8, 8), 0.3)], [np.eye(8)])
    assert counter.figures() == {
        "pixel_auroc": 0.5,
        "pixel_ap": pytest.approx(1 / 8),
        "pixel_f1": pytest.approx(2 * 8 / (8 + 64)),
        "aupro": pytest.approx(0.15),
    }


@pytest.mark.parametrize("values", [[], [np.array([0.1, np.nan])], [np.array([])]])
def test_maps_that_cannot_be_binned_are_refused(values: list[np.ndarray]) -> None:
    with pytest.raises(InvalidArgumentError):
        ScoreBins(values, total=2)


# --- enlarging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "size"), [((15, 15), (200, 300)), ((3, 5), (7, 5)), ((1, 1), (4, 6)), ((16, 9), (8, 4)), ((1, 4), (9, 9))]
)
def test_maps_are_enlarged_as_torch_does(grid: tuple[int, int], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(size=grid).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear")[0, 0]
    assert np.abs(enlarge(values, size) - expected.numpy()).max() < 1e-5


def test_enlarged_maps_keep_their_range() -> None:
    values = np.random.default_rng(2).uniform(0.1, 0.9, (13, 11)).astype(np.float32)
    large = enlarge(values, (1001, 777))
    assert values.min() <= large.min() <= large.max() <= values.max()
    flat = enlarge(np.full((7, 7), np.float32(0.1)), (103, 97))
    assert (flat == np.float32(0.1)).all()
