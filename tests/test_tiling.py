"""Tiles: what a border cuts is found once, what lies side by side stays two; with drawn defects of exact boxes."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from agssp_zoo.config import ModelConfig, Postprocess, Preprocess
from agssp_zoo.detector import Detector
from agssp_zoo.engines.base import RawDetections
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.geometry import nms
from agssp_zoo.seams import merge_tiles
from agssp_zoo.tiling import Tiling, tiles

TILE = 320
"""With the overlap of 0.2 the seams of the first tiles are x = 256..320 and 512..576."""


class SpotFinder:
    """An engine that answers the box of every connected bright spot, off by a pixel or two; gray tells its class."""

    name = "spots"
    max_det = 100

    def __init__(self, jitter: float = 1.5, size: object = TILE) -> None:
        self.config = ModelConfig(
            *("yolov8_n.spots", "yolov8_n", "detector"),
            class_names=("light", "bright"),
            preprocess=Preprocess(size=size),
            postprocess=Postprocess(max_det=50),
        )
        self.rng, self.jitter = np.random.default_rng(0), jitter
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images, *, conf=None, iou=None, max_det=None, sizes=None):
        self.shapes.append(images.shape[:3])
        shape = (len(images), self.max_det)
        boxes, scores = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.float32)
        labels, count = np.zeros(shape, np.int64), np.zeros(len(images), np.int64)
        for i, image in enumerate(images):
            gray = image[..., 0]
            found, _ = ndimage.label(gray > 150, np.ones((3, 3)))
            for k, (rows, columns) in enumerate(ndimage.find_objects(found)[: self.max_det]):
                exact = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float32)
                boxes[i, k] = exact + self.rng.uniform(-self.jitter, self.jitter, 4)
                boxes[i, k, 2:] = np.maximum(boxes[i, k, 2:], boxes[i, k, :2] + 1)
                scores[i, k] = self.rng.uniform(0.5, 0.9)
                labels[i, k] = int(gray[rows, columns].max() > 230)
                count[i] = k + 1
            order = np.argsort(-scores[i], kind="stable")
            boxes[i], scores[i], labels[i] = boxes[i][order], scores[i][order], labels[i][order]
        return RawDetections(boxes, scores, labels, count)


def draw(height: int, width: int, *boxes: tuple[int, int, int, int], level: int = 255) -> np.ndarray:
    image = np.full((height, width), 60, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = level
    return image


def line(height: int, width: int, *ends: tuple[int, int, int, int]) -> tuple[np.ndarray, list[list[int]]]:
    """Slanting scratches three pixels wide, and their boxes."""
    whole, boxes = np.zeros((height, width), np.uint8), []
    for end in ends:
        one = Image.new("L", (width, height))
        ImageDraw.Draw(one).line(end, fill=255, width=3)
        rows, columns = np.nonzero(np.asarray(one))
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        whole = np.maximum(whole, np.asarray(one))
    return np.maximum(whole, 60), [list(map(int, box)) for box in boxes]


def find(image: np.ndarray, **options: object) -> np.ndarray:
    """The boxes found, from left to right and top to bottom."""
    runner = Detector(SpotFinder())
    boxes = runner.predict(image, **{"tile": TILE, **options})[0].boxes
    return boxes[np.lexsort((boxes[:, 1].round(), boxes[:, 0].round()))]


def assert_found(found: np.ndarray, boxes: list, within: float = 3.0) -> None:
    assert len(found) == len(boxes), found.round().tolist()
    for box in boxes:
        assert np.abs(found - np.array(box)).max(1).min() <= within, (box, found.round().tolist())


WHERE = {
    "inside a tile": (40, 40, 90, 80),
    "on a vertical seam, larger than the overlap": (150, 60, 450, 100),
    "on a vertical seam, ends in it": (200, 60, 300, 100),
    "begins in a vertical seam": (270, 60, 400, 100),
    "within the seam": (270, 60, 305, 100),
    "on a horizontal seam": (60, 150, 100, 450),
    "ends in a horizontal seam": (60, 200, 100, 300),
    "on a corner": (200, 200, 400, 400),
    "ends in a corner": (200, 200, 300, 300),
    "within a corner": (265, 265, 310, 310),
    "beside a corner": (200, 270, 400, 300),
    "across the snapped last tile": (500, 600, 680, 640),
    "to the image's border": (500, 100, 700, 140),
    "over three tiles": (100, 400, 690, 420),
    "over the whole image": (2, 2, 698, 698),
}


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("where", WHERE)
def test_a_defect_is_found_once(where: str, overlap: float) -> None:
    for seed in range(3):
        finder = SpotFinder()
        finder.rng = np.random.default_rng(seed)
        found = Detector(finder).predict(draw(700, 700, WHERE[where]), tile=TILE, overlap=overlap)[0]
        assert_found(found.boxes, [WHERE[where]])
        assert found.scores[0] <= 0.9 and found.labels.tolist() == [1]


@pytest.mark.parametrize(
    "ends",
    [
        (20, 100, 1380, 110),  # nearly along the rows, through five tiles
        (20, 20, 1380, 690),  # slanting through them
        (20, 680, 1380, 30),
        (300, 10, 330, 690),  # steep, along a seam
        (30, 30, 690, 690),  # through the corners
        (100, 650, 400, 660),
    ],
)
def test_a_long_scratch_over_several_tiles_is_found_once(ends: tuple[int, int, int, int]) -> None:
    image, boxes = line(700, 1400, ends)
    assert_found(find(image), boxes)
    assert_found(find(image, overlap=0.4), boxes)


@pytest.mark.parametrize(
    "pair",
    [
        ((200, 60, 285, 100), (295, 60, 380, 100)),  # one ends where the other begins, inside the overlap
        ((150, 60, 450, 90), (150, 94, 450, 124)),  # side by side across the seam
        ((150, 60, 300, 90), (280, 94, 450, 124)),  # past each other
        ((200, 60, 310, 100), (330, 60, 420, 100)),
        ((240, 60, 250, 100), (330, 60, 420, 100)),
        ((150, 60, 450, 63), (150, 66, 450, 69)),  # two thin scratches, three pixels apart
        ((200, 200, 290, 400), (300, 200, 400, 400)),  # at a corner
        ((200, 200, 290, 290), (300, 300, 400, 400)),
        ((60, 200, 100, 285), (60, 295, 100, 380)),
    ],
)
@pytest.mark.parametrize("overlap", [0.2, 0.35])
def test_two_defects_side_by_side_stay_two(pair: tuple, overlap: float) -> None:
    assert_found(find(draw(700, 700, *pair), overlap=overlap), list(pair))


def test_slanting_neighbours_stay_two() -> None:
    image, boxes = line(700, 1000, (40, 40, 900, 400), (40, 200, 900, 560))
    assert_found(find(image), boxes)


def test_classes_are_kept_apart() -> None:
    image = draw(320, 700, (200, 60, 288, 100))
    image[60:100, 288:420] = 200
    rules = Tiling(TILE)
    windows = rules.windows((320, 700))
    found = [
        (np.array([[200, 60, 320, 100]], np.float32), np.array([0.8], np.float32), np.array([0])),
        (np.array([[256, 60, 420, 100]], np.float32), np.array([0.9], np.float32), np.array([1])),
        (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)),
    ]
    boxes, scores, labels = rules.merge(found, (320, 700), 0.7)
    assert boxes.tolist() == [[256, 60, 420, 100], [200, 60, 320, 100]] and labels.tolist() == [1, 0]
    same = [(b, s, np.zeros_like(n)) for b, s, n in found]
    boxes, scores, labels = merge_tiles(same, windows, (320, 700), 0.7)
    assert boxes.tolist() == [[200, 60, 420, 100]] and scores.tolist() == [np.float32(0.9)]
    weak = [(b, s * np.float32(0.2) if i else s, n) for i, (b, s, n) in enumerate(same)]
    assert len(merge_tiles(weak, windows, (320, 700), 0.7)[0]) == 2, "noise does not stretch a good box"


def test_suppression_alone_leaves_pieces() -> None:
    """The comparison that the rule is there for: without it, most of the same defects are found twice or more."""
    alone = 0
    for box in WHERE.values():
        image = draw(700, 700, box)
        runner, found = Detector(SpotFinder()), []
        for top, left, bottom, right in tiles((700, 700), TILE):
            one = runner.predict(np.ascontiguousarray(image[top:bottom, left:right]))[0]
            found.append((one.boxes + np.array([left, top, left, top], np.float32), one.scores, one.labels))
        boxes, scores, labels = (np.concatenate(column) for column in zip(*found, strict=True))
        alone += len(nms(boxes, scores, labels, 0.7)) == 1
    assert alone <= 4


@pytest.mark.parametrize("batch", [1, 3])
def test_the_whole_image_helps_with_what_no_tile_sees(batch: int) -> None:
    """A bright frame is cut into strips that hang together at the corners; the tiles' own small spots stay."""
    image = draw(900, 900, (100, 100, 112, 112), (600, 20, 620, 40))
    image[200:880, 200:880] = 255
    image[215:865, 215:865] = 60
    found = find(image, tile_whole=True, overlap=0.1, batch=batch)
    large = [box for box in found if box[2] - box[0] > 300]
    assert len(large) == 1 and np.abs(large[0] - [200, 200, 880, 880]).max() <= 6
    small = [box for box in found if box[2] - box[0] < 60]
    assert len(small) == 2
    runner = Detector(SpotFinder())
    runner.predict(image, tile=TILE, tile_whole=True, batch=2)
    assert sum(shape[0] for shape in runner.engine.shapes) == 4 * 4 + 1
    runner.predict(draw(200, 200, (9, 9, 40, 40)), tile=TILE, tile_whole=True)
    assert runner.engine.shapes[-1][0] == 1 and len(runner.engine.shapes) <= 11, "an image of one tile is seen once"


