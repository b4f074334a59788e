"""What one does with a data set: splits, subsets, its fingerprint, its tolerance for errors."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import data_folders as folders
import numpy as np
import pytest

from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.data import Dataset, Problem, Record, read_dataset


def made(labels: list[list[int]], split: str = "train", classes: int = 3) -> Dataset:
    """A data set without files: one image for each list of labels."""
    records = []
    for number, own in enumerate(labels):
        boxes = np.array([[i, i, i + 10, i + 10] for i in range(len(own))], np.float32).reshape(-1, 4)
        none = np.zeros(len(own), np.bool_)
        key = f"{number:04d}"
        records.append(Record(key, f"{key}.png", split, 100, 80, boxes, np.array(own, np.int64), none, none))
    return Dataset(tuple(f"class {n}" for n in range(classes)), tuple(records), path="made")


class TestSplits:
    def test_a_split_that_is_not_there_says_how_to_make_one(self) -> None:
        dataset = made([[0], [1]])
        assert len(dataset.split("train")) == len(dataset.split("all")) == 2
        with pytest.raises(DataError, match=r"no split 'val', only train \(2 images\).*val\.txt.*random_split\(0\.2"):
            dataset.split("val")
        with pytest.raises(DataError, match=r"no split 'test'.*test\.txt"):
            dataset.split("test")

    def test_problems_go_with_their_split(self, tmp_path: Path) -> None:
        dataset = read_dataset(folders.voc(tmp_path))
        problems = tuple(Problem("error", "x", "f", 1, "m", key) for key in ("a", "e", "", "gone"))
        dataset = replace(dataset, problems=problems)
        assert [problem.key for problem in dataset.split("train").problems] == ["a", "", "gone"]
        assert [problem.key for problem in dataset.split("val").problems] == ["e", "", "gone"]

    def test_problems_without_an_image_are_judged_by_all_images(self) -> None:
        dataset = made([[0]] * 20)
        records = tuple(replace(r, split="val" if place < 2 else "train") for place, r in enumerate(dataset))
        lost = Problem("error", "corrupt-image", "x.png", None, "left out.", "x", "train")
        stray = Problem("error", "label-without-image", "y.xml", None, "no image belongs to it.")
        dataset = replace(dataset, records=records, problems=(lost, stray))
        train, val = dataset.split("train"), dataset.split("val")
        assert train.problems == (lost, stray) and val.problems == (stray,)
        with pytest.raises(DataError, match="1 errors in 2 images"):
            val.require_clean(0.1)
        assert val.require_clean(0.1, whole=len(dataset)) is val
        of_val = replace(stray, split="val")
        with pytest.raises(DataError, match="1 errors in 2 images"):
            replace(val, problems=(of_val,)).require_clean(0.1, whole=len(dataset))
        assert [p.split for p in dataset.random_split(0.5).problems] == ["", ""]

    def test_random_split_keeps_the_share_of_every_class(self) -> None:
        rng = np.random.default_rng(3)
        labels = [rng.choice(3, rng.integers(0, 4), p=[0.8, 0.15, 0.05]).tolist() for _ in range(500)]
        dataset = made(labels)
        split = dataset.random_split(0.2, seed=1)
        assert split.splits["val"] == pytest.approx(100, abs=5)

        def showing(part: Dataset, label: int) -> int:
            return sum(label in record.labels if label < 3 else not len(record.labels) for record in part)

        for label in range(4):
            share = showing(split.split("val"), label) / showing(dataset, label)
            assert share == pytest.approx(0.2, abs=0.03), label
        assert [r.key for r in split.split("val")] == [r.key for r in dataset.random_split(0.2, seed=1).split("val")]
        assert [r.key for r in split.split("val")] != [r.key for r in dataset.random_split(0.2, seed=2).split("val")]
        shuffled = replace(dataset, records=dataset.records[::-1]).random_split(0.2, seed=1)
        assert shuffled.fingerprint() == split.fingerprint()

    def test_random_split_of_few_images(self) -> None:
        rare = made([[0]] * 9 + [[1]]).random_split(0.2, seed=0)
        assert rare.splits == {"train": 8, "val": 2}
        assert {record.split for record in rare if 1 in record.labels} == {"train"}, "the only one is to be learnt from"
        assert made([[0], [0]]).random_split(0.01).splits == {"train": 1, "val": 1}
        assert made([[0], [0]]).random_split(0.99).splits == {"train": 1, "val": 1}
        for fraction in (0.0, 1.0, -1.0):
            with pytest.raises(InvalidArgumentError, match="fraction"):
                made([[0], [0]]).random_split(fraction)
            with pytest.raises(InvalidArgumentError, match="val_fraction"):
                made([[0], [0]], split="val").with_val(fraction)
        with pytest.raises(DataError, match="1 images cannot be divided"):
            made([[0]]).random_split()

    def test_random_split_leaves_test_images_alone(self) -> None:
        train, test = made([[0], [1]] * 10), made([[0]] * 5, split="test")
        records = (*train.records, *(replace(record, key="t" + record.key) for record in test.records))
        split = replace(train, records=records).random_split(0.25)
        assert split.splits == {"train": 15, "val": 5, "test": 5}
        assert {record.key[0] for record in split.split("test")} == {"t"}


class TestSubset:
    def test_nested_and_in_order(self) -> None:
        dataset = made([[n % 3] for n in range(100)])
        small, large = dataset.subset(10, seed=4), dataset.subset(30, seed=4)
        keys = [record.key for record in large]
        assert len(keys) == 30 and keys == sorted(keys) and {record.key for record in small} < set(keys)
        assert keys != [record.key for record in dataset.subset(30, seed=5)]

    def test_of_one_split(self) -> None:
        dataset = made([[0]] * 50).random_split(0.2)
        assert dataset.subset(7, split="train").splits == {"train": 7, "val": 10}
        for n in (0, 41):
            with pytest.raises(InvalidArgumentError, match="40 images to draw from"):
                dataset.subset(n, split="train")
        with pytest.raises(DataError, match="no split 'tset'"):
            dataset.subset(1, split="tset")


class TestFingerprint:
    def test_what_changes_it(self) -> None:
        dataset = made([[0, 1], [], [2]])
        record = dataset.records[0]
        order = [1, 0]
        same = [
            replace(dataset, records=dataset.records[::-1]),
            replace(dataset, path="elsewhere", format="coco", problems=(Problem("error", "x", "f", None, "m"),)),
            replace(dataset, records=(replace(record, path="moved/0000.png"), *dataset.records[1:])),
            replace(
                dataset,
                records=(replace(record, boxes=record.boxes[order], labels=record.labels[order]), *dataset.records[1:]),
            ),
        ]
        moved = record.boxes.copy()
        moved[0, 0] += 0.25
        changes = {
            "key": "other", "split": "val", "width": 101, "boxes": moved, "labels": record.labels[order],
            "crowd": ~record.crowd, "difficult": ~record.difficult,
        }  # fmt: skip
        other = [
            replace(dataset, records=(replace(record, **{k: v}), *dataset.records[1:])) for k, v in changes.items()
        ]
        other += [replace(dataset, records=dataset.records[1:]), replace(dataset, class_names=("class 0", "x", "y"))]
        assert {d.fingerprint() for d in same} == {dataset.fingerprint()}
        assert len({d.fingerprint() for d in [dataset, *other]}) == len(other) + 1

    def test_is_the_same_everywhere(self) -> None:
        # A change of this value makes every recorded run look as if its data had changed.
        expected = "1340d19f368720f1b1451a8f48368fd5ab2e884591e97099b03a814cfbcc0de4"
        assert made([[0, 1], [], [2]]).fingerprint() == expected


class TestRequireClean:
    def test_tolerance_is_a_share_of_the_images(self) -> None:
        problems = [Problem("error", "empty-box", "labels/7.txt", 3, "no area", "0007")] * 2
        dataset = replace(made([[0]] * 100), problems=(*problems, Problem("warning", "w", "f", None, "m")))
        with pytest.raises(
            DataError, match=r"2 errors in 100 images(.|\n)*labels/7\.txt:3: error \[empty-box\] no area"
        ):
            dataset.require_clean()
        with pytest.raises(DataError, match=r"tolerance of 1\.00%"):
            dataset.require_clean(0.01)
        assert dataset.require_clean(0.02) is dataset
        for tolerance in (-0.1, 1.1):
            with pytest.raises(InvalidArgumentError):
                dataset.require_clean(tolerance)

    def test_nothing_to_learn(self) -> None:
        with pytest.raises(DataError, match="not one of the 3 images has a label"):
            made([[], [], []]).require_clean()
        with pytest.raises(DataError, match="holds no images"):
            made([]).require_clean()


def test_records_pickle_and_load_elsewhere(tmp_path: Path) -> None:
    record = read_dataset(folders.voc(tmp_path))[0]
    copy = pickle.loads(pickle.dumps(record))
    assert copy.key == record.key and (copy.boxes == record.boxes).all()
    assert (copy.load_image() == record.load_image()).all()
    assert len(pickle.dumps(record)) < 2000, "records travel to every worker; images do not travel with them"
    assert record != copy and record == record


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    folders.coco(tmp_path)
    code = (
        "import sys; from agssp_zoo.training.data import read_dataset\n"
        f"assert read_dataset({str(tmp_path)!r})[0].load_image().shape == (32, 64, 3)\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'matplotlib', 'onnxruntime', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
