"""What a detector answers: indexing, conversions, pictures."""

from __future__ import annotations

import json
import os
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from agssp_zoo.detections import Detection, Detections
from agssp_zoo.errors import ImageError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.plotting import class_color

NAMES = ("crazing", "inclusion", "rolled-in_scale")


def make(height: int = 200, width: int = 400, **changes: object) -> Detections:
    boxes = np.array([[10, 20, 110, 70], [0, 0, 400, 200], [300, 150, 400, 200]], np.float32)
    values = {
        "boxes": boxes,
        "scores": np.array([0.9, 0.5, 0.25], np.float32),
        "labels": np.array([2, 0, 1]),
        "names": NAMES,
        "image_size": (height, width),
        "path": "strip.png",
    }
    return Detections(**{**values, **changes})


def empty() -> Detections:
    return make(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64))


def test_as_a_list():
    found = make()
    assert len(found) == 3 and found[0] == Detection((10.0, 20.0, 110.0, 70.0), pytest.approx(0.9), 2, NAMES[2])
    assert [one.name for one in found] == ["rolled-in_scale", "crazing", "inclusion"] == [d.name for d in list(found)]
    assert found[-1].label == 1 and found[np.int64(1)].label == 0
    for index in (slice(0, 2), [0, 1], found.scores > 0.3, np.array([0, 1])):
        part = found[index]
        assert isinstance(part, Detections) and part.labels.tolist() == [2, 0] and part.path == "strip.png"
    with pytest.raises(IndexError):
        found[3]
    assert len(empty()) == 0 and list(empty()) == []


def test_masks_and_indices_as_lists():
    found = make()
    for mask in ([s > 0.5 for s in found.scores], [False] * len(found), [True] * len(found), (True, *[False] * 9)):
        mask = mask[: len(found)]
        assert found[mask].scores.tolist() == found[np.array(mask)].scores.tolist() == found.scores[list(mask)].tolist()
    assert found[[1, 0]].scores.tolist() == found.scores[[1, 0]].tolist() and len(found[[]]) == 0
    for wrong in ([True], [0.5, 0.5], [99]):
        with pytest.raises(IndexError):
            found[wrong]


def test_conversions():
    found = make(page=4)
    assert (
        json.loads(found.to_json())
        == found.to_dict()
        == {
            "path": "strip.png",
            "page": 4,
            "size": [200, 400],
            "boxes": [[10.0, 20.0, 110.0, 70.0], [0.0, 0.0, 400.0, 200.0], [300.0, 150.0, 400.0, 200.0]],
            "scores": [0.9, 0.5, 0.25],
            "labels": [2, 0, 1],
            "names": ["rolled-in_scale", "crazing", "inclusion"],
        }
    )
    assert found.to_yolo().splitlines()[0] == "2 0.150000 0.225000 0.250000 0.250000 0.900000"
    assert found.to_yolo(scores=False).splitlines()[2] == "1 0.875000 0.875000 0.250000 0.250000"
    first = {"image_id": 7, "category_id": 3, "bbox": [10.0, 20.0, 100.0, 50.0], "score": 0.9}
    assert found.to_coco(7)[0] == first and json.dumps(found.to_coco())
    assert [one["category_id"] for one in found.to_coco(category_ids=[5, 9, 2])] == [2, 5, 9]
    with pytest.raises(InvalidArgumentError, match="category_ids"):
        found.to_coco(category_ids=[1])
    assert (empty().to_yolo(), empty().to_coco(), empty().to_dict()["boxes"]) == ("", [], [])


