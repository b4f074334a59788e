"""YOLO: boxes as text files and a data.yaml, with everything that may be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_folders import HEIGHT, WIDTH, write_image
from data_readings import codes, only

from agssp_zoo.errors import DataError
from agssp_zoo.training.data import read_dataset, recognise


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