def test_sixteen_bits(tmp_path: Path) -> None:
    """A 4096x1024 line image of 16 bits, from the file to the boxes."""
    boxes = [(630, 100, 700, 160), (2000, 500, 2900, 512), (4000, 900, 4090, 1020), (1000, 600, 1090, 780)]
    level = draw(1024, 4096, *boxes).astype(np.uint16) * 256 + 37
    Image.fromarray(level).save(tmp_path / "line.png")
    for source in (tmp_path / "line.png", str(tmp_path / "*.png"), level):
        found = Detector(SpotFinder(size=640)).predict(source, tile=640)[0]
        assert found.image_size == (1024, 4096)
        assert_found(found.boxes, boxes)
    assert found.plot().size == (4096, 1024)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 31}, "stride of 32"),
        ({"tile": (320, 16)}, "stride of 32"),
        ({"tile": 320, "overlap": 1.5}, "overlap=1.5"),
        ({"tile": 320, "overlap": -0.1}, "overlap=-0.1"),
        ({"tile": 320, "overlap": "much"}, "overlap='much'"),
        ({"overlap": 2}, "overlap=2"),
        ({"overlap": 0.3}, "give tile"),
        ({"batch": None}, "batch=None"),
        ({"max_det": True}, "max_det=True"),
        ({"tile": "large"}, "tile='large'"),
        ({"tile_whole": True}, "give tile"),
        ({"tile": (320, 1280), "size": (320, 320)}, "fixed canvas, 320 wide and 320 high"),
        ({"tile": 320, "size": (256, 640)}, "fixed canvas, 640 wide and 256 high"),
    ],
)
def test_tiles_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Detector(SpotFinder()).stream("nowhere.png", **options)


