"""Detector.predict and .stream: sources, order, batches, tiles, errors; with an engine that finds white rectangles."""

from __future__ import annotations

import gc
import inspect
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agssp_zoo.config import ModelConfig, Postprocess, Preprocess
from agssp_zoo.detections import Detections
from agssp_zoo.detector import Detector, load_detector
from agssp_zoo.engines.base import RawDetections
from agssp_zoo.errors import EngineError, ImageError, InvalidArgumentError, ModelNotFoundError, SourceError
from agssp_zoo.kept_images import KeptImages
from agssp_zoo.prefetch import prefetch
from agssp_zoo.registry import list_models, model_info


class WhiteFinder:
    """An engine whose answer can be checked: every column of white is a detection, its gray level the score."""

    name = "white"
    max_det = 5

    def __init__(self, **preprocess: object) -> None:
        self.config = ModelConfig(
            "yolov8_n.white",
            "yolov8_n",
            "detector",
            class_names=("bright", "brightest"),
            preprocess=Preprocess(**{"size": 320, **preprocess}),
            postprocess=Postprocess(max_det=4, conf=0.5),
        )
        self.shapes: list[tuple[int, ...]] = []
        self.sizes: list[object] = []

    def run(self, images, *, conf=None, iou=None, max_det=None, sizes=None):
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        self.shapes.append(images.shape[:3])
        self.sizes.append(sizes)
        boxes = np.zeros((len(images), self.max_det, 4), np.float32)
        scores = np.zeros((len(images), self.max_det), np.float32)
        labels = np.full((len(images), self.max_det), -1, np.int64)
        count = np.zeros(len(images), np.int64)
        for i, image in enumerate(images):
            light = image.min(2) > 150
            columns = np.flatnonzero(np.diff(np.concatenate([[0], light.any(0).astype(int), [0]])))
            found = []
            for x1, x2 in columns.reshape(-1, 2):
                rows = np.flatnonzero(light[:, x1:x2].any(1))
                score = float(image[rows[0] : rows[-1] + 1, x1:x2].max()) / 255
                found.append((score, (x1, rows[0], x2, rows[-1] + 1)))
            found.sort(key=lambda one: -one[0])
            kept = [one for one in found if one[0] > (0.5 if conf is None else conf)][: self.max_det]
            for k, (score, box) in enumerate(kept):
                boxes[i, k], scores[i, k], labels[i, k] = box, score, int(score > 0.9)
            count[i] = len(kept)
        return RawDetections(boxes, scores, labels, count)


def picture(height: int, width: int, *boxes: tuple[int, int, int, int], level: int = 255) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = level
    return image


def detector(**preprocess: object) -> Detector:
    return Detector(WhiteFinder(**preprocess))


def numbered(i: int) -> np.ndarray:
    """An image that tells its number by the left edge of its box, of one of three shapes."""
    return picture(*((200, 320), (320, 200), (96, 320))[i % 3], (10 + i, 10, 60 + i, 60))


def number(found: Detections) -> int:
    return round(float(found.boxes[0, 0])) - 10


