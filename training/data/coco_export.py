"""A data set as COCO's JSON."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from .dataset import Dataset


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """The data set as the dict that a COCO JSON holds.

    Image ids count from 1 in the order of the records, annotation ids from 1 (COCO tools take 0 for "no match"), and
    category ids are ``label + 1``. Boxes are x, y, width, height in pixels. ``file_name`` is the image's path, or its
    key when it lies in a shard; ``difficult``, which COCO does not know, is kept beside ``iscrowd``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(dataset.records, 1):
        name = record.path if record.offset < 0 else record.key
        images.append(
            {
                "id": number,
                "file_name": PurePosixPath(name).as_posix(),
                "width": record.width,
                "height": record.height,
                "key": record.key,
            }
        )
        rows = zip(
            record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), record.difficult.tolist(), strict=True
        )
        for (x1, y1, x2, y2), label, crowd, difficult in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}
