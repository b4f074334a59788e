"""Resizing against OpenCV itself, and its cost."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.resize import resize, resize_area, resize_linear

cv2 = pytest.importorskip("cv2")

SHRINK = [
    ((1000, 1280), (500, 640)),  # by 2x2, OpenCV's own path
    ((900, 600), (300, 200)),  # by other whole factors
    ((800, 600), (200, 300)),
    ((640, 40), (2, 1)),  # a sum of more than 16 bits
    ((700, 900), (497, 640)),
    ((768, 768), (640, 640)),  # sixths: many sums are ties
    ((480, 640), (360, 480)),  # three quarters: ties that float32 holds exactly
    ((256, 1600), (102, 640)),
    ((64, 64), (63, 63)),
    ((7, 5), (3, 2)),
    ((300, 3), (100, 1)),
    ((1, 100), (1, 64)),
]
GROW = [
    ((200, 200), (640, 640)),
    ((360, 480), (480, 640)),
    ((100, 77), (640, 492)),
    ((5, 7), (20, 30)),
    ((1, 1), (8, 8)),
]


def pictures(size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """Noise, and something smooth."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return [noise, cv2.GaussianBlur(noise, (0, 0), 3)]


def assert_like_opencv(image: np.ndarray, size: tuple[int, int], method: Any, flag: int) -> None:
    expected = cv2.resize(image, size[::-1], interpolation=flag).reshape(*size, 3)
    got = resize(image, size, method)
    assert got.dtype == np.uint8 and got.shape == (*size, 3)
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= 1, (image.shape, size)
    assert (difference > 0).mean() <= 0.005, (image.shape, size)


@pytest.mark.parametrize(("before", "after"), SHRINK)
def test_shrinking_is_inter_area(before, after):
    for image in pictures(before, 0):
        assert_like_opencv(image, after, "opencv", cv2.INTER_AREA)
        assert_like_opencv(image, after, "opencv_linear", cv2.INTER_LINEAR)


@pytest.mark.parametrize(("before", "after"), GROW)
def test_growing_is_inter_linear(before, after):
    for image in pictures(before, 1):
        assert_like_opencv(image, after, "opencv", cv2.INTER_LINEAR)
        assert_like_opencv(image, after, "opencv_linear", cv2.INTER_LINEAR)


def test_any_size():
    generator = np.random.default_rng(2)
    for _ in range(120):
        height, width = (int(n) for n in generator.integers(1, 400, 2))
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = tuple(int(n) for n in generator.integers(1, 400, 2))
        assert_like_opencv(image, size, "opencv_linear", cv2.INTER_LINEAR)
        size = (min(size[0], height), min(size[1], width))
        assert_like_opencv(image, size, "opencv", cv2.INTER_AREA)


@pytest.mark.parametrize("factor", [98, 186, 206])
def test_factors_that_opencv_takes_for_no_whole_ones(factor):
    """Its scale is 1 / (1 / factor); means that lie between two gray levels then fall to another side."""
    image = np.random.default_rng(factor).integers(0, 200, (400, factor, 3), dtype=np.uint8)
    image[:, 0] = 0
    image[:, 0] = (factor // 2 - image.astype(int).sum(axis=1)) % factor
    assert (image.astype(int).sum(axis=1) % factor == factor // 2).all()
    assert_like_opencv(image, (400, 1), "opencv", cv2.INTER_AREA)
    assert_like_opencv(image.transpose(1, 0, 2).copy(), (1, 400), "opencv", cv2.INTER_AREA)


def test_pillow_is_antialiased_and_close_to_the_mean():
    image = pictures((1000, 1300), 3)[1]
    for size in ((500, 640), (333, 433)):
        difference = resize(image, size, "pillow").astype(float) - resize_area(image, size)
        assert abs(difference.mean()) < 0.5 and np.abs(difference).mean() < 4
    grown = resize(image[:100, :100], (640, 640), "pillow")
    expected = Image.fromarray(image[:100, :100]).resize((640, 640), Image.Resampling.BILINEAR)
    assert np.array_equal(grown, np.asarray(expected))


def test_nothing_to_do_and_wrong_arguments():
    image = np.zeros((20, 30, 3), np.uint8)
    assert resize(image, (20, 30)) is image
    with pytest.raises(InvalidArgumentError, match="uint8"):
        resize(image.astype(float), (10, 10))
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        resize(image, (0, 10))
    with pytest.raises(InvalidArgumentError, match="nearest"):
        resize(image, (10, 10), "nearest")
    with pytest.raises(InvalidArgumentError, match="grows"):
        resize_area(image, (40, 30))
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert resize_linear(gray, (6, 8)).shape == (6, 8, 1)


@pytest.mark.parametrize(("size", "method", "limit"), [((500, 640), "opencv", 30), ((499, 639), "opencv", 30)])
def test_cost(size, method, limit):
    """1280x1000 to 640 in less than 30 ms of one processor (it takes 4 and 9 on a free one)."""
    image = np.random.default_rng(0).integers(0, 256, (1000, 1280, 3), dtype=np.uint8)
    spent = []
    for _ in range(8):
        start = time.process_time()
        resize(image, size, method)
        spent.append((time.process_time() - start) * 1e3)
    assert min(spent) < limit