def test_to_supervision(monkeypatch):
    supervision = pytest.importorskip("supervision")
    other = make().to_supervision()
    assert isinstance(other, supervision.Detections) and np.array_equal(other.xyxy, make().boxes)
    assert other.data["class_name"].tolist() == ["rolled-in_scale", "crazing", "inclusion"]
    assert len(empty().to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        make().to_supervision()


def test_a_pickle_is_small_and_whole(tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "strip.png")
    found = make(path=str(tmp_path / "strip.png"), reload=lambda: np.zeros((200, 400, 3), np.uint8))
    again = pickle.loads(pickle.dumps(found))
    assert again.to_dict() == found.to_dict() and again.reload is None
    assert again.plot().size == (400, 200), "it is read from its path again"


def test_the_picture_shows_boxes_in_their_colours():
    image = np.full((200, 400, 3), 90, np.uint8)
    picture = np.asarray(make().plot(image, labels=False))
    assert picture.shape == image.shape and (image == 90).all()
    assert tuple(picture[20, 60]) == tuple(picture[45, 10]) == tuple(picture[69, 60]) == class_color(2)
    assert tuple(picture[199, 100]) == class_color(0) and tuple(picture[199, 399]) == class_color(0), (
        "the better is on top"
    )
    assert (picture[100:140, 150:280] == 90).all()
    changed = (np.asarray(make().plot(image)) != picture).any(2)
    assert changed.sum() > 1000, "labels"
    assert len({class_color(i) for i in range(100)}) == 100
    assert (np.asarray(empty().plot(image)) == image).all()


@pytest.mark.parametrize("size", [(20, 24), (12, 300), (200, 200), (1000, 60), (256, 1600)])
def test_labels_stay_inside_and_are_legible(size):
    """A plate of the class's colour with ink of another, wherever the box lies; and no two on top of each other."""
    height, width = size
    image = np.full((height, width, 3), 90, np.uint8)
    for x1, y1 in ((0, 0), (width - 8, 0), (0, height - 8), (width - 8, height - 8), (width // 2, height // 2)):
        box = np.array([[x1, y1, x1 + 8, y1 + 8]], np.float32)
        one = Detections(box, np.array([0.5], np.float32), np.array([1]), NAMES, size)
        picture = np.asarray(one.plot(image)).astype(int)
        plate = (np.abs(picture - class_color(1)).max(2) < 3).sum()
        inked = (picture > 200).all(2) | (picture < 40).all(2)
        assert plate >= 60 and (inked.sum() >= 15 or min(size) < 16), (x1, y1)


def test_labels_make_room_for_each_other():
    boxes = np.array([[100, 100, 300, 150]] * 3, np.float32) + np.arange(3, dtype=np.float32)[:, None]
    found = make(boxes=boxes)
    image = np.full((200, 400, 3), 90, np.uint8)
    picture = np.asarray(found.plot(image)).reshape(-1, 3)
    areas = [(picture == class_color(label)).all(1).sum() for label in range(3)]
    assert min(areas) > 600, areas


def test_names_that_pillows_font_does_not_know():
    found = make(names=("划痕", "Größe", "царапина"))
    assert found.plot(np.zeros((200, 400, 3), np.uint8)).size == (400, 200)


def test_a_path_that_is_no_utf8_reads_back(tmp_path):
    found = make(path=os.fsdecode(b"Bl\xe4ch.jpg"), names=("划痕", "b", "c"))
    written = found.save(tmp_path / "a.json").read_bytes()
    assert rb"Bl\udce4ch.jpg" in written and json.loads(written) == found.to_dict()
    assert written.decode("utf-8") == found.to_json() + "\n"


def test_saving_under_a_long_name_and_what_a_format_cannot_hold(tmp_path):
    for name in ("ä" * 125 + ".png", "b" * 250 + ".json"):
        assert make().save(tmp_path / name, np.zeros((200, 400), np.uint8)).name == name
    wide = make(height=4, width=66000)
    with pytest.raises(InvalidArgumentError, match=r"66000x4 pixels; save it as \.png"):
        wide.save(tmp_path / "wide.jpg", np.zeros((4, 66000), np.uint8))
    assert len(list(tmp_path.iterdir())) == 2


def test_saving(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("L", (400, 200), 77).save(path)
    found = make(path=str(path))
    for name in ("out.png", "deep/er/out.jpg", "out.tiff", "out.webp"):
        saved = found.save(tmp_path / name)
        with Image.open(saved) as picture:
            assert picture.size == (400, 200) and saved == tmp_path / name
    assert json.loads(found.save(tmp_path / "a.json").read_text()) == found.to_dict()
    assert found.save(str(tmp_path / "a.txt")).read_text() == found.to_yolo()
    for name in ("out.xyz", "out"):
        with pytest.raises(InvalidArgumentError, match="suffix"):
            found.save(tmp_path / name)
    strip = np.zeros((20, 16_400), np.uint8)
    with pytest.raises(InvalidArgumentError, match=r"wide\.webp: a file of this kind holds no picture of 16400x20"):
        make(*strip.shape).save(tmp_path / "wide.webp", strip)
    path.unlink()
    with pytest.raises(ImageError, match=r"strip\.png"):
        found.save(tmp_path / "gone.png")
    assert {p.name for p in tmp_path.iterdir()} == {"out.png", "deep", "out.tiff", "out.webp", "a.json", "a.txt"}
    assert make(path=None).save(tmp_path / "b.png", np.zeros((200, 400), np.uint8)).is_file()
    with pytest.raises(InvalidArgumentError, match="give it"):
        make(path=None).plot()
    with pytest.raises(InvalidArgumentError, match="100x50"):
        make().plot(np.zeros((50, 100), np.uint8))
