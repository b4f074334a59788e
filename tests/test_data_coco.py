"""COCO: one JSON file a split, with everything that may be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import data_folders as folders
import pytest
from data_folders import EXAMPLES, write_image
from data_readings import codes, labels, only

from agssp_zoo.errors import DataError
from agssp_zoo.training.data import read_dataset, to_coco


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
