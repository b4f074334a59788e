"""labelme and mask folders: shapes and pixels that become boxes, with everything that may be wrong with them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import data_folders as folders
import numpy as np
from data_folders import HEIGHT, WIDTH, write_image
from data_readings import codes, only
from PIL import Image, ImageFilter

from agssp_zoo.training.data import read_dataset


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
