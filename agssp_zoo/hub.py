"""Model name -> a model folder whose files are checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from agssp_zoo.folder import ModelFolder


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    files: Sequence[str] = ("config.json",),
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> ModelFolder:
    """Finds a model."""
    folder = ModelFolder.open(Path(name_or_path))
    for name in files:
        folder.file(name)
    return folder
