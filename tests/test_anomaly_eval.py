"""Measuring stores: which images count where, masks beside images, box recall, the command, and the real data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anomaly_stores import make_store, write_images, write_mask
from PIL import Image

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError
from agssp_zoo.training.anomaly import MapStore
from agssp_zoo.training.anomaly.boxes import BoxSettings
from agssp_zoo.training.anomaly.evaluate import evaluate_maps
from agssp_zoo.training.anomaly.truth import Masks
from agssp_zoo.training.data import PackSettings, pack, read_dataset
from agssp_zoo.training.data.unlabelled import read_images

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")


def cells(*chosen: tuple[int, int], value: float = 0.9, ground: float = 0.1) -> np.ndarray:
    """A map of 8x8 cells with some of them high."""
    values = np.full((8, 8), ground, np.float32)
    for cell in chosen:
        values[cell] = value
    return values


def mask_of(*chosen: tuple[int, int], size: int = 80) -> np.ndarray:
    """The mask of an image of 10 pixels a cell that covers some cells."""
    return np.kron(cells(*chosen, value=1, ground=0) > 0, np.ones((size // 8, size // 8))) > 0


def add_voc(root: Path, name: str, boxes: list[tuple[int, int, int, int]], size: int = 80) -> None:
    """A Pascal VOC file with boxes of exclusive ends."""
    text = f"<annotation><filename>{name}.png</filename><size><width>{size}</width><height>{size}</height></size>"
    for x1, y1, x2, y2 in boxes:
        text += f"<object><name>pit</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        text += f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{name}.xml").write_text(text + "</annotation>")


@pytest.fixture
def masked(tmp_path: Path) -> tuple[MapStore, Path]:
    """Two defective images with masks, one of them found, and two free of defects."""
    root = tmp_path / "data"
    images = write_images(root, dict.fromkeys(("bad", "missed", "good", "fine"), (80, 80)))
    write_mask(root, "bad", mask_of((2, 3), (2, 4), (3, 3), (3, 4)))
    write_mask(root, "missed", mask_of((6, 6)))
    maps = {
        "bad": cells((2, 3), (2, 4), (3, 3), (3, 4)),
        "missed": cells(),
        "good": cells(),
        "fine": cells((0, 0), value=0.5),
    }
    scores = {"bad": 0.9, "missed": 0.2, "good": 0.1, "fine": 0.5}
    return make_store(tmp_path / "maps", images, maps, scores), root


def test_masks_and_images_free_of_defects_are_measured(masked: tuple[MapStore, Path]) -> None:
    store, root = masked
    result = evaluate_maps(store, read_dataset(root))
    counts = {
        "images": 4,
        "left_out": 0,
        "given_as_normal": 0,
        "with_mask": 2,
        "normal": 2,
        "pixel_images": 4,
        "regions": 2,
    }
    assert {key: result[key] for key in counts} == counts
    # Scores 0.9 + | 0.5 - | 0.2 + | 0.1 -: three of four pairs in order.
    assert result["image_auroc"] == pytest.approx(3 / 4)
    assert result["image_ap"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert result["image_f1"] == pytest.approx(4 / 5)
    # 400 of 500 defective pixels lie high; the other 100 lie on the ground, where nearly all sound pixels are.
    assert result["pixel_auroc"] == pytest.approx(0.8 + 0.2 * 0.5, abs=0.02)
    assert result["pixel_f1"] > 0.8
    assert result["aupro"] == pytest.approx(0.57, abs=0.05)  # one of two regions, and what chance gives of the other
    assert result["true_boxes"] == 2
    assert result["box_recall_10"] == result["box_recall_50"] == 0.5
    assert 0.3 < result["box_mean_iou"] <= 0.5
    # The threshold is (0.9 + 0.1 + 0.1 + 0.5) / 4 - 0.1, so "fine" has a box, too.
    assert result["box_precision_10"] == 0.5
    assert result["boxes_per_image"] == 0.5


def test_defective_images_without_a_mask_count_for_images_and_boxes_only(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = write_images(root, dict.fromkeys(("a", "b", "free"), (80, 80)))
    add_voc(root, "a", [(30, 20, 50, 40)])
    add_voc(root, "b", [(0, 0, 20, 20)])
    write_mask(root, "a", mask_of((2, 3), (2, 4), (3, 3), (3, 4)))
    maps = {"a": cells((2, 3), (2, 4), (3, 3), (3, 4)), "b": cells((7, 7)), "free": cells()}
    store = make_store(tmp_path / "maps", images, maps)
    result = evaluate_maps(store, read_dataset(root))
    assert (result["images"], result["with_mask"], result["normal"], result["pixel_images"]) == (3, 1, 1, 2)
    assert result["pixel_auroc"] > 0.95  # with b, whose map is wrong, it would be lower
    assert result["image_auroc"] == 1.0
    assert (result["true_boxes"], result["box_recall_10"]) == (2, 0.5)


def test_image_figures_are_left_out_where_every_image_is_defective(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = write_images(root, dict.fromkeys(("a", "b"), (80, 80)))
    for name in ("a", "b"):
        add_voc(root, name, [(30, 20, 50, 40)])
    write_mask(root, "a", mask_of((2, 3), (2, 4), (3, 3), (3, 4)))
    store = make_store(tmp_path / "maps", images, {"a": cells((2, 3)), "b": cells((2, 3))})
    result = evaluate_maps(store, read_dataset(root))
    assert (result["with_mask"], result["normal"], result["pixel_images"]) == (1, 0, 1)
    assert "pixel_auroc" in result and "aupro" in result
    assert not [key for key in result if key.startswith("image_")]


def test_pixel_figures_are_left_out_where_there_are_no_masks(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = write_images(root, dict.fromkeys(("a", "free"), (80, 80)))
    add_voc(root, "a", [(30, 20, 50, 40)])
    store = make_store(tmp_path / "maps", images, {"a": cells((2, 3), (2, 4), (3, 3), (3, 4)), "free": cells()})
    result = evaluate_maps(store, read_dataset(root))
    assert (result["with_mask"], result["normal"], result["image_auroc"], result["box_recall_30"]) == (0, 1, 1.0, 1.0)
    assert not [key for key in result if key.startswith("pixel_") or key in ("aupro", "regions")]


def test_a_mask_of_specks_or_of_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = write_images(root, dict.fromkeys(("specks", "empty", "bad"), (80, 80)))
    speck = np.zeros((80, 80), bool)
    speck[5, 5] = True
    write_mask(root, "specks", speck)
    write_mask(root, "empty", np.zeros((80, 80), bool))
    write_mask(root, "bad", mask_of((3, 3)))
    store = make_store(tmp_path / "maps", images, {key: cells((3, 3)) for key in ("specks", "empty", "bad")})
    result = evaluate_maps(store, read_dataset(root))
    # The reader of labels makes no box of a pixel, but the mask shows a defect there.
    assert (result["with_mask"], result["normal"], result["regions"], result["true_boxes"]) == (3, 1, 2, 1)


def test_part_of_the_images_may_have_maps(masked: tuple[MapStore, Path], tmp_path: Path) -> None:
    _, root = masked
    images = read_images(root)
    part = make_store(tmp_path / "part", images, {"bad": cells((2, 3)), "good": cells()})
    result = evaluate_maps(part, read_dataset(root))
    assert (result["images"], result["left_out"], result["with_mask"], result["normal"]) == (2, 2, 1, 1)


def test_images_given_as_normal_are_not_measured(masked: tuple[MapStore, Path], tmp_path: Path) -> None:
    _, root = masked
    maps = {name: cells() for name in ("bad", "missed", "good", "fine")}
    normal = {"images": 2, "in_pool": ["good"]}
    for name, settings in (("one", {"normal": normal}), ("sum", {"parts": [{"method": "own"}, {"normal": normal}]})):
        store = make_store(tmp_path / name, read_images(root), maps, settings={"method": "memory", **settings})
        result = evaluate_maps(store, read_dataset(root))
        assert (result["images"], result["given_as_normal"], result["normal"], result["left_out"]) == (3, 1, 1, 0)


def test_data_sets_in_one_store_are_measured_apart(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    write_images(pool / "x", dict.fromkeys(("bad", "good"), (80, 80)))
    write_images(pool / "y", dict.fromkeys(("bad", "good"), (80, 80)))
    for name in ("x", "y"):
        write_mask(pool / name, "bad", mask_of((3, 3)))
    images = read_images([pool / "x", pool / "y"])
    assert [record.key for record in images] == ["x/bad", "x/good", "y/bad", "y/good"]
    # Values of y are on another scale: pooled, its sound pixels would lie above the defect of x.
    maps = {"x/bad": cells((3, 3)), "x/good": cells(), "y/bad": cells((3, 3)) + 50, "y/good": cells() + 50}
    store = make_store(tmp_path / "maps", images, maps, bounded=False)
    whole = read_dataset(pool)
    result = evaluate_maps(store, whole)
    assert set(result["sources"]) == {"x", "y"}
    assert (result["images"], result["with_mask"], result["normal"]) == (4, 2, 2)
    assert result["pixel_auroc"] > 0.95 and result["image_auroc"] == 1.0
    assert result["sources"]["y"]["pixel_auroc"] == pytest.approx(result["sources"]["x"]["pixel_auroc"], abs=0.02)
    # One of them alone, whose keys in the pool begin with its folder's name.
    alone = evaluate_maps(store, read_dataset(pool / "y"))
    assert (alone["images"], alone["with_mask"], alone["left_out"]) == (2, 1, 0)
    assert alone["pixel_auroc"] == result["sources"]["y"]["pixel_auroc"]


def test_folders_of_one_name_in_a_pool_can_be_measured_alone(tmp_path: Path) -> None:
    folders = [tmp_path / name / "data" for name in ("x", "y")]
    for folder in folders:
        write_images(folder, dict.fromkeys(("bad", "good"), (80, 80)))
        write_mask(folder, "bad", mask_of((3, 3)))
    images = read_images(folders)
    maps = {record.key: cells((3, 3)) if record.key.endswith("bad") else cells() for record in images}
    assert set(maps) == {"x_data/bad", "x_data/good", "y_data/bad", "y_data/good"}
    store = make_store(tmp_path / "maps", images, maps)
    alone = evaluate_maps(store, read_dataset(folders[1]))
    assert (alone["images"], alone["with_mask"], alone["left_out"]) == (2, 1, 0)
    assert alone["image_auroc"] == 1.0


def test_shards_have_boxes_but_no_masks(masked: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = masked
    pack(read_dataset(root), tmp_path / "shards", PackSettings())
    result = evaluate_maps(store, read_dataset(tmp_path / "shards"))
    assert (result["images"], result["with_mask"], result["normal"]) == (4, 0, 2)
    assert "pixel_auroc" not in result and result["image_auroc"] == 0.75 and result["true_boxes"] == 2


def test_images_without_labels_are_not_taken_for_sound_ones(masked: tuple[MapStore, Path], tmp_path: Path) -> None:
    """A pool that was packed without labels says nothing about defects."""
    store, root = masked
    pool = read_dataset(root, format="images")
    shards = pack(pool, tmp_path / "pool", PackSettings(format="png"))
    with pytest.raises(DataError, match="holds neither labels nor masks"):
        evaluate_maps(store, read_dataset(shards))
    assert evaluate_maps(store, pool)["with_mask"] == 2, "masks beside images are known"


def test_pseudo_boxes_are_made_as_asked(masked: tuple[MapStore, Path]) -> None:
    store, root = masked
    usual = evaluate_maps(store, read_dataset(root))
    result = evaluate_maps(store, read_dataset(root), boxes=BoxSettings(quantile=0.98))  # a third of the defect
    assert result["box_mean_iou"] < 0.8 * usual["box_mean_iou"]
    assert result["pixel_ap"] == usual["pixel_ap"]


def test_boxes_around_groups_do_not_count(masked: tuple[MapStore, Path]) -> None:
    store, root = masked
    dataset = read_dataset(root)
    crowded = tuple(replace(r, crowd=np.ones(len(r.labels), bool)) if r.key == "missed" else r for r in dataset)
    result = evaluate_maps(store, replace(dataset, records=crowded))
    assert (result["true_boxes"], result["box_recall_10"]) == (1, 1.0)


# --- masks ---------------------------------------------------------------------------------------------------------


def test_several_masks_of_an_image_are_joined(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = write_images(root, {"a": (80, 80), "b": (80, 80)})
    for folder, cell in (("pit", (1, 1)), ("crack", (5, 5))):
        (root / "masks" / folder).mkdir(parents=True)
        Image.fromarray(mask_of(cell).astype(np.uint8) * 255).save(root / "masks" / folder / "a_mask.png")
    masks = Masks.find(images)
    assert "a" in masks and "b" not in masks and len(masks) == 1
    record = next(record for record in images if record.key == "a")
    assert (masks.load(record) == mask_of((1, 1), (5, 5))).all()
    assert masks.load(next(record for record in images if record.key == "b")) is None


def test_masks_that_do_not_fit_are_refused(masked: tuple[MapStore, Path]) -> None:
    store, root = masked
    dataset = read_dataset(root)
    write_mask(root, "bad", np.ones((40, 40), bool))
    with pytest.raises(DataError, match="has 40x40 pixels, its image 'bad' 80x80"):
        evaluate_maps(store, dataset)
    (root / "masks" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable mask"):
        evaluate_maps(store, dataset)


def test_maps_of_other_images_are_refused(masked: tuple[MapStore, Path], tmp_path: Path) -> None:
    store, root = masked
    write_images(tmp_path / "other", {"z": (80, 80)})
    write_mask(tmp_path / "other", "z", mask_of((1, 1)))
    with pytest.raises(DataError, match="has no maps of the 1 images"):
        evaluate_maps(store, read_dataset(tmp_path / "other"))
    write_images(root, {"good": (70, 80)})
    with pytest.raises(DataError, match="80x80 pixels when its map was made"):
        evaluate_maps(store, read_dataset(root))


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_figures(
    masked: tuple[MapStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, root = masked
    line = ["anomaly-eval", str(store.path), "--data", str(root)]
    assert main([*line, "--out", str(tmp_path / "new" / "figures.json")]) == 0
    text = capsys.readouterr().out
    assert "4 images with maps, 0 without; 2 masks, 2 images free of defects" in text
    assert "images: auroc 0.7500, ap 0.8333, f1 0.8000" in text
    assert "2 true boxes; 0.5 pseudo-boxes an image" in text
    written = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    keys = {
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1",
        "aupro",
        "image_auroc",
        "image_ap",
        "image_f1",
        "images",
        "with_mask",
    }
    assert keys <= set(written)
    assert (written["method"], written["split"]) == ("made-up", "all")


def test_the_command_measures_a_split_and_leaves_images_out(
    masked: tuple[MapStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, root = masked
    (root / "val.txt").write_text("bad\ngood\n")
    line = ["anomaly-eval", str(store.path), "--data", str(root), "--json"]
    assert main([*line, "--split", "val"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["image_auroc"]) == (2, 1.0)
    (tmp_path / "out.txt").write_text("missed\n")
    assert main([*line, "--exclude", str(tmp_path / "out.txt")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["image_auroc"], figures["with_mask"]) == (3, 1.0, 1)
    assert main([*line, "--split", "test"]) == 1
    assert "has no split 'test'" in capsys.readouterr().err
    assert main([*line, "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_what_is_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    images = write_images(root, {"a": (80, 80)})
    add_voc(root, "a", [(30, 20, 50, 40)])
    store = make_store(tmp_path / "maps", images, {"a": cells((2, 3))})
    assert main(["anomaly-eval", str(store.path), "--data", str(root)]) == 0
    text = capsys.readouterr().out
    assert "pixels: not measured, there are no masks" in text
    assert "images: not measured, none of them is free of defects" in text


# --- the real data sets --------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnetic_tile", {"images": 1344, "with_mask": 388, "normal": 956, "pixel_images": 1344}),
        ("kolektorsdd", {"images": 383, "with_mask": 50, "normal": 333, "pixel_images": 383}),
        ("neu_det", {"images": 1800, "with_mask": 899, "normal": 0, "pixel_images": 899}),
    ],
)
def test_the_real_data_sets_read_right(name: str, expected: dict[str, int], tmp_path: Path) -> None:
    dataset = read_dataset(SHARED / name)
    masks = Masks.find(dataset)
    by_image = {record.key: masks.load(record) for record in dataset}
    known = {key: mask for key, mask in by_image.items() if mask is not None}
    normal = [record for record in dataset if record.key not in known and not len(record.labels)]
    assert (len(dataset), len(known), len(normal)) == (expected["images"], expected["with_mask"], expected["normal"])
    assert all(mask.any() and mask.mean() < 0.9 for mask in known.values())
    # Masks and boxes of an image agree: they were read by different code from different files.
    inside = total = 0
    for record in dataset:
        mask = known.get(record.key)
        if mask is None:
            continue
        boxed = np.zeros(mask.shape, bool)
        for x1, y1, x2, y2 in record.boxes.astype(int):
            boxed[y1:y2, x1:x2] = True
        inside += int((mask & boxed).sum())
        total += int(mask.sum())
    assert inside > 0.95 * total
    # Every image, small: counts as the store gives them.
    few = [r for r in dataset if r.key in known][:4] + [r for r in dataset if r.key not in known][:4]
    part = replace(dataset, records=tuple(few))
    maps = {r.key: np.random.default_rng(i).random((8, 8)).astype(np.float32) for i, r in enumerate(few)}
    images = read_images(SHARED / name)
    result = evaluate_maps(make_store(tmp_path / "maps", images, maps), part)
    assert (result["images"], result["with_mask"]) == (8, 4)
    assert result["pixel_images"] == (4 if name == "neu_det" else 8)
    assert ("image_auroc" in result) == (name != "neu_det")
