"""Images that a COCO file names by an absolute path, wherever they lie.

A file of pseudo-boxes lies beside the maps it was made from, not beside the images; it is read where it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .listing import IMAGE_FOLDERS, File, is_image, list_images, make_files


def coco_images(root: Path, rels: Sequence[str], documents: Sequence[dict[str, Any]]) -> list[File]:
    """The images that COCO files may mean: those of the folder, and those named by an absolute path that is there.

    Where all are named like that, the folder's own images are left out. The keys of images named so are those that the
    file states (``key``, as :func:`~agssp_zoo.training.data.to_coco` writes it), else their paths below the folder
    that they share. An absolute path into the folder, without a stated key, is like any other name.

    Args:
        root: the folder of the COCO files.
        rels: all files below it.
        documents: the parsed COCO files; their ``images`` are lists of objects.

    Raises:
        DataError: there are no images at all.
    """
    base = root.absolute()
    named = [entry for document in documents for entry in document["images"] if _name(entry)]
    found: dict[str, Any] = {}
    for entry in named:
        path, key = Path(_name(entry)), entry.get("key")
        stated = isinstance(key, str) and bool(key)
        if is_image(path.name) and path.is_absolute() and (stated or not path.is_relative_to(base)) and path.is_file():
            found[_name(entry)] = key if stated else None
    if not found:
        return list_images(root, rels)
    keys = list(found.values())
    if None in keys or len(set(keys)) < len(keys):
        shared = Path(os.path.commonpath([PurePosixPath(name).parent for name in found]))
        keys = [file.key for file in make_files(shared, [os.path.relpath(n, shared) for n in found], IMAGE_FOLDERS)]
    images = [File(name, name, key) for name, key in zip(found, keys, strict=True)]
    if all(_name(entry) in found for entry in named) or not any(map(is_image, rels)):
        return images
    taken = {Path(name) for name in found}
    return images + [image for image in list_images(root, rels) if Path(image.path) not in taken]


def _name(entry: dict[str, Any]) -> str:
    name = entry.get("file_name")
    return name.replace("\\", "/") if isinstance(name, str) else ""
