"""Placing images on the canvas, tiles, boxes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agssp_zoo.config import Preprocess
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.geometry import Letterbox, Placement, box_iou, nms, prepare
from agssp_zoo.tiling import tiles

PARITY = Path(__file__).parents[1].parent / "shared" / "reference" / "parity"
AUTHORS = Preprocess(size=(640, 640), resize="opencv", rounding="floor")


@pytest.mark.skipif(not PARITY.is_dir(), reason="needs the reference images")
@pytest.mark.parametrize(("name", "offset"), [("square", (0, 0)), ("big", (71, 0)), ("small", (80, 0))])
def test_the_authors_input(name, offset):
    """The network input of the authors' pipeline, by the checksums and corner that were recorded from it."""
    with Image.open(PARITY / f"image_{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    canvas, placement = prepare(pixels, AUTHORS)
    assert placement.offset == offset
    with np.load(PARITY / "yolov8_s.npz") as recorded:
        scale = recorded[f"img_{name}/meta_scale_factor"]  # horizontal, vertical
        sums = recorded[f"img_{name}/input_checksum"]
        corner = recorded[f"img_{name}/normalised_corner"]
    assert placement.scale == pytest.approx(scale[::-1], abs=1e-6)
    x = canvas.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    assert np.allclose(x[:, :8, :8], corner, atol=1e-6)
    assert float(x.sum(dtype=np.float64)) == pytest.approx(sums[0], rel=1e-7)
    assert float((x.astype(np.float64) ** 2).sum()) == pytest.approx(sums[1], rel=1e-7)


@pytest.mark.parametrize(
    ("settings", "size", "image", "expected"),
    [
        # A strip is padded to the stride only: 1600x256 runs at 640x128.
        (Preprocess(), None, (256, 1600), Placement((256, 1600), (102, 640), (128, 640), (13, 0))),
        (Preprocess(), None, (640, 640), Placement((640, 640), (640, 640), (640, 640))),
        (Preprocess(), 650, (650, 500), Placement((650, 500), (650, 500), (672, 512), (11, 6))),
        (Preprocess(), (320, 640), (256, 1600), Placement((256, 1600), (102, 640), (320, 640), (109, 0))),
        (AUTHORS, None, (700, 900), Placement((700, 900), (497, 640), (640, 640), (71, 0))),
        (AUTHORS, 640, (700, 900), Placement((700, 900), (497, 640), (512, 640), (7, 0))),
        (Preprocess(upscale=False), None, (100, 90), Placement((100, 90), (100, 90), (128, 96), (14, 3))),
        (Preprocess(pad_position="top_left"), None, (480, 500), Placement((480, 500), (614, 640), (640, 640))),
        (Preprocess(fit="stretch", size=(224, 224)), None, (99, 400), Placement((99, 400), (224, 224), (224, 224))),
        (Preprocess(), None, (2, 5000), Placement((2, 5000), (1, 640), (32, 640), (15, 0))),
    ],
)
def test_places(settings, size, image, expected):
    assert Letterbox(settings, size).place(image) == expected


def test_canvas_and_boxes():
    """A white rectangle on black lies on the canvas where its box says, and the box comes back."""
    generator = np.random.default_rng(0)
    for resize in ("pillow", "opencv"):
        for _ in range(20):
            height, width = (int(n) for n in generator.integers(60, 900, 2))
            image = np.zeros((height, width, 3), np.uint8)
            x1, y1 = int(generator.integers(0, width - 40)), int(generator.integers(0, height - 40))
            x2, y2 = int(generator.integers(x1 + 30, width + 1)), int(generator.integers(y1 + 30, height + 1))
            image[y1:y2, x1:x2] = 255
            before = image.copy()
            canvas, placement = prepare(image, Preprocess(size=320, resize=resize))
            assert canvas.shape == (*placement.canvas, 3) and all(side % 32 == 0 for side in placement.canvas)
            assert max(placement.canvas) == 320 and canvas.flags.writeable
            (top, left), (h, w) = placement.offset, placement.resized
            inside = np.zeros(placement.canvas, bool)
            inside[top : top + h, left : left + w] = True
            assert (canvas[~inside] == 114).all()
            rows, columns = np.nonzero((canvas[..., 0] > 127) & inside)
            found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
            box = np.array([[x1, y1, x2, y2]], np.float32)
            slack = 1.01 / np.array(placement.scale)[[1, 0, 1, 0]]
            assert (np.abs(placement.to_original(found) - box) <= slack).all()
            assert (image == before).all()


def test_boxes_are_clipped_to_the_image():
    placement = Letterbox(Preprocess()).place((256, 1600))
    clipped = placement.to_original(np.array([[-50, -50, 700, 700]], np.float32))
    assert clipped.tolist() == [[0, 0, 1600, 256]] and clipped.dtype == np.float32
    assert placement.to_original(np.array([[-50, 0, 700, 7]], np.float32), clip=False)[0, 0] == -125
    assert placement.to_original(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_a_canvas_shares_no_memory_with_the_image():
    image = np.full((640, 640, 3), 9, np.uint8)
    image.flags.writeable = False
    canvas, _ = prepare(image, Preprocess())
    canvas[:] = 0
    assert image.min() == 9


@pytest.mark.parametrize("size", [0, -640, 3.5, "640", (640, 100), (640, 640, 3), (0, 32), True, [640, "a"]])
def test_wrong_sizes(size):
    with pytest.raises(InvalidArgumentError, match="size"):
        Letterbox(Preprocess(), size)


@pytest.mark.parametrize("settings", [{}, {"fit": "stretch"}])
@pytest.mark.parametrize("size", [1_000_000, (32_000, 32_000)])
def test_a_canvas_that_no_memory_holds(settings, size):
    with pytest.raises(InvalidArgumentError, match=r"makes a network input of \d+x\d+ pixels; .* give a smaller"):
        Letterbox(Preprocess(**settings), size).place((480, 640))
    assert Letterbox(Preprocess(), 100_000).place((64, 100_000)).canvas == (64, 100_000), "a long strip is none"


@pytest.mark.parametrize(
    ("image", "tile", "overlap"), [((1000, 3000), 640, 0.2), ((641, 639), 640, 0.5), ((50, 7000), (64, 512), 0.0)]
)
def test_tiles_cover_the_image(image, tile, overlap):
    height, width = (tile, tile) if isinstance(tile, int) else tile
    covered = np.zeros(image, int)
    for top, left, bottom, right in tiles(image, tile, overlap):
        assert (bottom - top, right - left) == (min(height, image[0]), min(width, image[1]))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    if overlap and min(image) > 2 * min(height, width) * overlap:
        assert (covered > 1).any()
    lefts = sorted({left for _, left, _, _ in tiles(image, tile, overlap)})
    assert all(b - a <= width * (1 - overlap) for a, b in itertools.pairwise(lefts))


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0.2), (640, 0.95), (640, -0.1), ((640, 0), 0.2), ("big", 0.2)])
def test_wrong_tiles(tile, overlap):
    with pytest.raises(InvalidArgumentError, match=r"tile|overlap"):
        list(tiles((100, 100), tile, overlap))


def test_nms_is_torchvisions():
    torch = pytest.importorskip("torch")
    from agssp_zoo.models.postprocess import nms as torch_nms

    generator = np.random.default_rng(5)
    for size in (0, 1, 200):
        corner = generator.uniform(0, 100, (size, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(5, 60, (size, 2))], 1).astype(np.float32)
        scores = generator.uniform(0, 1, size).astype(np.float32).round(2)
        labels = generator.integers(0, 3, size)
        for iou in (0.3, 0.7):
            order = np.argsort(-scores, kind="stable")
            expected = torch_nms(*(torch.from_numpy(a[order]) for a in (boxes, scores, labels)), iou)
            assert nms(boxes, scores, labels, iou).tolist() == order[expected.numpy()].tolist()


def test_iou_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    others = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    assert box_iou(boxes, others) == pytest.approx(np.array([[1 / 3, 0, 1], [0, 0, 0]]))
