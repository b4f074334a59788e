"""Readers of labelled images: one set of boxes in every format, and everything that may be wrong with files."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import data_folders as folders
import numpy as np
import pytest
from data_folders import CLASSES, EXAMPLES, HEIGHT, WIDTH, write_image
from data_readings import codes, labels, only
from PIL import Image

from agssp_zoo.cli import main
from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError
from agssp_zoo.training.data import listing, read_dataset, recognise
from agssp_zoo.training.data.listing import make_files

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not here")


class TestAllFormats:
    @pytest.mark.parametrize("name", folders.WRITERS)
    def test_the_same_boxes_whatever_the_format(self, tmp_path: Path, name: str) -> None:
        folders.WRITERS[name](tmp_path)
        assert recognise(tmp_path) == name
        dataset = read_dataset(tmp_path).require_clean()
        assert dataset.format == name
        assert dataset.class_names == CLASSES
        assert dataset.splits == {"train": 4, "val": 2}
        expected = {e.name: sorted(tuple(map(float, box)) for box in e.boxes) for e in EXAMPLES}
        assert labels(dataset) == expected
        reference = folders.voc(tmp_path / "reference")
        assert dataset.fingerprint() == read_dataset(reference).fingerprint()
        record = dataset.split("val")[0]
        assert record.key == "e" and record.boxes.dtype == np.float32 and record.labels.dtype == np.int64
        assert record.crowd.dtype == record.difficult.dtype == np.bool_
        image = record.load_image()
        assert image.shape == (HEIGHT, WIDTH, 3) and (image[..., 0] == folders.pixels("e")).all()

    @pytest.mark.parametrize("name", folders.WRITERS)
    def test_the_format_can_be_told(self, tmp_path: Path, name: str) -> None:
        folders.WRITERS[name](tmp_path)
        assert read_dataset(tmp_path, format=name, split="val").splits == {"val": 2}
        with pytest.raises(InvalidArgumentError, match="format is 'xml'"):
            read_dataset(tmp_path, format="xml")

    @pytest.mark.parametrize("name", folders.WRITERS)
    def test_damaged_files_give_problems_or_one_clear_error(self, tmp_path: Path, name: str) -> None:
        folders.WRITERS[name](tmp_path)
        files = [f for f in sorted(tmp_path.rglob("*")) if f.is_file() and "images" not in f.parts]
        rng = np.random.default_rng(0)
        outcomes: Counter[str] = Counter()
        for _ in range(60):
            file = files[rng.integers(len(files))]
            whole = file.read_bytes()
            damaged = bytearray(whole)
            for _ in range(rng.integers(1, 6)):
                if damaged:
                    damaged[rng.integers(len(damaged))] = rng.choice(np.frombuffer(b'0-9[]{}",:<>\x00\xff e', np.uint8))
            file.write_bytes(damaged[: rng.integers(len(damaged) + 1)] if rng.random() < 0.3 else damaged)
            try:
                dataset = read_dataset(tmp_path, format=name)
                outcomes["errors" if dataset.errors else "read"] += 1
                for record in dataset:
                    assert (record.boxes[:, :2] < record.boxes[:, 2:]).all() and (record.boxes >= 0).all()
                    assert (record.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
                    assert (record.labels < len(dataset.class_names)).all()
            except AgsspZooError:
                outcomes["refused"] += 1
            file.write_bytes(whole)
        assert outcomes["errors"] + outcomes["refused"] > 5, outcomes

    def test_unlabelled_missing_and_ambiguous_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder"):
            read_dataset(tmp_path / "nowhere")
        with pytest.raises(DataError, match="holds no images"):
            read_dataset(tmp_path)
        write_image(tmp_path / "images" / "a.png", "a")
        with pytest.raises(
            DataError, match=r"1 images, but no labels .* COCO .* YOLO .* Pascal VOC .* labelme .* masks"
        ):
            read_dataset(tmp_path)
        for name in folders.WRITERS:
            with pytest.raises(DataError):
                read_dataset(tmp_path, format=name)
        both = folders.voc(tmp_path / "both")
        (both / "coco.json").write_text((folders.coco(tmp_path / "c") / "annotations/instances_val.json").read_text())
        assert "several-formats" in codes(read_dataset(both))


class TestImages:
    def test_unusable_images_are_left_out_and_reported(self, tmp_path: Path) -> None:
        folders.voc(tmp_path, "jpg")
        images = tmp_path / "images"
        (images / "a.jpg").write_bytes(b"not an image")
        (images / "b.v2.jpg").write_bytes(b"")
        write_image(images / "c.jpg", "c", WIDTH * 2, HEIGHT * 2)
        (images / "e.jpg").unlink()
        dataset = read_dataset(tmp_path)
        found = codes(dataset)
        assert found == {"corrupt-image": 2, "size-mismatch": 1, "label-without-image": 1, "list-without-image": 1}
        assert only(dataset, "list-without-image") == ("val.txt", 1, "error")
        assert [record.key for record in dataset] == ["d", "f"]
        with pytest.raises(DataError, match=r"5 errors in 2 images(.|\n)*c\.xml: error \[size-mismatch\]"):
            dataset.require_clean(0.5)

    def test_an_image_that_is_truncated_or_changes_fails_when_it_is_loaded(self, tmp_path: Path) -> None:
        folders.voc(tmp_path, "jpg")
        file = tmp_path / "images" / "a.jpg"
        record = read_dataset(tmp_path)[0]
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(AgsspZooError, match=r"a\.jpg"):
            record.load_image()
        write_image(file, "a", 20, 20)
        with pytest.raises(DataError, match="is now 20x20 pixels, but 64x32"):
            record.load_image()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
    def test_every_exif_orientation_is_reported(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        write_image(tmp_path / "images/y.png", "y")
        Image.fromarray(folders.pixels("x")).save(tmp_path / f"images/x.{suffix}", exif=exif)
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels/x.txt").write_text("0 0.5 0.25 1 0.5\n")
        dataset = read_dataset(tmp_path)
        assert codes(dataset)["exif-orientation"] == (orientation > 1)
        shape = (dataset[0].height, dataset[0].width)
        assert dataset[0].load_image().shape[:2] == shape == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))

    def test_exif_orientation(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "labels").mkdir()
        (tmp_path / "images").mkdir()
        Image.fromarray(folders.pixels("x")).save(tmp_path / "images/x.jpg", exif=exif)
        (tmp_path / "labels/x.txt").write_text("0 0.5 0.25 1 0.5\n")
        dataset = read_dataset(tmp_path)
        record = dataset[0]
        assert (record.width, record.height) == (HEIGHT, WIDTH) and "exif-orientation" in codes(dataset)
        assert record.load_image().shape == (WIDTH, HEIGHT, 3)
        assert record.boxes.tolist() == [[0, 0, HEIGHT, WIDTH / 2]]

    def test_keys_stay_apart(self, tmp_path: Path) -> None:
        for name in ("images/x.png", "images/x.bmp", "images/train/y.png", "images/val/y.png"):
            write_image(tmp_path / name, name)
        (tmp_path / "labels/train").mkdir(parents=True)
        (tmp_path / "labels/train/y.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        dataset = read_dataset(tmp_path)
        keys = {record.key: len(record.boxes) for record in dataset}
        assert keys == {"images/x.png": 0, "images/x.bmp": 0, "train/y": 1, "val/y": 0}

    def test_names_that_are_not_utf_8(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """As zips packed on old machines hold them: bytes that stand for letters in Latin-1, or in nothing known."""
        root = folders.voc(tmp_path / "data")
        latin, same, other = (os.fsdecode(name) for name in (b"Ri\xdf", "Riß".encode(), b"Ri\x9a"))
        try:
            for old, new in (("a", latin), ("c", same), ("d", other)):
                (root / f"images/{old}.png").rename(root / f"images/{new}.png")
                (root / f"annotations/{old}.xml").rename(root / f"annotations/{new}.xml")
        except OSError:
            pytest.skip("this file system has no such names")
        (root / "train.txt").write_text("Ri%9A\nb.v2\n")
        with pytest.raises(DataError, match="more than the tolerance"):  # which of the two is Riß cannot be told
            (root / "val.txt").write_text("Riß\ne\nf\n")
            read_dataset(root).require_clean()
        (root / f"images/{same}.png").unlink()
        (root / f"annotations/{same}.xml").unlink()
        dataset = read_dataset(root).require_clean()
        assert {record.key: record.split for record in dataset} == {
            "Ri%9A": "train", "b.v2": "train", "Riß": "val", "e": "val", "f": "val",
        }  # fmt: skip
        assert dataset.split("val")[0].key == "Riß" and len(dataset.split("val")[0].boxes) == 2
        assert main(["check-data", str(root), "--out", str(tmp_path / "report")]) == 0
        assert main(["pack", str(root), "--out", str(tmp_path / "shards")]) == 0
        assert read_dataset(tmp_path / "shards").fingerprint() == dataset.fingerprint()
        (root / f"images/{latin}.png").write_bytes(b"gone")
        assert main(["check-data", str(root), "--out", str(tmp_path / "report")]) == 1
        assert "images/Riß.png: error [corrupt-image]" in capsys.readouterr().out

    def test_both_spellings_of_a_name_have_keys_of_their_own(self, tmp_path: Path) -> None:
        names = [b"Ri\xdf.png", "Riß.png".encode(), b"x.png"]
        files = make_files(tmp_path, [os.fsdecode(name) for name in names], frozenset())
        assert [file.key for file in files] == ["Ri%DF.png", "Riß.png", "x"]

    def test_a_label_of_one_split_is_not_taken_for_an_image_of_another(self, tmp_path: Path) -> None:
        source = folders.voc(tmp_path / "source")
        text = (source / "annotations/a.xml").read_text()
        for place in ("train/a", "val/a", "val/b"):
            (tmp_path / "data/annotations" / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data/annotations" / f"{place}.xml").write_text(text.replace("a.png", f"{place[-1]}.png"))
        write_image(tmp_path / "data/images/train/a.png", "a")
        write_image(tmp_path / "data/images/val/b.png", "b")
        dataset = read_dataset(tmp_path / "data")
        assert only(dataset, "label-without-image") == ("a.xml", None, "error")
        assert {record.key: len(record.boxes) for record in dataset} == {"train/a": 2, "val/b": 2}


@real_data
class TestRealData:
    def test_neu_det(self) -> None:
        read_dataset(SHARED / "neu_det")  # the files come from the disk once
        start = time.process_time()
        dataset = read_dataset(SHARED / "neu_det").require_clean()
        assert time.process_time() - start < 2.0, "1800 XML files should take about half a second"
        assert dataset.splits == {"train": 1439, "val": 361}
        assert dataset.class_names == (
            "crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches",
        )  # fmt: skip
        # 4189 boxes, of which 3 stand twice.
        assert dataset.class_counts().tolist() == [688, 1010, 880, 432, 628, 548]
        assert codes(dataset) == {"duplicate-box": 3}
        assert sum(int(record.difficult.sum()) for record in dataset) == 81

    def test_neu_det_counts_from_one(self) -> None:
        """No coordinate is 0 and the largest is 200 in images of 200 pixels: 1-based, inclusive."""
        boxes = np.concatenate([record.boxes for record in read_dataset(SHARED / "neu_det")])
        assert boxes.min() == 0 and boxes.max() == 200
        raw = np.concatenate([record.boxes for record in read_dataset(SHARED / "neu_det", format="voc0")])
        assert raw[:, :2].min() == 1 and raw.max() == 200

    def test_neu_det_masks_agree_with_boxes(self) -> None:
        """Where a box and a component of the mask are the same defect, their edges agree within 3 pixels."""
        masks = {record.key: record for record in read_dataset(SHARED / "neu_det", format="masks")}
        gaps = []
        for record in read_dataset(SHARED / "neu_det"):
            for box in record.boxes:
                for other in masks[record.key].boxes:
                    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
                    shared = np.prod(np.clip(high - low, 0, None))
                    whole = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared
                    if shared / whole > 0.7:
                        gaps.append(box - other)
        assert len(gaps) > 500
        assert (np.abs(np.median(gaps, axis=0)) <= 3).all()

    @pytest.mark.parametrize(
        ("name", "format", "images", "counts"),
        [
            ("magnetic_tile", "masks", 1344, [118, 118, 70, 38, 101]),
            ("kolektorsdd", "masks", 383, [51]),
            ("bsdata", "labelme", 394, [485]),
        ],
    )
    def test_others(self, name: str, format: str, images: int, counts: list[int]) -> None:
        dataset = read_dataset(SHARED / name).require_clean()
        assert dataset.format == format and len(dataset) == images and dataset.class_counts().tolist() == counts

    @pytest.mark.parametrize("name", ["xsdd", "cold_rolled_strip"])
    def test_without_labels(self, name: str) -> None:
        with pytest.raises(DataError, match="no labels that are recognised"):
            read_dataset(SHARED / name)


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    folders.voc(tmp_path / "data")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    moved = tmp_path / "elsewhere"
    (tmp_path / "data/images").rename(moved)
    (tmp_path / "data/images").symlink_to(moved)
    assert len(read_dataset(tmp_path / "data").require_clean()) == 6


def test_thousands_of_images_of_one_name_are_told_apart_by_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = listing.split_name

    def counted(word: str) -> str:
        nonlocal calls
        calls += 1
        return real(word)

    monkeypatch.setattr(listing, "split_name", counted)

    def found(count: int) -> int:
        nonlocal calls
        calls = 0
        rels = [
            f"{'val' if n % 5 == 0 else 'train'}/part{n}/{cam}.png" for n in range(count) for cam in ("top", "side")
        ]
        images = listing.make_files(Path("data"), rels, listing.IMAGE_FOLDERS)
        matcher = listing.Matcher(images)
        # Paths of another machine, and folders that no image is in: nothing fits exactly.
        assert [matcher.find("/elsewhere/data/" + rel) for rel in rels] == images
        assert [matcher.match(f"boxes/{rel[:-4]}.xml") for rel in rels] == images
        assert [matcher.match(f"masks/bad/{rel[:-4]}_mask.png", mask=True) for rel in rels] == images
        assert matcher.find("top.png") is None
        assert matcher.match("boxes/other/top.xml") is None
        assert matcher.match("boxes/val/part1/top.xml") is None  # which is of train
        return calls

    assert found(200) < 2.5 * found(100)
