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

    Where all are named like that, the folder's own images are left out. The keys of images elsewhere are those that
    the file states (``key``, as :func:`~agssp_zoo.training.data.to_coco` writes it), else their paths below the
    folder that they share.

    Args:
        root: the folder of the COCO files.
        rels: all files below it.
        documents: the parsed COCO files; their ``images`` are lists of objects.

    Raises:
        DataError: there are no images at all.
    """
    entries = [entry for document in documents for entry in document["images"]]
    found: dict[str, Any] = {}
    for entry in entries:
        name = entry.get("file_name")
        if isinstance(name, str) and is_image(name) and Path(name).is_absolute():
            name = name.replace("\\", "/")
            if not Path(name).is_relative_to(root.absolute()) and Path(name).is_file():
                found[name] = entry.get("key")
    if not found:
        return list_images(root, rels)
    keys = list(found.values())
    if not all(isinstance(key, str) and key for key in keys) or len(set(keys)) < len(keys):
        shared = Path(os.path.commonpath([PurePosixPath(name).parent for name in found]))
        keys = [file.key for file in make_files(shared, [os.path.relpath(n, shared) for n in found], IMAGE_FOLDERS)]
    outside = [File(name, name, key) for name, key in zip(found, keys, strict=True)]
    named = [entry for entry in entries if isinstance(entry.get("file_name"), str)]
    inside = any(entry["file_name"].replace("\\", "/") not in found for entry in named) and any(map(is_image, rels))
    return outside + (list_images(root, rels) if inside else [])