# --- one image --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 320), (900, 700), (256, 1600), (64, 64)])
@pytest.mark.parametrize("preprocess", [{}, {"size": (320, 320), "resize": "opencv"}, {"pad_position": "top_left"}])
def test_boxes_are_in_pixels_of_the_original(size, preprocess):
    height, width = size
    box = (width // 4, height // 3, width // 2, height - 2)
    (found,) = detector(**preprocess).predict(picture(height, width, box))
    scale = max(size) / 320
    assert found.image_size == size and found.boxes.dtype == np.float32 and found.labels.dtype == np.int64
    assert np.abs(found.boxes[0] - box).max() <= max(1.0, 1.5 * scale)
    assert found.scores[0] > 0.9 and found.labels.tolist() == [1] and found[0].name == "brightest"
    assert set(found.timing) == {"read", "preprocess", "inference", "postprocess"}
    assert all(value >= 0 for value in found.timing.values())


def test_rectangular_and_fixed_canvases():
    runner = detector()
    strip = picture(256, 1600)
    for size, canvas in ((None, (64, 320)), (640, (128, 640)), ((256, 640), (256, 640)), (1600, (256, 1600))):
        runner.predict(strip, size=size)
        assert runner.engine.shapes[-1] == (1, *canvas)
    runner = detector(pad_after_normalize=True, pad_position="top_left")
    runner.predict([strip, strip], batch=2)
    assert runner.engine.sizes[-1].tolist() == [[51, 320]] * 2, "the valid sizes go with the images"


def test_thresholds_and_limits():
    boxes = [(10 + 40 * i, 10, 30 + 40 * i, 60) for i in range(7)]
    image = picture(100, 320)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = 180 + 10 * i
    runner = detector()
    assert len(runner.predict(image)[0]) == 4, "the config's max_det"
    found = runner.predict(image, max_det=2)[0]
    assert len(found) == 2 and found.scores[0] > found.scores[1] > 0.8
    assert len(runner.predict(image, conf=0.9, max_det=5)[0]) == 2
    assert len(runner.predict(picture(100, 320))[0]) == 0
    with pytest.raises(InvalidArgumentError, match="at most 5"):
        runner.predict(image, max_det=6)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"conf": 1.5}, {"conf": "high"}, {"conf": float("nan")}, {"iou": -0.1}, {"max_det": 0}, {"batch": 0}),
        *({"batch": 1.5}, {"size": 0}, {"size": (100, 100)}, {"tile": 0}, {"tile": 64, "overlap": 1.0}),
        {"channel_order": "gbr"},
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(arguments):
    with pytest.raises(InvalidArgumentError, match=next(reversed(arguments))):
        detector().stream("nowhere.png", **arguments)


def test_arrays_of_opencv():
    red = picture(64, 64)
    red[..., 0] = 255
    runner = detector()
    seen = []
    run = runner.engine.run
    runner.engine.run = lambda images, **kwargs: (seen.append(images[0, 32, 32].tolist()), run(images, **kwargs))[1]
    runner.predict(red)
    runner.predict(red[..., ::-1], channel_order="bgr")
    assert seen == [[255, 60, 60]] * 2
    found = runner.predict(red[..., ::-1], channel_order="bgr")[0]
    assert tuple(np.asarray(found.plot())[32, 32]) == (255, 60, 60)


# --- many images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_order_is_kept_and_batches_have_one_canvas(batch):
    for source in ([numbered(i) for i in range(25)], (numbered(i) for i in range(25))):
        runner = detector()
        found = runner.predict(source, batch=batch)
        assert [number(one) for one in found] == list(range(25))
        assert sum(shape[0] for shape in runner.engine.shapes) == 25
        if batch > 1:
            assert max(shape[0] for shape in runner.engine.shapes) == batch, "batches are filled"
        else:
            assert {shape[0] for shape in runner.engine.shapes} == {1}


