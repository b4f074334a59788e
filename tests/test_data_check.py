"""check-data: what it finds in a data set, what it prints, and the pictures it draws."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import data_folders as folders
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError
from agssp_zoo.training.data import read_dataset
from agssp_zoo.training.data.check import check_dataset
from agssp_zoo.training.data.check_cli import to_text
from agssp_zoo.training.data.directions import Directions, count_directions, turned_classes
from agssp_zoo.training.data.input_sizes import compare_input_sizes
from agssp_zoo.training.data.records import Record
from agssp_zoo.training.data.sheet import choose, draw_samples
from agssp_zoo.training.data.similar import look_at, near_duplicates

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def surface(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture with structure at several scales, as a surface has."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0]))
    for cells in (4, 12, 40):
        coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(128 + 30 * total, 0, 255).astype(np.uint8))


def rgb(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


class TestNearDuplicates:
    def test_exposures_of_one_surface_are_found_and_other_surfaces_are_not(self) -> None:
        first = [surface(seed) for seed in range(60)]
        changed = [
            ImageEnhance.Brightness(first[0]).enhance(0.6),
            ImageEnhance.Contrast(first[1]).enhance(0.5),
            first[2].resize((320, 240), Image.Resampling.BICUBIC),
            first[3].crop((2, 2, 160, 120)),
            Image.fromarray(np.clip(np.asarray(first[4]) + np.random.default_rng(1).normal(0, 12, (120, 160)), 0, 255)
                            .astype(np.uint8)),
            first[5],
        ]  # fmt: skip
        second = changed + [surface(seed) for seed in range(100, 160)]
        looks = [look_at(rgb(image)) for image in first + second]
        pairs = near_duplicates(looks, ["train"] * len(first) + ["val"] * len(second))
        found = {(pair.first, pair.second - len(first)) for pair in pairs}
        assert found == {(n, n) for n in range(6)}
        assert (pairs[0].first, pairs[0].same) == (5, True) and sum(pair.same for pair in pairs) == 1
        within = near_duplicates(looks, ["train"] * len(looks))
        assert {(pair.first, pair.second - len(first)) for pair in within} == found

    def test_what_all_images_share_is_no_likeness(self) -> None:
        """Pictures of machine parts that lie in the same place differ only in their surface."""
        scene = np.asarray(surface(7)).astype(float)
        parts = [
            Image.fromarray(np.clip(scene * 0.8 + 0.15 * np.asarray(surface(seed)), 0, 255).astype(np.uint8))
            for seed in range(200, 240)
        ]
        looks = [look_at(rgb(part)) for part in parts]
        assert len(near_duplicates(looks, ["train", "val"] * 20)) == 0
        looks.append(look_at(rgb(ImageEnhance.Brightness(parts[0]).enhance(0.8))))
        assert [(p.first, p.second) for p in near_duplicates(looks, ["train", "val"] * 20 + ["val"])] == [(0, 40)]

    def test_flat_images_are_like_nothing(self) -> None:
        looks = [look_at(np.full((40, 40, 3), level, np.uint8)) for level in (0, 128)]
        assert near_duplicates(looks, ["train", "val"]) == []
        assert near_duplicates([], []) == []
        # Nor are they among images that share much, which is taken out of all of them.
        scene = np.asarray(surface(7)).astype(float)
        parts = [np.clip(0.8 * scene + 0.15 * np.asarray(surface(seed)), 0, 255) for seed in range(200, 210)]
        looks += [look_at(rgb(Image.fromarray(part.astype(np.uint8)))) for part in parts]
        assert near_duplicates(looks, ["train", "val"] * 6) == []

    def test_many_equal_images_are_each_paired_once(self) -> None:
        empty, other = look_at(np.zeros((40, 40, 3), np.uint8)), look_at(rgb(surface(1)))
        looks = [empty] * 1000 + [other] * 2
        pairs = near_duplicates(looks, ["train", "val"] * 501)
        assert len(pairs) == 1000 and all(pair.same and pair.correlation == 1 for pair in pairs)
        assert {place for pair in pairs for place in (pair.first, pair.second)} == set(range(1002))
        assert len(near_duplicates(looks, ["train"] * 1002)) == 1000


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A folder with one thing of each kind wrong."""
    root = tmp_path / "data"
    for split, seeds in (("train", range(8)), ("val", (*range(50, 53), 1))):
        for place, seed in enumerate(seeds):
            for folder in ("images", "labels"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            surface(seed).save(root / f"images/{split}/{place}.png")
            (root / f"labels/{split}/{place}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "classes.txt").write_text("pit\ncrack\nunused\n")
    surface(0).save(root / "images/train/again.png")
    (root / "labels/train/again.txt").write_text("1 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.251 0.25\n0 0.2 0.2 0.01 0.01\n")
    (root / "labels/train/2.txt").write_text("0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.25 0.25\n9 0.5 0.5 0.1 0.1\n")
    file = root / "images/train/3.png"
    file.write_bytes(file.read_bytes()[:2000])
    Image.new("L", (160, 120), 90).save(root / "images/val/2.png")
    return root


def test_every_kind_of_trouble_is_found(troubled: Path) -> None:
    dataset = read_dataset(troubled)
    report = check_dataset(dataset)
    assert Counter(problem.code for problem in report.problems) == {
        "unknown-class": 1,
        "corrupt-image": 1,
        "flat-image": 1,
        "same-image": 1,
        "near-duplicate": 1,
        "box-twice": 1,
        "box-of-two-classes": 1,
        "class-without-boxes": 1,
        "rare-class": 2,
        "class-not-in-split": 1,
    }
    by_code = {problem.code: problem for problem in report.problems}
    assert by_code["unknown-class"].line == 3 and by_code["corrupt-image"].file.endswith("images/train/3.png")
    assert "but their labels differ" in by_code["same-image"].message
    (pair,) = report.duplicates
    assert (pair.first, pair.second, pair.splits, pair.same) == ("train/1", "val/3", ("train", "val"), True)
    assert {split: counts.tolist() for split, counts in report.boxes.items()} == {"train": [9, 3, 0], "val": [4, 0, 0]}
    assert report.images["train"].tolist() == [9, 2, 0, 0]
    # 40x30 pixels (root 35), one of 1.6x1.2
    assert report.sizes.tolist() == [1, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0]
    only_labels = check_dataset(dataset, decode=False)
    assert not only_labels.duplicates and len(only_labels.errors) == 1


def test_input_sizes_say_which_boxes_become_thin() -> None:
    def record(width: int, height: int, *boxes: tuple[int, int, int, int]) -> Record:
        labels, none = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
        return Record("", "", "train", width, height, np.array(boxes, np.float32).reshape(-1, 4), labels, none, none)

    # A box 40 px wide and 12 high: at 320 of 1600 px it has 2.4 px, at 1280 9.6. The other is thick at every size.
    records = [record(1600, 400, (0, 0, 40, 12), (0, 0, 300, 300)), record(1600, 400)]
    found = {entry.option: entry for entry in compare_input_sizes(records)}
    assert {option: entry.thin for option, entry in found.items()} == {
        "--size 224": 1, "--size 320": 1, "--size 480": 1, "--size 640": 1, "--size 960": 1, "--size 1280": 0,
        "--tile 640": 0,
    }  # fmt: skip
    assert all(entry.boxes == 2 for entry in found.values())
    assert (found["--size 320"].scale, found["--size 320"].megapixels) == (0.2, pytest.approx(320 * 80 / 1e6))
    # Three tiles of 640x400, the last moved back to the border.
    assert (found["--tile 640"].scale, found["--tile 640"].megapixels) == (1.0, pytest.approx(3 * 640 * 400 / 1e6))
    small = [entry.option for entry in compare_input_sizes([record(100, 80, (0, 0, 9, 9))])]
    assert small == ["--size 224", "--size 320"], "neither tiles of small images nor senseless enlargements"
    assert compare_input_sizes([]) == []


def test_command_text_json_and_pictures(
    troubled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "report"
    before = {file: file.stat().st_mtime_ns for file in troubled.rglob("*")}
    assert main(["check-data", "data", "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "data/labels/train/2.txt:3: error [unknown-class]" in text
    assert "more errors than the tolerance of 0.00% of 13 images" in text
    assert ["pit", "9", "(9)", "4", "(4)"] in [line.split() for line in text.splitlines()]
    assert (
        "2 errors" in text
        and "across splits: 1 pair of near duplicates (2 images), 1 of the pairs exactly equal" in text
    )
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["boxes_per_class"] == {"pit": 9, "crack": 3, "unused": 0}
    for name in ("samples.png", "duplicates.png"):
        with Image.open(out / name) as sheet:
            assert sheet.width > 300 and len(np.unique(np.asarray(sheet))) > 100
    assert sorted(file.name for file in out.iterdir()) == ["duplicates.png", "report.json", "samples.png"]
    assert main(["check-data", "data", "--json", "--tolerance", "0.2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("usable") is True and printed == report
    assert {file: file.stat().st_mtime_ns for file in troubled.rglob("*")} == before, "the data are left alone"
    # Another report in the same place keeps no picture of this one.
    assert main(["check-data", "data", "--labels-only", "--out", str(out)]) == 1
    assert sorted(file.name for file in out.iterdir()) == ["report.json", "samples.png"]


def test_our_own_pictures_are_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A project's folder holds the images, the reports and the runs; the data stay what they were."""
    root = folders.voc(tmp_path / "project")
    (root / "train.txt").unlink()  # the lists would leave the pictures out
    (root / "val.txt").unlink()
    ImageEnhance.Brightness(Image.open(root / "images/a.png")).enhance(0.8).save(root / "images/c.png")
    before = read_dataset(root)
    assert main(["check-data", str(root), "--out", str(root)]) == 0
    assert main(["check-data", str(root), "--out", str(root / "runs/check")]) == 0
    assert (root / "runs/check/duplicates.png").is_file() and (root / "samples.png").is_file()
    run = root / "runs/train"
    (run / "val").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"settings": {}, "command": "agssp-zoo finetune --data ."}))
    (root / "runs/annotated").mkdir()
    (root / "runs/predictions.json").write_text('[\n{"path": "images/a.png", "page": null}\n]\n')
    for name in ("train/loss.png", "train/map.png", "annotated/a.jpg"):
        folders.write_image(root / "runs" / name, name)
    assert read_dataset(root).fingerprint() == before.fingerprint()
    capsys.readouterr()
    beside = folders.labelme(tmp_path / "labelme")
    (beside / "labelme").rename(beside / "surfaces")
    before_runs = read_dataset(beside)
    for number in range(6):
        (beside / f"runs/{number}").mkdir(parents=True)
        (beside / f"runs/{number}/config.json").write_text("{}")
    assert read_dataset(beside).fingerprint() == before_runs.fingerprint()
    # Such names alone say nothing.
    folders.write_image(root / "maps/map.png", "map")
    folders.write_image(root / "annotated/b.png", "b")
    (root / "maps/config.json").write_text('{"settings": {}}')
    assert {record.key for record in read_dataset(root)} - {record.key for record in before} == {
        "maps/map", "annotated/b",
    }  # fmt: skip


@pytest.mark.parametrize(("bits", "levels"), [(12, 16), (14, 64), (16, 0)])
def test_bits_that_are_not_used_are_reported(tmp_path: Path, bits: int, levels: int) -> None:
    root = folders.voc(tmp_path)
    for file in (root / "images").iterdir():
        values = np.asarray(Image.open(file)).astype(np.uint16)
        values = (values.astype(np.uint32) * ((1 << bits) - 1) // max(int(values.max()), 1)).astype(np.uint16)
        Image.fromarray(values).save(file)
    found = [p.message for p in check_dataset(read_dataset(root)).problems if p.code == "few-gray-levels"]
    assert len(found) == (levels > 0)
    for message in found:
        assert f"6 of 6 images have 16 bits, of which they use {bits}: only {levels} of 256 gray levels" in message
        assert f"Multiply their values by {1 << 16 - bits} first" in message
    for file in (root / "images").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) >> 12).astype(np.uint8)).save(file)  # dark, but of 8 bits
    assert not [p for p in check_dataset(read_dataset(root)).problems if p.code == "few-gray-levels"]


def test_long_lists_are_cut_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.voc(tmp_path)
    (tmp_path / "train.txt").write_text("".join(f"ghost{n}\n" for n in range(50)) + "a\n")
    assert main(["check-data", str(tmp_path), "--limit", "5"]) == 1
    text = capsys.readouterr().out
    assert text.count("[list-without-image]") == 6 and "... and 45 more [list-without-image]" in text
    assert main(["check-data", str(tmp_path), "--limit", "0"]) == 1
    assert capsys.readouterr().out.count("[list-without-image]") == 50


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere"], 1),
        (["x", "--tolerance", "2"], 2),
        (["x", "--samples", "0"], 2),
        (["x", "--format", "y"], 2),
        ([], 2),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", *arguments]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_data_without_any_box_are_not_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.write_image(tmp_path / "images/a.png", "a")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("")
    assert main(["check-data", str(tmp_path), "--format", "yolo"]) == 1
    assert "there is not one box to train on" in capsys.readouterr().out


def test_what_check_data_lets_pass_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both judge the splits each by itself, and an error of one is not the other's."""
    from agssp_zoo.training.finetune import read_splits
    from agssp_zoo.training.settings import TrainSettings

    root = folders.coco(tmp_path / "data")
    file = root / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    stray = {"id": 900, "image_id": 77, "category_id": 1, "bbox": [1, 1, 9, 9]}  # of an image that is not listed
    file.write_text(json.dumps({**document, "annotations": [*document["annotations"], stray]}))
    settings = TrainSettings(data=str(root), tolerance=0.25)
    assert main(["check-data", str(root), "--tolerance", "0.25"]) == 0
    assert [len(part.errors) for part in read_splits(settings)] == [1, 0]
    (root / "images/e.png").write_bytes(b"no image")  # one of two to validate on; two errors would be few of all six
    settings = TrainSettings(data=str(root), tolerance=0.4)
    capsys.readouterr()
    assert main(["check-data", str(root), "--tolerance", "0.4"]) == 1
    assert "more errors in val (1 images) than the tolerance of 40.00%" in capsys.readouterr().out
    with pytest.raises(DataError, match="1 errors in 1 images"):
        read_splits(settings)


def test_a_split_at_random_would_leak(tmp_path: Path) -> None:
    root = folders.voc(tmp_path)
    (root / "train.txt").unlink()
    (root / "val.txt").unlink()
    ImageEnhance.Brightness(Image.open(root / "images/a.png")).enhance(0.8).save(root / "images/c.png")
    report = check_dataset(read_dataset(root))
    messages = {problem.code: problem.message for problem in report.problems}
    assert messages["near-duplicates-inside"].startswith("2 of 6 images look much like another one, e.g. 'a' like 'c'")
    assert "no-val-split" in messages


def test_pairs_are_not_taken_for_images(tmp_path: Path) -> None:
    """Three images that look alike are three pairs: the warning counts images, the last line both."""
    root = folders.voc(tmp_path)
    (root / "train.txt").unlink()
    (root / "val.txt").unlink()
    for name, factor in (("c", 0.8), ("d", 0.9)):
        ImageEnhance.Brightness(Image.open(root / "images/a.png")).enhance(factor).save(root / f"images/{name}.png")
    text = to_text(check_dataset(read_dataset(root)))
    assert "3 of 6 images look much like another one" in text
    assert "within the only split: 3 pairs of near duplicates (3 images), 0 of the pairs exactly equal" in text


def test_the_sheet_shows_every_class_and_background(tmp_path: Path) -> None:
    dataset = read_dataset(folders.voc(tmp_path))
    chosen = choose(dataset, 4, seed=0)
    assert len({record.key for record in chosen}) == 4
    assert {label for record in chosen for label in record.labels.tolist()} == {0, 1, 2}
    assert any(not len(record.labels) for record in chosen)
    assert len(choose(dataset, 100, seed=0)) == 6
    sheet = np.asarray(draw_samples(dataset, 6))
    colours = np.unique(sheet.reshape(-1, 3), axis=0).astype(int)
    assert (np.ptp(colours, axis=1) > 100).any(), "boxes are in colour"
    (tmp_path / "images/a.png").write_bytes(b"gone")
    assert draw_samples(dataset, 6).size == (sheet.shape[1], sheet.shape[0])


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_name_with_a_line_end_is_one_caption(tmp_path: Path) -> None:
    root = folders.voc(tmp_path)
    for listing in root.glob("*.txt"):
        listing.unlink()
    (root / "images/a.png").rename(root / "images" / "a\nb.png")
    assert draw_samples(read_dataset(root, format="images"), 6).size[0] > 0


def test_captions_are_written_in_a_font_that_has_their_letters(tmp_path: Path) -> None:
    from agssp_zoo.plotting import font_for

    def caption(name: str) -> np.ndarray:
        folders.write_image(tmp_path / f"{name}/images/{name}.png", "one")
        (tmp_path / name / "labels").mkdir()
        (tmp_path / name / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        return np.asarray(draw_samples(read_dataset(tmp_path / name), 1))[-24:]

    if font_for("äß", 10)[1] != "äß":
        pytest.skip("no font here has these letters")
    # The box that stands for a missing letter is the same for every letter.
    assert (caption("ä") != caption("ß")).any()
    long = caption("x" * 150)
    assert (long[:, -10:] == 255).all() and (long[:, :-10] < 255).any(), "cut to the tile"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not here")
def test_real_duplicates() -> None:
    """KolektorSDD holds one part twice: the eight surfaces of kos38 are those of kos39."""
    dataset = read_dataset(SHARED / "kolektorsdd")
    some = tuple(record for record in dataset if record.key[:5] in ("kos37", "kos38", "kos39", "kos40"))
    report = check_dataset(replace(dataset, records=some))
    pairs = {(pair.first[:5], pair.second[:5]) for pair in report.duplicates}
    assert pairs == {("kos38", "kos39")} and len(report.duplicates) == 8


def test_every_code_is_explained() -> None:
    """The list at the head of problems.py names each code that the sources use, and no other."""
    import re

    import agssp_zoo.training.data.problems as problems

    folder = Path(problems.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py") if file.name != "problems.py")
    word = r"[a-z]+(?:-[a-z]+)+"
    used = set(re.findall(rf'\.refuse\([^"]*"({word})"', text))
    used |= set(re.findall(rf'(?:\.warning|\.error|note)\(\s*(?:"(?:error|warning)", )?"({word})"', text))
    used |= set(re.findall(rf'code(?:, what)? = \(?"({word})"', text)) | set(re.findall(rf'else \(?"({word})"', text))
    listed = set(re.findall(rf"(?:^    |, |  )({word})(?=  |,|$)", problems.__doc__ or "", flags=re.MULTILINE))
    assert used == listed


def boxed(split: str, sides: list[tuple[int, int]], label: int = 0) -> Record:
    """A record with boxes of these widths and heights."""
    boxes = np.array([(0, 0, width, height) for width, height in sides], np.float32).reshape(-1, 4)
    none = np.zeros(len(sides), bool)
    return Record(f"{split}{label}", "", split, 200, 200, boxes, np.full(len(sides), label), none, none)


def test_classes_that_lie_another_way_in_another_split_are_reported() -> None:
    upright, lying, square = (20, 100), (100, 20), (100, 60)
    train = [boxed("train", [upright] * 45 + [lying] * 5), boxed("train", [square] * 30 + [upright] * 10, 1)]
    assert count_directions(train, 3) == [Directions(50, 45, 5), Directions(40, 10, 0), Directions(0, 0, 0)]
    assert count_directions([], 1) == [Directions(0, 0, 0)]

    def found(val: list[tuple[int, int]], label: int = 0) -> list[str]:
        turned = turned_classes(train, [boxed("val", val, label)], ("scratch", "pit", "crack"), "val")
        return [str(entry) for entry in turned]

    assert found([lying] * 24 + [square] * 1) == [
        "'scratch' is 90% upright, 10% lying of 50 boxes to train on, 0% upright, 96% lying of 25 boxes in val"
    ]
    assert found([upright] * 15 + [lying] * 10) == [], "60 % of 25 are no other direction"
    assert found([lying] * 19) == [], "too few to say"
    assert found([upright] * 30, 1) and not found([square] * 30, 1)


def test_neu_dets_usual_split_has_scratches_the_other_way_round(capsys: pytest.CaptureFixture[str]) -> None:
    if not (SHARED / "neu_det").is_dir():
        pytest.skip("no shared data here")
    main(["check-data", str(SHARED / "neu_det"), "--labels-only"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "[class-turned]" in line]
    assert "'scratches' is 88% upright" in line and "96% lying of 121 boxes in val" in line
    assert "--quarter-turn 0.5 --turn-classes scratches" in line
