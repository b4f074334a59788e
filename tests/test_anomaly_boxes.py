"""Pseudo-boxes: the authors' rule, its edge cases, OpenCV's contours, the files, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from anomaly_stores import make_store, write_images

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.anomaly import MapStore
from agssp_zoo.training.anomaly.boxes import BoxSettings, box_statistics, boxes_above, pseudo_boxes, thresholds
from agssp_zoo.training.anomaly.boxes_files import with_boxes, write_coco, write_yolo
from agssp_zoo.training.anomaly.grid import enlarge
from agssp_zoo.training.data import PackSettings, pack, read_dataset
from agssp_zoo.training.data.unlabelled import read_images


def canvas(height: int = 60, width: int = 80) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def found(values: np.ndarray, threshold: float = 0.5, **settings: float) -> list[tuple[float, ...]]:
    boxes, scores = boxes_above(values, threshold, **settings)
    assert boxes.dtype == scores.dtype == np.float32
    return [(*map(float, box), round(float(score), 4)) for box, score in zip(boxes, scores, strict=True)]


# --- one map -------------------------------------------------------------------------------------------------------


def test_regions_become_boxes_best_first() -> None:
    values = canvas()
    values[10:20, 30:50] = 0.6
    values[40:45, 3:9] = 0.7
    values[42, 5] = 0.9
    assert found(values) == [(3, 40, 9, 45, 0.9), (30, 10, 50, 20, 0.6)]


def test_what_equals_the_threshold_is_not_above_it() -> None:
    values = canvas()
    values[10:20, 10:20] = 0.5
    assert found(values, 0.5) == []
    assert len(found(values, 0.4999)) == 1


def test_pixels_that_touch_at_a_corner_are_one_box() -> None:
    values = canvas()
    values[0:5, 0:5] = values[5:10, 5:10] = 0.8
    assert found(values) == [(0, 0, 10, 10, pytest.approx(0.8))]
    values[5, 5] = 0
    assert len(found(values)) == 2


def test_what_lies_in_a_hole_is_no_box_of_its_own() -> None:
    values = canvas()
    values[5:50, 5:60] = 0.6
    values[15:40, 15:50] = 0.0
    values[22:30, 25:35] = 0.95  # an island in the hole
    # Its contour is not external; its value is inside the box.
    assert found(values) == [(5, 5, 60, 50, pytest.approx(0.95))]


def test_a_ring_that_is_open_has_no_hole() -> None:
    values = canvas()
    values[5:50, 5:60] = 0.6
    values[15:40, 15:50] = 0.0
    values[22:30, 25:35] = 0.95
    values[20:24, 50:60] = 0.0  # opens the ring to the right
    assert [box[:4] for box in found(values)] == [(5, 5, 60, 50), (25, 22, 35, 30)]


def test_a_diagonal_gap_does_not_open_a_ring() -> None:
    values = canvas()
    values[5:50, 5:60] = 0.6
    values[6:49, 6:59] = 0.0
    values[20:24, 20:24] = 0.6
    values[5, 6] = 0.0
    assert len(found(values)) == 2  # a gap of a pixel in the line opens it
    values[6, 6] = 0.6
    assert len(found(values)) == 1  # bridged at the corners, it is closed


@pytest.mark.parametrize(
    ("size", "area"), [((60, 80), 10), ((399, 399), 10), ((400, 400), 16), ((1000, 500), 50), ((90, 5000), 10)]
)
def test_regions_below_the_least_area_are_left_out(size: tuple[int, int], area: int) -> None:
    values = np.zeros(size, np.float32)
    values[50, 5 : 5 + area - 1] = 0.9
    assert found(values) == []
    values[50, 5 + area - 1] = 0.9
    assert found(values) == [(5, 50, 5 + area, 51, pytest.approx(0.9))]


def test_holes_count_as_area() -> None:
    values = canvas()
    values[10:14, 10:14] = 0.9
    values[11:13, 11:13] = 0.0  # a ring of 12 pixels
    values[30:33, 30:33] = 0.9
    values[31, 31] = 0.0  # a ring of 8 around one
    assert [box[:4] for box in found(values)] == [(10, 10, 14, 14)]


def test_the_best_ten_are_kept() -> None:
    values = canvas(100, 200)
    for place in range(14):
        values[10:20, 3 + place * 14 : 13 + place * 14] = 0.6 + place / 100
    scores = [box[4] for box in found(values)]
    assert scores == pytest.approx([0.73 - place / 100 for place in range(10)], abs=1e-6)
    assert len(found(values, most=3)) == 3


def test_of_equal_scores_the_larger_region_comes_first() -> None:
    values = canvas()
    values[5:10, 5:10] = values[20:40, 20:40] = values[50:58, 5:10] = 1.0
    assert [box[0] for box in found(values, most=2)] == [20, 5]


def test_overlapping_boxes_are_dropped_after_the_ten_best_are_chosen() -> None:
    # Two interlocking Ls: their boxes overlap nearly whole.
    values = canvas()
    values[0:40, 0:2] = values[38:40, 0:40] = 0.8
    values[0:2, 4:40] = values[0:36, 38:40] = 0.7
    values[15:20, 50:60] = 0.6
    assert [box[:4] for box in found(values)] == [(0, 0, 40, 40), (50, 15, 60, 20)]
    assert len(found(values, iou=0.9)) == 3
    assert len(found(values, most=2)) == 1  # the two best overlap, the third is not taken instead


def test_boxes_are_those_of_opencvs_external_contours() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(4)
    total = 0
    for number in range(40):
        height, width = rng.integers(40, 140, 2)
        grid = rng.random((int(rng.integers(4, 40)), int(rng.integers(4, 40)))).astype(np.float32)
        values = enlarge(grid, (int(height), int(width)))
        limit = float(np.quantile(values, rng.uniform(0.3, 0.8)))
        binary = (values > limit).astype(np.uint8)
        contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        expected = set()
        for contour in contours:
            inside = cv2.drawContours(np.zeros_like(binary), [contour], -1, 1, cv2.FILLED)
            if inside.sum() >= 10:
                x, y, w, h = cv2.boundingRect(contour)
                expected.add((x, y, x + w, y + h))
        boxes, _ = boxes_above(values, limit, most=10_000, iou=1.0)
        assert {tuple(box) for box in boxes.astype(int).tolist()} == expected, number
        total += len(expected)
    assert total > 200


# --- a store -------------------------------------------------------------------------------------------------------


def spot(row: int, column: int, value: float, ground: float = 0.0) -> np.ndarray:
    values = np.full((8, 8), ground, np.float32)
    values[row : row + 2, column : column + 2] = value
    return values


def test_the_threshold_of_a_data_set_is_its_mean_maximum_minus_a_tenth(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", {"a": (80, 80), "b": (80, 80), "c": (80, 80), "d": (80, 80)})
    maps = {"a": spot(2, 3, 0.9), "b": spot(5, 5, 0.7), "c": spot(1, 1, 0.5), "d": spot(4, 4, 0.25)}
    store = make_store(tmp_path / "maps", images, maps, sources=["x", "x", "x", "y"])
    limits = thresholds(store)
    assert limits == pytest.approx({"x": 0.6, "y": 0.15}, abs=1e-3)
    made = pseudo_boxes(store, images)
    assert [len(record.boxes) for record in made.images] == [1, 1, 0, 1]
    assert made.thresholds == limits
    assert made.images.class_names == ("anomaly",)
    boxes, scores = made.of("a")
    x1, y1, x2, y2 = boxes[0]
    assert 25 <= x1 < 35 and 45 < x2 <= 55  # cells of 10 pixels: around the middles of columns 3 and 4
    assert 15 <= y1 < 25 and 35 < y2 <= 45
    assert scores[0] == enlarge(store.probability("a"), (80, 80)).max()
    assert pseudo_boxes(store, images, BoxSettings(margin=0.0)).thresholds["x"] == pytest.approx(0.7, abs=1e-3)


def test_thresholds_come_from_the_whole_data_set_also_when_few_images_are_asked_for(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", {"a": (80, 80), "b": (80, 80)})
    store = make_store(tmp_path / "maps", images, {"a": spot(2, 3, 0.9), "b": spot(5, 5, 0.3)})
    alone = pseudo_boxes(store, images.subset(1))
    assert next(iter(alone.thresholds.values())) == pytest.approx(0.5, abs=1e-3)


def test_maps_that_are_no_probabilities_are_rescaled_first(tmp_path: Path) -> None:
    names = {f"i{number:02d}": (80, 80) for number in range(40)}
    images = write_images(tmp_path / "data", names)
    rng = np.random.default_rng(0)
    base = {name: rng.uniform(0, 0.2, (8, 8)).astype(np.float32) for name in names}
    for values in base.values():
        values[3:5, 4:6] += 0.75
    store = make_store(tmp_path / "one", images, base, bounded=False)
    other = make_store(tmp_path / "two", images, {k: 500 * v - 90 for k, v in base.items()}, bounded=False)
    one, two = pseudo_boxes(store, images), pseudo_boxes(other, images)
    assert list(one.thresholds.values()) == pytest.approx(list(two.thresholds.values()), abs=0.01)
    assert 0.6 < next(iter(one.thresholds.values())) < 0.95
    assert [len(r.boxes) for r in one.images] == [len(r.boxes) for r in two.images]
    assert sum(len(r.boxes) for r in one.images) > 20


def test_each_image_can_have_its_own_threshold(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", {"faint": (80, 80), "flat": (80, 80), "strong": (80, 80)})
    maps = {"faint": spot(2, 3, 0.2, 0.1), "flat": np.full((8, 8), 0.4), "strong": spot(5, 5, 0.9)}
    store = make_store(tmp_path / "maps", images, maps)
    made = pseudo_boxes(store, images, BoxSettings(quantile=0.98))
    assert [len(record.boxes) for record in made.images] == [1, 0, 1]
    assert made.thresholds == {}
    covered = np.prod(made.images[0].boxes[0, 2:] - made.images[0].boxes[0, :2]) / 6400
    assert 0.01 < covered < 0.1
    assert [len(record.boxes) for record in pseudo_boxes(store, images).images] == [0, 0, 1]  # 0.5 - 0.1 for all


def test_flat_maps_have_no_boxes(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", {"a": (80, 80), "b": (80, 80)})
    for name, bounded in (("bounded", True), ("rescaled", False)):
        store = make_store(tmp_path / name, images, {"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}, bounded=bounded)
        made = pseudo_boxes(store, images)
        assert [len(record.boxes) for record in made.images] == [0, 0]
        entry = box_statistics(made)[0]
        assert entry["without_boxes"] == 2 and entry["side"] is None


def test_maps_of_other_images_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", {"a": (80, 80)})
    store = make_store(tmp_path / "maps", images, {"a": spot(2, 3, 0.9)})
    with pytest.raises(DataError, match="no maps of 1 of 1 images"):
        pseudo_boxes(store, write_images(tmp_path / "other", {"z": (80, 80)}))
    with pytest.raises(DataError, match="80x80 pixels when its map was made"):
        pseudo_boxes(store, write_images(tmp_path / "data", {"a": (90, 80)}))


@pytest.mark.parametrize(
    "wrong", [{"quantile": 1.0}, {"quantile": -0.1}, {"margin": 1.5}, {"most": 0}, {"iou": -1.0}, {"iou": 2.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        BoxSettings(**wrong)  # type: ignore[arg-type]


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> tuple[MapStore, Path]:
    root = tmp_path / "data"
    sizes = {"one/a": (80, 60), "one/b.v2": (60, 80), "two/a": (100, 100), "two/none": (90, 70)}
    images = write_images(root, sizes)
    maps = {
        "one/a": spot(2, 3, 0.9) + spot(6, 6, 0.8),
        "one/b.v2": spot(5, 5, 0.85),
        "two/a": spot(0, 7, 0.95),
        "two/none": spot(1, 1, 0.3),
    }
    return make_store(tmp_path / "maps", images, maps), root


def test_coco_is_read_with_the_images_where_they_are(pool: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = pool
    made = pseudo_boxes(store, read_images(root))
    file = write_coco(made, store, tmp_path / "out")
    dataset = read_dataset(file)
    assert dataset.problems == ()
    assert dataset.class_names == ("anomaly",)
    assert [record.key for record in dataset] == ["one/a", "one/b.v2", "two/a", "two/none"]
    for record, expected in zip(dataset, made.images, strict=True):
        assert record.path == expected.path
        assert record.load_image().shape == (expected.height, expected.width, 3)
        assert np.abs(record.boxes - expected.boxes).max(initial=0) < 1e-3
    assert [len(record.boxes) for record in dataset] == [2, 1, 1, 0]
    document = json.loads(file.read_text())
    assert [round(a["score"], 3) for a in document["annotations"]] == [
        round(float(s), 3) for v in made.scores for s in v
    ]
    assert document["info"]["maps_fingerprint"] == store.fingerprint
    assert not list((tmp_path / "out").glob(".*"))


def test_coco_files_of_other_tools_may_name_images_elsewhere(pool: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = pool
    file = write_coco(pseudo_boxes(store, read_images(root)), store, tmp_path / "out")
    document = json.loads(file.read_text())
    for entry in document["images"]:
        del entry["key"]
    document["images"].append({"id": 99, "file_name": str(root / "images" / "gone.png"), "width": 5, "height": 5})
    document["images"].append({"id": 100, "file_name": "beside.png", "width": 80, "height": 60})
    write_images(tmp_path / "out", {"beside": (80, 60)})
    file.write_text(json.dumps(document))
    dataset = read_dataset(file)
    assert sorted(record.key for record in dataset) == ["beside", "one/a", "one/b.v2", "two/a", "two/none"]
    assert [problem.code for problem in dataset.errors] == ["missing-image"]


def test_boxes_go_onto_images_in_shards(pool: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = pool
    pack(read_dataset(root, format="images"), tmp_path / "shards", PackSettings())
    images = read_images(tmp_path / "shards")
    made = pseudo_boxes(store, images)
    file = write_coco(made, store, tmp_path / "out")
    labelled = with_boxes(images, file)
    assert labelled.class_names == ("anomaly",)
    assert [len(record.boxes) for record in labelled] == [2, 1, 1, 0]
    assert labelled[0].load_image().shape == (60, 80, 3)
    with pytest.raises(DataError, match="its keys are like one/a"):
        with_boxes(write_images(tmp_path / "other", {"z": (80, 80)}), file)
    (tmp_path / "other.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match="holds no pseudo-boxes"):
        with_boxes(images, tmp_path / "other.json")


def test_yolo_labels_fit_beside_the_images(pool: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = pool
    made = pseudo_boxes(store, read_images(root))
    folder = write_yolo(made, tmp_path / "out")
    assert (folder / "labels" / "two" / "none.txt").read_text() == ""
    (folder / "labels").rename(root / "labels")
    (folder / "classes.txt").rename(root / "classes.txt")
    dataset = read_dataset(root)
    assert dataset.format == "yolo" and dataset.problems == () and dataset.class_names == ("anomaly",)
    for record, expected in zip(dataset, made.images, strict=True):
        assert np.abs(record.boxes - expected.boxes).max(initial=0) < 1e-3


def test_only_an_own_yolo_folder_is_replaced(pool: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = pool
    made = pseudo_boxes(store, read_images(root))
    write_yolo(made, tmp_path / "out")
    (tmp_path / "out" / "yolo" / "labels" / "old.txt").write_text("0 0.5 0.5 1 1\n")
    write_yolo(made, tmp_path / "out")
    assert not (tmp_path / "out" / "yolo" / "labels" / "old.txt").exists()
    true = tmp_path / "mine" / "yolo" / "labels" / "true.txt"
    true.parent.mkdir(parents=True)
    true.write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(InvalidArgumentError, match="not made by this command"):
        write_yolo(made, tmp_path / "mine")
    assert true.exists()


def test_an_interrupted_yolo_folder_leaves_the_old_one(
    pool: tuple[MapStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = pool
    made = pseudo_boxes(store, read_images(root))
    target = write_yolo(made, tmp_path / "out")
    before = (target / "labels" / "one" / "a.txt").read_text()
    replace_path = Path.replace

    def fail(self: Path, to: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return replace_path(self, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_yolo(made, tmp_path / "out")
    assert (target / "labels" / "one" / "a.txt").read_text() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["yolo"]


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_finds_the_images_itself(pool: tuple[MapStore, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = pool
    assert main(["pseudo-boxes", str(store.path)]) == 0
    text = capsys.readouterr().out
    limit = next(iter(thresholds(store).values()))
    assert f"data: threshold {limit:.4f}; 3 of 4 images have boxes, 1 have none; 4 boxes, 1.00 an image" in text
    assert len(read_dataset(store.path / "pseudo_boxes.json")) == 4
    assert (store.path / "yolo" / "labels" / "one" / "b.v2.txt").read_text().startswith("0 0.75")
    MapStore.open(store.path)  # still a store


def test_the_command_answers_in_json_and_takes_the_options(
    pool: tuple[MapStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, root = pool
    out = tmp_path / "out"
    line = ["pseudo-boxes", str(store.path), "--data", str(root), "--out", str(out), "--write", "coco", "--json"]
    assert main([*line, "--quantile", "0.97", "--most", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    entry = summary["sources"][0]
    assert (entry["threshold"], entry["images"], entry["boxes"], entry["without_boxes"]) == (None, 4, 4, 0)
    assert summary["written"] == [str(out / "pseudo_boxes.json")]
    assert not (out / "yolo").exists()
    assert entry["side"][0] <= entry["side"][1] <= entry["side"][2]


def test_images_that_have_moved_are_asked_for(pool: tuple[MapStore, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, root = pool
    moved = root.rename(root.with_name("moved"))
    assert main(["pseudo-boxes", str(store.path)]) == 1
    assert "4 of its 4 images are not where they were" in capsys.readouterr().err
    assert main(["pseudo-boxes", str(store.path), "--data", str(moved), "--write", "coco"]) == 0
    assert main(["pseudo-boxes", str(store.path), "--data", str(moved / "images" / "one")]) == 1
    assert "Give --data as it was given to anomaly-maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--quantile", "1.5"], 2, "quantile is 1.5"),
        (["--most", "0"], 2, "most is 0"),
        (["--data", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_arguments_are_told(
    pool: tuple[MapStore, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["pseudo-boxes", str(pool[0].path), *arguments]) == code
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pseudo-boxes", str(tmp_path)]) == 1
    assert "is not a store of anomaly maps" in capsys.readouterr().err


def test_images_in_shards_are_asked_for_by_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(write_images(tmp_path / "data", {"a": (8, 8), "b": (8, 8)}), tmp_path / "shards", PackSettings())
    images = read_images(tmp_path / "shards")
    maps = {record.key: np.eye(4, dtype=np.float32) for record in images}
    store = make_store(tmp_path / "store", images, maps)
    assert main(["pseudo-boxes", str(store.path)]) == 1
    said = capsys.readouterr().err
    assert "2 of its 2 images were read from shards" in said and "name them with --data" in said
    assert main(["pseudo-boxes", str(store.path), "--data", str(tmp_path / "shards"), "--write", "coco"]) == 0