def test_a_rare_canvas_does_not_wait_for_ever():
    """One image of another shape comes first, then many of one shape: it is answered after a bounded number."""
    pulled = 0

    def images():
        nonlocal pulled
        for i in range(1000):
            pulled += 1
            yield numbered(0) if i else numbered(2)

    stream = detector().stream(images(), batch=4)
    next(stream)
    assert pulled <= 16
    stream.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images of a line, the third of which is broken."""
    where = tmp_path / "line"
    where.mkdir()
    for i in range(6):
        Image.fromarray(numbered(i)).save(where / f"s{i}.png")
    (where / "s2.png").write_bytes((where / "s2.png").read_bytes()[:80])
    return where


@pytest.mark.parametrize("batch", [1, 3])
def test_a_bad_file_in_a_folder(folder, batch):
    """The others are done; what is bad is said at the end."""
    runner = detector()
    for source in (folder, str(folder / "*.png"), [folder]):
        with pytest.warns(UserWarning, match=r"1 files were left out.*s2\.png") as caught:
            found = runner.predict(source, batch=batch)
        assert len(caught) == 1 and [number(one) for one in found] == [0, 1, 3, 4, 5]
    assert [Path(one.path).name for one in found] == ["s0.png", "s1.png", "s3.png", "s4.png", "s5.png"]
    errors = []
    sources = [folder, folder / "none.png", folder / "s1.png"]
    found = runner.predict(sources, batch=batch, on_error=lambda path, error: errors.append((Path(path).name, error)))
    assert [number(one) for one in found] == [0, 1, 3, 4, 5, 1]
    assert [name for name, _ in errors] == ["s2.png", "none.png"]
    assert all(isinstance(error, ImageError) for _, error in errors)
    assert found[0].plot().size == (320, 200)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_bad_file_that_was_named_is_an_error_in_its_place(folder, batch):
    names = [folder / f"s{i}.png" for i in (0, 1, 2, 3)]
    done = []
    with pytest.raises(ImageError, match=r"s2\.png"):
        for found in detector().stream(names, batch=batch):
            done.append(number(found))
    assert done == [0, 1]
    for source, error, words in (
        (folder / "none.png", SourceError, "There is no file"),
        (folder / "*.tif", SourceError, "matches"),
        (np.zeros((0, 4, 3), np.uint8), ImageError, "4x0"),
        (b"nonsense", ImageError, "no image"),
        ([numbered(0), None], InvalidArgumentError, "NoneType"),
    ):
        with pytest.raises(error, match=words):
            detector().predict(source)
    assert detector().predict([]) == []


def test_pages_are_images_of_their_own(tmp_path):
    pages = [Image.fromarray(numbered(i)) for i in range(4)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    found = detector().predict(tmp_path / "scan.tif", batch=2)
    assert [(number(one), one.page) for one in found] == [(i, i) for i in range(4)]
    assert found[3].plot().size == pages[3].size


def test_a_generator_is_asked_for_one_image_at_a_time():
    """A camera's frames are answered as they come, in the caller's thread."""
    log: list[str] = []
    threads = set()

    def camera():
        for i in range(3):
            log.append(f"frame {i}")
            threads.add(threading.current_thread())
            yield numbered(i)

    for i, found in enumerate(detector().stream(camera())):
        log.append(f"answer {number(found)}")
        assert number(found) == i
    assert log == ["frame 0", "answer 0", "frame 1", "answer 1", "frame 2", "answer 2"]
    assert threads == {threading.current_thread()}


def test_memory_is_constant(tmp_path):
    """A thousand answers take no more memory than fifty, from files and from a generator."""
    name = tmp_path / "a.png"
    Image.fromarray(numbered(1)).save(name)

    def peak(count: int, source: object, batch: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            assert sum(1 for _ in detector(size=64).stream(source, batch=batch)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for make in (lambda n: [name] * n, lambda n: (numbered(i) for i in range(n))):
        few, many = (peak(n, make(n), 3) for n in (50, 1000))
        assert many < few + 1e6, (few, many)


@pytest.mark.parametrize("tile", [None, 300])
def test_pictures_are_drawn_on_kept_pixels(tmp_path, tile):
    for i in range(4):
        Image.fromarray(numbered(i)).save(tmp_path / f"{i}.png")
    kept = list(detector().stream(tmp_path, tile=tile, keep_images=True))
    again = list(detector().stream(tmp_path, tile=tile))
    for file in tmp_path.iterdir():
        file.unlink()
    for i, (one, other) in enumerate(zip(kept, again, strict=True)):
        assert (one.image() == numbered(i)).all() and one.plot().size == numbered(i).shape[1::-1]
        with pytest.raises(ImageError, match="no file"):
            other.plot()


def test_what_is_kept_has_a_limit():
    kept = KeptImages(limit=250)
    reload = numbered
    images = [np.zeros((10, 10, 1), np.uint8) for _ in range(4)]
    first, second = kept.keep(images[0], reload), kept.keep(images[1], reload)
    assert first() is images[0] and second() is images[1]
    assert kept.keep(images[2], reload) is reload, "no room"
    del first, images[0]
    assert kept.keep(images[-1], reload)() is images[-1], "an answer was let go"
    assert kept.keep(images[1], None) is None, "no room again"


def test_the_reading_thread_ends_with_the_stream(folder):
    runner = detector()
    for taken in (0, 1, 3):
        stream = runner.stream(str(folder / "s[0-1]*.png"))
        for _ in range(min(taken, 2)):
            next(stream)
        stream.close()
        del stream
        gc.collect()
        assert not [t for t in threading.enumerate() if t.name == "agssp-zoo-prefetch"]
    with pytest.raises(ZeroDivisionError):
        runner.engine.run = lambda *args, **kwargs: 1 / 0
        runner.predict([folder / "s0.png"] * 9)
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "agssp-zoo-prefetch"]


def test_prefetch():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(items(), depth=2)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    ahead.close()
    assert len(made) <= 9
    assert list(prefetch(items())) == list(range(100)) and list(prefetch(iter(()))) == []

    def failing():
        yield 1
        raise OSError("gone")

    ahead = prefetch(failing())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)


# --- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_find_what_is_lost_in_the_whole(batch):
    small = [(100, 100, 112, 112), (700, 1700, 712, 1712), (1400, 900, 1412, 912), (610, 610, 622, 622)]
    image = picture(1800, 1500, *small)
    runner = detector()
    whole = runner.predict(image, size=160)[0]
    assert len(whole) < 4 or np.abs(whole.boxes[:, 2:] - whole.boxes[:, :2] - 12).max() > 3
    found = runner.predict(image, tile=320, overlap=0.25, batch=batch, max_det=5)[0]
    assert sorted(np.rint(found.boxes).astype(int).tolist()) == sorted(map(list, small)), "once each, in place"
    assert found.image_size == (1800, 1500) and found.timing["inference"] > 0
    assert max(shape[0] for shape in runner.engine.shapes) == batch
    assert len(runner.predict(image, tile=(300, 500), max_det=2)[0]) == 2
    (one,) = runner.predict(picture(200, 300, (20, 30, 60, 90)), tile=640)
    assert np.abs(one.boxes - [[20, 30, 60, 90]]).max() < 1.5, "an image smaller than a tile"
    assert [len(one) for one in runner.predict([picture(700, 700), image], tile=320)] == [0, 4]


# --- loading ----------------------------------------------------------------------------------------------------------


def test_loading_errors(tmp_path):
    with pytest.raises(ModelNotFoundError, match="yolov8_s"):
        load_detector("yolov8_z")
    with pytest.raises(InvalidArgumentError, match="revison"):
        load_detector("yolov8_s", revison="main")
    with pytest.raises(EngineError, match=r"There is no file .*none\.onnx"):
        load_detector(tmp_path / "none.onnx")
    with pytest.raises(InvalidArgumentError, match="ONNX file"):
        load_detector(tmp_path / "none.onnx", engine="pytorch")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda folder: load_detector(5), "name_or_path is 5"),
        (lambda folder: load_detector(["a"]), "name_or_path is"),
        (lambda folder: load_detector(folder, device=0), "device is 0"),
        (lambda folder: load_detector(folder, device=None), "device is None"),
        (lambda folder: load_detector(folder / "model.onnx", precisoin="int8"), "'precisoin'"),
        (lambda folder: load_detector(folder / "model.onnx", revision="main"), "no revisions"),
        (lambda folder: model_info(5), "name is 5"),
        (lambda folder: list_models(5), "pattern is 5"),
    ],
)
def test_arguments_of_the_wrong_type_are_told(folder, call, words):
    with pytest.raises(InvalidArgumentError, match=words):
        call(folder)


def test_the_keywords_of_predict_and_stream_are_a_promise():
    """Changing one needs a line in CHANGELOG.md."""
    promised = {
        "conf": None, "iou": None, "max_det": None, "size": None, "batch": 1, "tile": None, "overlap": 0.2,
        "tile_whole": False, "channel_order": "rgb", "on_error": None,
    }  # fmt: skip
    more = {"keep_images": False}
    for method, keywords in ((Detector.predict, promised), (Detector.stream, promised | more)):
        parameters = list(inspect.signature(method).parameters.values())
        assert [p.name for p in parameters[:2]] == ["self", "source"]
        assert {p.name: p.default for p in parameters[2:]} == keywords
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])


def test_about_a_detector():
    runner = detector()
    assert runner.names == ("bright", "brightest") and runner.config.name in repr(runner)
    with pytest.raises(EngineError, match="pytorch"):
        _ = runner.model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.predict(numbered(0))
