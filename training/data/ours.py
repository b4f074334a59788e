"""Pictures that this package's own commands have written, which are no data although they lie among the images.

Who keeps ``runs/`` beside the images and names the folder of both finds curves and contact sheets there. They are known
by their name and by the record beside them that the same command wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

_OF_RUNS = ("loss.png", "map.png", "activations.png")
_OF_CHECKS = ("samples.png", "duplicates.png")
_ANNOTATED = "annotated"
_FIRST_PREDICTION = b'[\n{"path":'


def own_pictures(root: Path, images: Sequence[str]) -> set[str]:
    """The images that are no data: of training runs, ``check-data --out`` and ``predict``.

    Args:
        root: the data folder.
        images: relative paths of what ends like an image, with forward slashes.
    """
    judged: dict[Path, bool] = {}

    def beside(file: Path, is_record: Callable[[Path], bool]) -> bool:
        if file not in judged:
            judged[file] = is_record(file)
        return judged[file]

    found = set()
    for rel in images:
        folder, _, name = rel.rpartition("/")
        place = root / folder
        if (
            (name in _OF_RUNS and beside(place / "config.json", _is_run))
            or (name in _OF_CHECKS and beside(place / "report.json", _is_check))
            or (place.name == _ANNOTATED and folder and beside(place.parent / "predictions.json", _is_prediction))
        ):
            found.add(rel)
    return found


def _is_run(file: Path) -> bool:
    values = _read(file)
    return "settings" in values and str(values.get("command", "")).startswith("agssp-zoo ")


def _is_check(file: Path) -> bool:
    return {"fingerprint", "input_sizes", "problems"} <= _read(file).keys()


def _is_prediction(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_FIRST_PREDICTION)) == _FIRST_PREDICTION
    except OSError:
        return False


def _read(file: Path) -> dict[str, object]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
