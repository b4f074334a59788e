"""Small labelled folders in every format, all of the same images and boxes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("crack", "pit", "scale")
WIDTH, HEIGHT = 64, 32


@dataclass(frozen=True)
class Example:
    name: str
    split: str
    boxes: tuple[tuple[int, int, int, int, int], ...]  # x1 y1 x2 y2 class, ends exclusive


EXAMPLES = (
    Example("a", "train", ((0, 0, 8, 4, 0), (16, 8, 48, 30, 1))),
    Example("b.v2", "train", ((3, 5, 64, 32, 2),)),
    Example("c", "train", ()),
    Example("d", "train", ((1, 1, 9, 9, 1), (20, 1, 30, 9, 1), (20, 12, 30, 31, 0))),
    Example("e", "val", ((60, 28, 64, 32, 0), (4, 4, 24, 20, 1), (30, 2, 40, 12, 2))),
    Example("f", "val", ()),
)


def pixels(name: str, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**32
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_image(file: Path, name: str, width: int = WIDTH, height: int = HEIGHT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(name, width, height)).save(file)


def _images(root: Path, suffix: str = "png") -> None:
    for example in EXAMPLES:
        write_image(root / "images" / f"{example.name}.{suffix}", example.name)


def _lists(root: Path, end: str = "\n") -> None:
    for split in ("train", "val"):
        names = [example.name for example in EXAMPLES if example.split == split]
        (root / f"{split}.txt").write_bytes((end.join(names) + end).encode())


def voc(root: Path, suffix: str = "png") -> Path:
    _images(root, suffix)
    _lists(root)
    (root / "annotations").mkdir()
    for example in EXAMPLES:
        text = f"<annotation>\n<filename>{example.name}.{suffix}</filename>\n"
        text += f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>1</depth></size>\n"
        for x1, y1, x2, y2, label in example.boxes:
            text += f"<object><name>{CLASSES[label]}</name><difficult>0</difficult>\n"
            text += f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n"
            text += "</object>\n"
        (root / "annotations" / f"{example.name}.xml").write_text(text + "</annotation>\n")
    return root


def yolo(root: Path) -> Path:
    _images(root)
    _lists(root)
    (root / "labels").mkdir()
    for example in EXAMPLES:
        (root / "labels" / f"{example.name}.txt").write_text("".join(row + "\n" for row in yolo_rows(example)))
    names = "".join(f"  - {name}\n" for name in CLASSES)
    (root / "data.yaml").write_text(f"train: train.txt\nval: val.txt\nnc: {len(CLASSES)}\nnames:\n{names}")
    return root


def yolo_rows(example: Example) -> list[str]:
    return [
        f"{label} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
        for x1, y1, x2, y2, label in example.boxes
    ]


def coco(root: Path, ids: tuple[int, ...] = (1, 2, 3)) -> Path:
    _images(root)
    for split in ("train", "val"):
        chosen = [example for example in EXAMPLES if example.split == split]
        annotations = [
            {
                "id": number * 10 + place,
                "image_id": number,
                "category_id": ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, example in enumerate(chosen, 5)
            for place, (x1, y1, x2, y2, label) in enumerate(example.boxes)
        ]
        document = {
            "images": [
                {"id": number, "file_name": f"{example.name}.png", "width": WIDTH, "height": HEIGHT}
                for number, example in enumerate(chosen, 5)
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in zip(ids, CLASSES, strict=True)],
        }
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document, indent=1))
    return root


def labelme(root: Path) -> Path:
    _images(root)
    _lists(root)
    (root / "labelme").mkdir()
    for example in EXAMPLES:
        shapes = [
            {"label": CLASSES[label], "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], "shape_type": "polygon"}
            for x1, y1, x2, y2, label in example.boxes
        ]
        document = {
            "version": "5.0",
            "shapes": shapes,
            "imagePath": f"..\\images\\{example.name}.png",
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
        }
        (root / "labelme" / f"{example.name}.json").write_text(json.dumps(document, indent=1))
    return root


def masks(root: Path) -> Path:
    _images(root)
    _lists(root)
    for example in EXAMPLES:
        for label, name in enumerate(CLASSES):
            boxes = [box for box in example.boxes if box[4] == label]
            if not boxes:
                continue
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            for x1, y1, x2, y2, _ in boxes:
                mask[y1, x1:x2] = mask[y2 - 1, x1:x2] = mask[y1:y2, x1] = mask[y1:y2, x2 - 1] = 255
            file = root / "masks" / name / f"{example.name}_mask.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    return root


WRITERS = {"voc": voc, "yolo": yolo, "coco": coco, "labelme": labelme, "masks": masks}
