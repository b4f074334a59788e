"""Pascal VOC: boxes as XML files, with everything that may be wrong with them."""

from __future__ import annotations

from pathlib import Path

import data_folders as folders
import pytest
from data_readings import codes, only

from agssp_zoo.errors import DataError
from agssp_zoo.training.data import read_dataset


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