def test_a_fixed_canvas_of_the_tile_s_shape_is_fine() -> None:
    runner = Detector(SpotFinder(size=(320, 320)))
    assert_found(runner.predict(draw(320, 900, (200, 60, 400, 100)), tile=320)[0].boxes, [(200, 60, 400, 100)])
    assert {shape[1:] for shape in runner.engine.shapes} == {(320, 320)}


def test_reading_ends_with_the_stream(tmp_path: Path) -> None:
    Image.fromarray(draw(700, 700, (10, 10, 60, 60))).save(tmp_path / "a.png")
    stream = Detector(SpotFinder()).stream([tmp_path / "a.png"] * 20, tile=TILE)
    next(stream)
    stream.close()
    del stream
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "agssp-zoo-prefetch"]


def test_many_tiles_cost_little_more_than_suppression() -> None:
    """Memory and comparisons of tiles times boxes times boxes would take minutes of a strip of 30,000 pixels."""
    size, rng = (10_000, 30_000), np.random.default_rng(0)
    windows = Tiling(640, 0.2).windows(size)
    found = []
    for top, left, bottom, right in windows:
        centres = rng.uniform([left + 60, top + 60], [right - 60, bottom - 60], (8, 2))
        halves = rng.uniform(4, 30, (8, 2))
        boxes = np.concatenate([centres - halves, centres + halves], 1).astype(np.float32)
        found.append((boxes, np.sort(rng.uniform(0, 1, 8))[::-1].astype(np.float32), rng.integers(0, 2, 8)))
    started = time.process_time()
    nms(*(np.concatenate(column) for column in zip(*found, strict=True)), 0.5)
    plain, started = time.process_time() - started, time.process_time()
    merge_tiles(found, windows, size, 0.5)
    merged = time.process_time() - started
    assert merged < 3 * plain, (plain, merged)
