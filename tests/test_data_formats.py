"""Readers of labelled images: one set of boxes in every format, and everything that may be wrong with files."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections import Counter
from pathlib import Path

import data_folders as folders
import numpy as np
import pytest
from data_folders import CLASSES, EXAMPLES, HEIGHT, WIDTH, write_image
from PIL import Image, ImageFilter

from agssp_zoo.cli import main
from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError
from agssp_zoo.training.data import Dataset, listing, read_dataset, recognise, to_coco
from agssp_zoo.training.data.listing import make_files

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not here")


def codes(dataset: Dataset) -> Counter[str]:
    return Counter(problem.code for problem in dataset.problems)


def only(dataset: Dataset, code: str) -> tuple[str, int | None, str]:
    """File name, line and severity of the one problem of a kind."""
    (problem,) = [problem for problem in dataset.problems if problem.code == code]
    return Path(problem.file).name, problem.line, problem.severity


def labels(dataset: Dataset) -> dict[str, list[tuple[float, ...]]]:
    return {
        record.key: sorted(
            (*box, float(label)) for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
        )
        for record in dataset
    }


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


class TestVoc:
    def test_coordinates_count_from_one_unless_told(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        file = tmp_path / "annotations/b.v2.xml"
        assert read_dataset(tmp_path)[1].boxes.tolist() == [[3, 5, 64, 32]]
        assert read_dataset(tmp_path, format="voc0")[1].boxes.tolist() == [[4, 6, 64, 32]]
        file.write_text(file.read_text().replace("<xmin>4<", "<xmin>0<"))
        dataset = read_dataset(tmp_path)
        assert only(dataset, "voc-zero-based")[2] == "warning"
        assert dataset[1].boxes.tolist() == [[0, 5, 64, 32]]
        assert not read_dataset(tmp_path, format="voc0").problems

    def test_problems_have_their_line(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        file = tmp_path / "annotations/d.xml"
        objects = "".join(
            f"<object>\n<name>{name}</name><difficult>{difficult}</difficult>\n<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n</object>\n"
            for name, difficult, x1, y1, x2, y2 in [
                ("pit", 1, 1, 1, 10, 10),
                ("pit", 0, 1, 1, 10, 10),  # again
                ("pit", 0, 50, 5, 70, 9),  # leaves the image
                ("pit", 0, 80, 5, 90, 9),  # outside
                ("pit", 0, 9, 9, 8, 20),  # turned round
                ("pit", 0, "x", 1, 9, 9),
                ("", 0, 1, 1, 9, 9),
            ]
        )
        objects += "<object>\n<name>pit</name>\n</object>\n"
        file.write_bytes(f"<annotation>\n{objects}</annotation>".replace("\n", "\r\n").encode())
        (tmp_path / "annotations/a.xml").write_text("<annotation>\n<object>\n</annotation>")
        (tmp_path / "annotations/c.xml").write_text('<!DOCTYPE a [\n<!ENTITY b "c">\n]>\n<annotation>&b;</annotation>')
        dataset = read_dataset(tmp_path)
        lines = sorted((p.line, p.code, p.severity) for p in dataset.problems if p.file.endswith("d.xml"))
        assert lines == [
            (8, "duplicate-box", "warning"),
            (12, "box-clipped", "warning"),
            (16, "box-outside", "error"),
            (20, "empty-box", "error"),
            (24, "bad-box", "error"),
            (26, "bad-box", "error"),
            (30, "bad-box", "error"),
        ]
        (record,) = [record for record in dataset if record.key == "d"]
        assert record.boxes.tolist() == [[0, 0, 10, 10], [49, 4, 64, 9]] and record.difficult.tolist() == [True, False]
        bad = sorted((Path(p.file).name, p.line) for p in dataset.problems if p.code == "bad-label-file")
        assert bad == [("a.xml", 3), ("c.xml", None)]
        assert {"a", "c"}.isdisjoint(record.key for record in dataset), "an unreadable label is not 'no defects'"

    def test_encodings(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        name = "裂纹"
        for file, encoding in (("a", "gb2312"), ("b.v2", "utf8"), ("d", "Shift_JIS"), ("e", "windows-1251")):
            xml = tmp_path / f"annotations/{file}.xml"
            text = xml.read_text().replace("<name>scale<", f"<name>{name}<" if encoding == "utf8" else "<name>scale<")
            text = text.replace("<name>crack<", f"<name>{name}<" if encoding == "gb2312" else "<name>crack<")
            xml.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'.encode(encoding))
        dataset = read_dataset(tmp_path).require_clean()
        assert dataset.class_names == ("crack", "pit", "scale", name)
        assert [dataset.class_names[label] for label in dataset[0].labels] == [name, "pit"]
        assert len(dataset[1].labels) == 1

        for encoding, content, line, words in (
            ("klingon", b"", None, "'klingon' is not known"), ("hex", b"", None, "'hex' is not known"),
            ("gb2312", b"\n\xff", 2, "not in the encoding 'gb2312'"),
        ):  # fmt: skip
            file = tmp_path / "annotations/c.xml"
            file.write_bytes(b'<?xml version="1.0" encoding="%s"?>' % encoding.encode() + content + b"<annotation/>")
            dataset = read_dataset(tmp_path)
            assert only(dataset, "bad-label-file") == ("c.xml", line, "error") and words in str(dataset.errors[0])
            assert "c" not in {record.key for record in dataset}

    def test_difficult(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        file = tmp_path / "annotations/d.xml"
        text = (
            file.read_text()
            .replace("<difficult>0<", "<difficult>True<", 1)
            .replace("<difficult>0<", "<difficult>1<", 1)
        )
        file.write_text(text)
        (record,) = [record for record in read_dataset(tmp_path) if record.key == "d"]
        assert record.difficult.tolist() == [True, True, False]

    def test_class_list(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        (tmp_path / "classes.txt").write_bytes(b"scale\r\n\r\ncrack\r\n")
        dataset = read_dataset(tmp_path)
        assert dataset.class_names == ("scale", "crack")
        assert codes(dataset) == {"windows-line-ends": 1, "unknown-class": 4}
        assert {Path(p.file).name: p.line for p in dataset.errors} == {"a.xml": 8, "d.xml": 8, "e.xml": 8}
        with pytest.raises(DataError, match="class 'pit' is not in the class list"):
            dataset.require_clean()
        (tmp_path / "classes.txt").write_text("a\nb\na\n")
        with pytest.raises(DataError, match="'a' stands twice"):
            read_dataset(tmp_path)

    def test_lists(self, tmp_path: Path) -> None:
        folders.voc(tmp_path)
        (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nimages/b.v2.png\r\n# no\r\n\r\na\r\nghost\r\n")
        (tmp_path / "val.txt").write_text(f"/elsewhere/images/e.png\na\n{tmp_path}/images/c.png\n")
        dataset = read_dataset(tmp_path)
        assert {record.key: record.split for record in dataset} == {
            "a": "train",
            "b.v2": "train",
            "c": "val",
            "e": "val",
        }
        assert only(dataset, "list-without-image") == ("train.txt", 6, "error")
        assert only(dataset, "listed-twice") == ("train.txt", 5, "warning")
        assert only(dataset, "split-overlap") == ("val.txt", 2, "error")
        assert only(dataset, "not-in-a-list")[2] == "warning" and only(dataset, "windows-line-ends")[0] == "train.txt"
        (tmp_path / "train.txt").unlink()
        assert read_dataset(tmp_path).splits == {"train": 3, "val": 3}

    def test_the_layout_of_the_voc_challenge(self, tmp_path: Path) -> None:
        source = folders.voc(tmp_path / "source")
        root = tmp_path / "VOC"
        (root / "ImageSets/Main").mkdir(parents=True)
        (source / "images").rename(root / "JPEGImages")
        (source / "annotations").rename(root / "Annotations")
        (root / "ImageSets/Main/trainval.txt").write_text("a  1\nb.v2 -1\nc 0\nd\n")
        (root / "ImageSets/Main/test.txt").write_text("e\nf\n")
        (root / "ImageSets/Main/pit_train.txt").write_text("a 1\n")
        dataset = read_dataset(root).require_clean()
        assert dataset.splits == {"train": 4, "test": 2} and dataset.class_counts().sum() == 9


class TestYolo:
    def _folder(self, root: Path, rows: str, **names: str) -> Path:
        write_image(root / "images/train/x.png", "x")
        write_image(root / "images/val/y.png", "y")
        for split, name in (("train", "x"), ("val", "y")):
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{name}.txt").write_bytes(rows.encode())
        for name, text in names.items():
            (root / name.replace("_", ".")).write_text(text)
        return root

    def test_bare_folders_and_where_labels_lie(self, tmp_path: Path) -> None:
        row = "0 0.5 0.5 0.25 0.5\n"
        box = [[24.0, 8.0, 40.0, 24.0]]
        for number, (image, label) in enumerate(
            [
                ("images/val/a.png", "labels/val/a.txt"),
                ("val/images/a.png", "val/labels/a.txt"),
                ("valid/a.png", "valid/a.txt"),
                ("images/a.png", "labels/a.txt"),
                ("a.png", "a.txt"),
            ]
        ):
            root = tmp_path / str(number)
            write_image(root / image, "a")
            (root / label).parent.mkdir(parents=True, exist_ok=True)
            (root / label).write_text(row)
            dataset = read_dataset(root)
            assert dataset[0].boxes.tolist() == box, image
            assert dataset.splits == ({"val": 1} if "val" in image else {"train": 1})
            assert dataset.class_names == ("class_00",) and codes(dataset) == {"no-class-list": 1}

    def test_labels_in_capital_letters(self, tmp_path: Path) -> None:
        for name in ("images/train/a.PNG", "Images/b.png", "images/train/A.png"):
            write_image(tmp_path / name, name)
        for name, row in (
            ("labels/train/a.TXT", "0 0.5 0.5 0.5 0.5\n"),
            ("Labels/b.Txt", "1 0.5 0.5 0.5 0.5\n"),
            ("labels/train/A.txt", "2 0.5 0.5 0.5 0.5\n"),
            ("Labels/train/A.txt", "3 0.5 0.5 0.5 0.5\n"),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(row)
        (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
        assert recognise(tmp_path) == "yolo"
        assert {record.key: record.labels.tolist() for record in read_dataset(tmp_path)} == {
            "b": [1], "train/A": [2], "train/a": [0],
        }  # fmt: skip

    def test_many_images_without_defects_come_first(self, tmp_path: Path) -> None:
        (tmp_path / "labels").mkdir()
        for number in range(60):
            write_image(tmp_path / f"images/{number:02d}.png", "x", 8, 8)
            (tmp_path / f"labels/{number:02d}.txt").write_text("0 0.5 0.5 0.5 0.5\n" if number == 59 else "")
        assert recognise(tmp_path) == "yolo" and len(read_dataset(tmp_path)[59].boxes) == 1
        (tmp_path / "labels/59.txt").write_text("")
        with pytest.raises(DataError, match="--format"):
            read_dataset(tmp_path)

    def test_two_images_of_one_label_file(self, tmp_path: Path) -> None:
        write_image(tmp_path / "images/x.png", "x")
        write_image(tmp_path / "images/x.bmp", "other")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels/x.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        dataset = read_dataset(tmp_path)
        assert only(dataset, "shared-label-file") == ("x.txt", None, "warning")
        assert "images/x.bmp, images/x.png" in next(iter(dataset.problems)).message
        assert [len(record.boxes) for record in dataset] == [1, 1]

    def test_a_blank_line_among_numbered_classes(self, tmp_path: Path) -> None:
        root = self._folder(tmp_path, "1 0.5 0.5 0.25 0.5\n", classes_txt="first\nsecond\n\n  \n")
        assert read_dataset(root).class_names == ("first", "second")
        for text, line in (("first\n \nsecond\n", 2), ("\nfirst\nsecond\n", 1)):
            (root / "classes.txt").write_text(text)
            with pytest.raises(DataError, match=rf"classes\.txt:{line}: a blank line among the class names"):
                read_dataset(root)

    def test_lines(self, tmp_path: Path) -> None:
        rows = [
            "1 0.5 0.5 0.25 0.5",
            "",
            "0 0.125 0.25 0.25 0.25 0.25 0.75",  # a triangle
            "1 0.5 0.5 0.25",
            "1 0.5 0.5 0.25 0.5 0.9",
            "a 0.5 0.5 0.25 0.5",
            "1 32 16 16 16",
            "1 0.5 0.5 0 0.5",
            "2 0.5 0.5 0.25 0.5",
            "1.0 0.9 0.5 0.4 0.5",
            "1 nan 0.5 0.25 0.5",
            "-1 0.5 0.5 0.25 0.5",
        ]
        root = self._folder(tmp_path, "\r\n".join(rows), classes_txt="first\nsecond\n")
        (root / "labels/train/ghost.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        (root / "labels/train/notes.txt").write_text("to do\n")
        dataset = read_dataset(root)
        assert dataset.class_names == ("first", "second")
        assert dataset[0].labels.tolist() == [1, 0, 1]
        assert dataset[0].boxes.tolist() == [[24, 8, 40, 24], [8, 8, 16, 24], [pytest.approx(44.8), 8, 64, 24]]
        lines = {p.line: p.code for p in dataset.problems if p.file.endswith("train/x.txt") and p.line}
        assert lines == {
            4: "bad-line",
            5: "bad-line",
            6: "bad-line",
            7: "not-normalized",
            8: "empty-box",
            9: "unknown-class",
            10: "box-clipped",
            11: "not-normalized",
            12: "bad-line",
        }
        assert codes(dataset)["windows-line-ends"] == 1
        assert only(dataset, "label-without-image") == ("ghost.txt", None, "error")

    def test_data_yaml(self, tmp_path: Path) -> None:
        text = "path: /content/elsewhere\ntrain: ../images/train\nval: [/content/elsewhere/images/val/]\n"
        root = self._folder(tmp_path, "5 0.5 0.5 0.25 0.5\n", data_yaml=text + "nc: 2\nnames: {2: no, 5: 'crack'}\n")
        (root / "labels/val/y.txt").unlink()
        dataset = read_dataset(root)
        assert dataset.class_names == ("no", "crack") and dataset.splits == {"train": 1, "val": 1}
        assert dataset[0].labels.tolist() == [1] and len(dataset[1].labels) == 0
        assert codes(dataset) == {"path-not-there": 1, "category-gaps": 1, "no-label-file": 1}
        assert read_dataset(root / "data.yaml").fingerprint() == dataset.fingerprint()

    def test_a_test_split_that_is_not_there_stops_no_training(self, tmp_path: Path) -> None:
        text = "train: images/train\nval: ../images/val\ntest: ../test/images\nnames: [a]\n"
        root = self._folder(tmp_path, "0 0.5 0.5 0.25 0.5\n", data_yaml=text)
        dataset = read_dataset(root).require_clean()
        assert only(dataset, "split-not-there") == ("data.yaml", None, "warning")
        with pytest.raises(DataError, match="no split 'test'"):
            dataset.split("test")
        (root / "data.yaml").write_text(text.replace("val: ../images/val", "val: ../images/valid"))
        assert [problem.severity for problem in read_dataset(root).problems] == ["error", "warning"]

    @pytest.mark.parametrize("absolute", [False, True])
    def test_images_outside_the_folder_of_data_yaml(self, tmp_path: Path, absolute: bool) -> None:
        store = self._folder(tmp_path / "elsewhere/store", "1 0.5 0.5 0.25 0.5\n")
        project = tmp_path / "projects/one"
        project.mkdir(parents=True)
        write_image(project / "images/more/z.png", "z")
        start = store if absolute else "../../elsewhere/store"
        text = f"train: {start}/images/train\nval: {start}/images/val\ntest: images/more\nnames: [a, b]\n"
        (project / "data.yaml").write_text(text)
        dataset = read_dataset(project).require_clean()
        assert {record.key: (record.split, record.labels.tolist()) for record in dataset} == {
            "elsewhere/store/train/x": ("train", [1]),
            "elsewhere/store/val/y": ("val", [1]),
            "projects/one/more/z": ("test", []),
        }
        assert all(record.load_image().shape == (HEIGHT, WIDTH, 3) for record in dataset)
        # What lies inside is meant, as other programs' exports have it, although the path leads out.
        self._folder(project, "0 0.5 0.5 0.25 0.5\n")
        (project / "data.yaml").write_text("train: ../images/train\nval: ../images/val\nnames: [a, b]\n")
        assert [record.key for record in read_dataset(project).require_clean()] == ["train/x", "val/y"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("train: images/train\nnc: 3\nnames: [a, b]\n", "nc says 3 classes, but names has 2"),
            ("train: images/train\nnames: [a, a]\n", "'a' stands twice"),
            ("train: images/train\nnames: []\n", "has no names"),
            ("train: images/other\nnames: [a]\n", "no train, val or test whose images are there"),
            ("train: images/train\nnames: {x: a}\n", "not a whole number"),
            ("train: [images/train\nnames: {x: a}\n", r"data.yaml:2: not valid YAML"),
        ],
    )
    def test_a_data_yaml_that_contradicts_itself(self, tmp_path: Path, text: str, message: str) -> None:
        root = self._folder(tmp_path, "0 0.5 0.5 0.25 0.5\n", data_yaml=text)
        with pytest.raises(DataError, match=message):
            read_dataset(root)

    def test_names_contradict_labels(self, tmp_path: Path) -> None:
        root = self._folder(tmp_path, "7 0.5 0.5 0.25 0.5\n", data_yaml="train: images/train\nnames: [a, b]\n")
        with pytest.raises(DataError, match=r"x\.txt:1: error \[unknown-class\] .*class id 7 is not among the 2"):
            read_dataset(root).require_clean(0.5)


class TestCoco:
    def _edit(self, root: Path, **changes: object) -> Path:
        file = root / "annotations/instances_train.json"
        document = json.loads(file.read_text())
        for part, extra in changes.items():
            document[part] = document[part] + extra
        file.write_text(json.dumps(document, indent=1))
        return file

    def test_gaps_flags_and_other_ids_in_the_other_file(self, tmp_path: Path) -> None:
        folders.coco(tmp_path, ids=(7, 3, 90))
        flags = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20]}
        self._edit(
            tmp_path,
            annotations=[
                {**flags, "id": 900, "iscrowd": 1},
                {"id": 901, "image_id": 7, "category_id": 90, "segmentation": [[1, 1, 5, 1, 5, 9.5]], "ignore": 1},
            ],
        )
        val = tmp_path / "annotations/instances_val.json"
        document = json.loads(val.read_text())
        for entry in (*document["categories"], *document["annotations"]):
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = {7: 1, 3: 2, 90: 3}[entry[key]]
        val.write_text(json.dumps(document))
        dataset = read_dataset(tmp_path).require_clean()
        assert dataset.class_names == ("pit", "crack", "scale") and codes(dataset) == {"category-gaps": 1}
        record = dataset[2]
        assert record.labels.tolist() == [0, 2] and record.boxes.tolist() == [[1, 2, 31, 22], [1, 1, 5, 9.5]]
        assert record.crowd.tolist() == [True, False] and record.difficult.tolist() == [False, True]
        names = [dataset.class_names[label] for label in dataset.split("val")[0].labels]
        assert names == ["crack", "pit", "scale"]

    def test_problems_have_their_line(self, tmp_path: Path) -> None:
        folders.coco(tmp_path)
        box = {"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}
        file = self._edit(
            tmp_path,
            images=[
                {"id": 5, "file_name": "f.png"},
                {"id": 50, "file_name": "gone.png"},
                {"id": 51, "file_name": "a.png"},
                {"id": 52, "file_name": "e.png", "width": 1, "height": 1},
            ],
            annotations=[
                {**box, "id": 801, "category_id": 9},
                {**box, "id": 802, "image_id": 99},
                {**box, "id": 803, "bbox": [1, 2, -3, 4]},
                {**box, "id": 804, "bbox": [1, 2, 3]},
                {**box, "id": 805, "bbox": [70, 2, 3, 4]},
                {**box, "id": 806, "image_id": 50},  # of an image that was reported already
            ],
        )
        dataset = read_dataset(tmp_path)
        lines = file.read_text().splitlines()

        def entry_line(what: str) -> int:
            """The line of the brace that opens the entry."""
            at = next(number for number, line in enumerate(lines, 1) if what in line)
            return next(number for number in range(at, 0, -1) if lines[number - 1].strip() == "{")

        found = {p.code: p.line for p in dataset.problems if p.file == str(file)}
        assert found["duplicate-image-id"] == entry_line("f.png") and found["missing-image"] == entry_line("gone.png")
        assert found["unknown-class"] == entry_line("801") and found["unknown-image"] == entry_line("802")
        assert found["empty-box"] == entry_line("803") and found["bad-box"] == entry_line("804")
        assert found["box-outside"] == entry_line("805")
        # e.png is claimed by the train file, which is read first, with a size that is wrong.
        assert found["duplicate-image"] and found["size-mismatch"] is None
        assert only(dataset, "split-overlap")[0] == "instances_val.json"
        assert sum(problem.severity == "error" for problem in dataset.problems) == 10

    def test_layouts(self, tmp_path: Path) -> None:
        source = folders.coco(tmp_path / "source")
        by_split = tmp_path / "by_split"
        for split, folder in (("train", "train"), ("val", "valid")):
            (by_split / folder).mkdir(parents=True)
            for example in EXAMPLES:
                if example.split == split:
                    write_image(by_split / folder / f"{example.name}.png", example.name)
            text = (source / f"annotations/instances_{split}.json").read_text()
            (by_split / folder / "_annotations.coco.json").write_text(text)
        assert labels(read_dataset(by_split)).keys() == {
            "train/a", "train/b.v2", "train/c", "train/d", "valid/e", "valid/f",
        }  # fmt: skip
        assert read_dataset(by_split).splits == {"train": 4, "val": 2}
        single = read_dataset(source / "annotations/instances_val.json")
        assert single.splits == {"val": 2} and codes(single) == {"image-without-entry": 1}

    def test_a_name_that_says_no_split_is_reported_beside_those_that_do(self, tmp_path: Path) -> None:
        root = folders.coco(tmp_path)
        (root / "annotations/instances_val.json").rename(root / "annotations/instances_holdout.json")
        dataset = read_dataset(root)
        assert dataset.splits == {"train": 6} and codes(dataset)["split-not-told"] == 1
        (root / "annotations/instances_train.json").rename(root / "annotations/instances_rest.json")
        assert "split-not-told" not in codes(read_dataset(root))  # one set in two parts

    def test_lists_that_are_far_apart(self, tmp_path: Path) -> None:
        root = folders.coco(tmp_path)
        file = root / "annotations/instances_train.json"
        document = json.loads(file.read_text())
        for entry in document["images"]:
            entry["license"] = "x" * 100_000
        document["annotations"] *= 1000
        document["annotations"][-1] = {**document["annotations"][-1], "bbox": [1, 1, 0, 1]}
        order = ("images", "categories", "annotations")
        file.write_text(json.dumps({name: document[name] for name in order}))
        dataset = read_dataset(root)
        assert dataset.splits == {"train": 4, "val": 2} and only(dataset, "empty-box")[1] == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"categories": [{"id": 1, "name": "again"}]}, "category 3: its id is used twice"),
            ({"categories": [{"id": 9, "name": "pit"}]}, "'pit' stands twice"),
            ({"categories": [{"id": 9}]}, "needs id and name"),
            ({"images": ["x"]}, "entry 4 of 'images' is not an object"),
        ],
    )
    def test_a_file_that_contradicts_itself(self, tmp_path: Path, change: dict[str, object], message: str) -> None:
        folders.coco(tmp_path)
        self._edit(tmp_path, **change)
        with pytest.raises(DataError, match=message):
            read_dataset(tmp_path)

    def test_export_and_back(self, tmp_path: Path) -> None:
        folders.coco(tmp_path, ids=(2, 4, 7))
        dataset = read_dataset(tmp_path).split("train")
        exported = to_coco(dataset)
        assert [image["id"] for image in exported["images"]] == [1, 2, 3, 4]
        assert exported["annotations"][0] == {
            "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 4], "area": 32, "iscrowd": 0, "difficult": 0,
        }  # fmt: skip
        (tmp_path / "annotations/instances_val.json").unlink()
        (tmp_path / "annotations/instances_train.json").write_text(json.dumps(exported))
        assert read_dataset(tmp_path).fingerprint() == dataset.fingerprint()


class TestLabelme:
    def test_shapes_groups_and_flags(self, tmp_path: Path) -> None:
        folders.labelme(tmp_path)
        file = tmp_path / "labelme/a.json"
        document = json.loads(file.read_text())
        document["shapes"] = [
            {"label": "pit", "points": [[10, 10], [13, 14]], "shape_type": "circle"},
            {"label": "pit", "points": [[40, 20], [30, 25]], "shape_type": "rectangle", "flags": {"difficult": True}},
            {"label": "crack", "points": [[1, 1], [5, 1], [5, 4]], "group_id": 3, "shape_type": "polygon"},
            {"label": "crack", "points": [[9, 8], [12, 1], [5, 4]], "group_id": 3, "shape_type": "polygon"},
            {"label": "pit", "points": [[1, 1]], "shape_type": "point"},
            {"label": "__ignore__", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"},
            {"label": "crack", "points": [[1, 1], [9, 1]], "shape_type": "line"},
            {"points": [[1, 1], [9, 1]]},
        ]
        file.write_text(json.dumps(document, indent=1))
        (tmp_path / "labelme/c.json").write_text("{")
        dataset = read_dataset(tmp_path)
        record = dataset[0]
        assert record.boxes.tolist() == [[5, 5, 15, 15], [30, 20, 40, 25], [1, 1, 12, 8]]
        assert record.difficult.tolist() == [False, True, False] and record.labels.tolist() == [1, 1, 0]
        assert codes(dataset) == {"bad-box": 2, "empty-box": 1, "bad-label-file": 1}
        lines = file.read_text().splitlines()
        (empty,) = [p.line for p in dataset.problems if p.code == "empty-box"]
        assert lines[empty - 1].strip() == "{" and '"crack"' in lines[empty]
        assert "c" not in {record.key for record in dataset}

    def test_the_points_of_a_mask_are_its_first_and_last_pixel(self, tmp_path: Path) -> None:
        folders.labelme(tmp_path)
        file = tmp_path / "labelme/a.json"
        picture = io.BytesIO()
        Image.fromarray(np.ones((6, 11), np.uint8)).save(picture, "PNG")
        mask = {"label": "pit", "shape_type": "mask", "mask": base64.b64encode(picture.getvalue()).decode()}
        shapes = [
            {**mask, "points": [[10, 20], [20, 25]]},
            {**mask, "points": [[30.2, 20.4], [41.0, 26.0]]},  # as newer versions round them
            {**mask, "points": [[5, 7], [5, 9]], "mask": "no picture"},
        ]
        file.write_text(json.dumps({**json.loads(file.read_text()), "shapes": shapes}))
        record = read_dataset(tmp_path)[0]
        assert record.boxes.tolist() == [[10, 20, 21, 26], [30, 20, 41, 26], [5, 7, 6, 10]]


class TestMasks:
    def _folder(self, root: Path, mask: np.ndarray, name: str = "masks/x.png") -> Path:
        write_image(root / "images/x.png", "x")
        write_image(root / "images/free.png", "free")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / name)
        return root

    def test_components(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2:5, 2:5] = 255
        mask[5:7, 5:9] = 255  # touches at a corner: the same defect
        mask[20:24, 40:64] = 255
        mask[12, 12:15] = 255  # a speck
        dataset = read_dataset(self._folder(tmp_path, mask))
        assert dataset.class_names == ("defect",) and dataset.format == "masks"
        assert dataset[1].boxes.tolist() == [[2, 2, 9, 7], [40, 20, 64, 24]]
        assert codes(dataset) == {"mask-speck": 1, "no-label-file": 1}
        assert len(dataset[0].boxes) == 0

    def test_masks_of_an_image_have_one_size(self, tmp_path: Path) -> None:
        """A mask of half the size would give boxes of half the size, in the wrong place."""
        half, whole = np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        half[2:8, 2:8], whole[20:30, 30:40] = 255, 255
        root = self._folder(tmp_path, half, "masks/crack/x.png")
        (root / "masks/pit").mkdir()
        Image.fromarray(whole).save(root / "masks/pit/x.png")
        dataset = read_dataset(root)
        assert [record.key for record in dataset] == ["free"]
        (problem,) = dataset.errors
        assert problem.code == "size-mismatch" and problem.file.endswith("pit/x.png") and problem.key == "x"

    def test_values_are_classes(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2:8, 2:8], mask[2:8, 8:20], mask[20:30, 30:40], mask[0] = 1, 3, 1, 255
        root = self._folder(tmp_path, mask)
        assert read_dataset(root).class_names == ("class_01", "class_03")
        (root / "classes.txt").write_text("crack\npit\nscale\n")
        dataset = read_dataset(root)
        assert dataset.class_names == ("crack", "pit", "scale")
        assert sorted(zip(dataset[1].labels.tolist(), dataset[1].boxes.tolist(), strict=True)) == [
            (0, [2, 2, 8, 8]), (0, [30, 20, 40, 30]), (2, [8, 2, 20, 8]),
        ]  # fmt: skip
        (root / "classes.txt").write_text("crack\npit\n")
        assert "unknown-class" in codes(read_dataset(root))

    def test_a_value_has_one_name_in_all_masks(self, tmp_path: Path) -> None:
        """Which classes there are is a matter of the whole set: value 1 alone in a file is no other class."""
        one, two = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        one[2:8, 2:8] = two[2:8, 2:8] = 1
        root = self._folder(tmp_path, one)
        assert read_dataset(root).class_names == ("defect",)
        two[20:30, 30:40] = 2
        (root / "val.txt").write_text("free\n")
        Image.fromarray(two).save(root / "masks/free.png")
        dataset = read_dataset(root)
        assert dataset.class_names == ("class_01", "class_02")
        assert {record.split: record.labels.tolist() for record in dataset} == {"train": [0], "val": [0, 1]}

    def test_soft_edges_and_colour(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        mask[4:12, 4:12] = (90, 0, 0)
        mask[5:11, 5:11] = (250, 10, 0)
        assert read_dataset(self._folder(tmp_path, mask, "ground_truth/x_mask.png"))[1].boxes.tolist() == [
            [5, 5, 11, 11]
        ]

    def test_values_that_cannot_number_classes_are_not_merged_silently(self, tmp_path: Path) -> None:
        gray = np.zeros((HEIGHT, WIDTH), np.uint8)
        gray[2:12, 2:12], gray[2:12, 20:40] = 100, 200
        colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colour[2:12, 2:12], colour[2:12, 12:40] = (255, 0, 0), (0, 255, 0)
        for name, mask, words in (("gray", gray, "(100, 200)"), ("colour", colour, "(0/255/0, 255/0/0)")):
            dataset = read_dataset(self._folder(tmp_path / name, mask))
            assert only(dataset, "mask-values") == ("x.png", None, "error") and words in dataset.errors[0].message
            assert dataset.errors[0].key == "x"
        (tmp_path / "colour/classes.txt").write_text("crack\n")  # then both are cracks
        assert not read_dataset(tmp_path / "colour").errors
        (tmp_path / "gray/classes.txt").write_text("crack\n")
        assert read_dataset(tmp_path / "gray").errors, "100 of 200 is still lost"
        instances = np.zeros((HEIGHT, WIDTH), np.uint8)
        instances[2:12, 2:12], instances[2:12, 20:40] = 1, 2
        assert codes(read_dataset(self._folder(tmp_path / "i", instances, "masks/crack/x.png")))["mask-values"] == 1

    def test_soft_and_compressed_masks_of_one_class_are_fine(self, tmp_path: Path) -> None:
        sharp = Image.new("L", (400, 200))
        sharp.paste(255, (30, 20, 130, 90))
        sharp.paste(255, (300, 100, 330, 160))
        for number, mask in enumerate((
            sharp.resize((100, 50), Image.Resampling.LANCZOS), sharp.resize((150, 77), Image.Resampling.BILINEAR),
            sharp.resize((900, 450), Image.Resampling.BICUBIC), sharp.filter(ImageFilter.GaussianBlur(9)),
            Image.merge("RGB", [sharp, Image.new("L", sharp.size), Image.new("L", sharp.size)]),
        )):  # fmt: skip
            for suffix, options in (("png", {}), ("jpg", {"quality": 30})):
                root = tmp_path / f"{number}{suffix}"
                (root / "images").mkdir(parents=True)
                (root / "masks").mkdir()
                Image.new("L", mask.size, 7).save(root / "images/x.png")
                mask.save(root / f"masks/x.{suffix}", **options)
                dataset = read_dataset(root)
                assert not dataset.errors and len(dataset[0].boxes) == 2 and "mask-faint" not in codes(dataset)
        faint = np.zeros((HEIGHT, WIDTH), np.uint8)
        faint[4:12, 4:12], faint[20, 10:40] = 255, np.linspace(90, 120, 30)  # a hairline that scaling has thinned
        dataset = read_dataset(self._folder(tmp_path / "faint", faint))
        assert only(dataset, "mask-faint")[2] == "warning" and len(dataset[1].boxes) == 1

    def test_one_bit_wrong_size_corrupt_and_stray(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask[4:12, 4:12] = True
        assert read_dataset(self._folder(tmp_path / "1", mask))[1].boxes.tolist() == [[4, 4, 12, 12]]
        assert codes(read_dataset(self._folder(tmp_path / "2", mask[:, :20])))["size-mismatch"] == 1
        root = self._folder(tmp_path / "3", mask)
        (root / "masks/free.png").write_bytes(b"no")
        self._folder(root, mask, "masks/other.png")
        dataset = read_dataset(root)
        assert codes(dataset) == {"corrupt-mask": 1, "label-without-image": 1}
        assert [record.key for record in dataset] == ["x"]

    def test_the_layout_of_mvtec(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:12, 4:12] = 255
        for name in ("train/good/000", "test/good/000", "test/crack/000", "test/scratch/000", "test/scratch/001"):
            write_image(tmp_path / f"{name}.png", name)
        for name in ("crack/000", "scratch/000", "scratch/001"):
            file = tmp_path / f"ground_truth/{name}_mask.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
        dataset = read_dataset(tmp_path)
        assert dataset.class_names == ("crack", "scratch") and dataset.splits == {"train": 1, "test": 4}
        found = {record.key: record.labels.tolist() for record in dataset if len(record.labels)}
        assert found == {"test/crack/000": [0], "test/scratch/000": [1], "test/scratch/001": [1]}


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
