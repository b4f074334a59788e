"""What a run says about itself: config.json of its folder, and the provenance that its models carry."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import TrainingError

from .settings import TrainSettings

if TYPE_CHECKING:
    from .data.dataset import Dataset
    from .transfer import Start

RUN_FILE = "config.json"
PACKAGES = ("agssp-zoo", "torch", "torchvision", "accelerate", "numpy", "pillow")


def describe(settings: TrainSettings, train: Dataset, val: Dataset, start: Start) -> dict[str, Any]:
    """The content of the run's config.json."""
    return {
        "settings": settings.to_dict(),
        "class_names": list(train.class_names),
        "data": {
            "path": str(Path(settings.data).resolve()) if "://" not in settings.data else settings.data,
            "name": data_name(settings),
            "format": train.format,
            "fingerprint": fingerprint(train, val),
            "train_images": len(train),
            "val_images": len(val),
            "train_boxes": dict(zip(train.class_names, train.class_counts().tolist(), strict=True)),
            "val_boxes": dict(zip(val.class_names, val.class_counts().tolist(), strict=True)),
        },
        "start": {
            "source": start.source,
            "provenance": dict(start.provenance),
            "tensors_loaded": start.loaded,
            "tensors_drawn": list(start.left),
        },
        **circumstances(),
        "command": command(settings),
    }


def circumstances() -> dict[str, Any]:
    """What a run's record says of the time and the software that it was made with."""
    from importlib.metadata import version

    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance(record: dict[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """What the models' config.json, and from it their card, say about their origin.

    Paths of this machine stay out of it.
    """
    data = record["data"]
    return {
        **({"license": settings.license} if settings.license else {}),
        "datasets": [data["name"]],
        "trained_on": {k: data[k] for k in ("fingerprint", "train_images", "val_images", "train_boxes", "val_boxes")},
        "start": {k: v for k, v in record["start"].items() if k != "tensors_drawn"},
        "seed": settings.seed,
        "command": command(settings, published=True),
        "settings": names_only({k: v for k, v in settings.to_dict().items() if k not in ("data", "out", "license")}),
        "versions": record["versions"],
        "git_commit": record["git_commit"],
    }


def command(settings: TrainSettings, *, published: bool = False) -> str:
    """The command line that makes this run: the settings that differ from the defaults.

    Args:
        settings: of the run.
        published: name data and models by their folders' names, and leave out where the run was written.
    """
    if not published:
        return command_line("finetune", settings)
    instead = {
        "data": data_name(settings),
        "model": names_only(settings.model),
        "backbone_weights": names_only(settings.backbone_weights),
    }
    return command_line("finetune", settings, instead, leave_out=("out", "license"))


def command_line(
    name: str, settings: Any, instead: Mapping[str, Any] | None = None, *, leave_out: Sequence[str] = ()
) -> str:
    """A command with those of its settings that differ from the defaults.

    Args:
        name: of the command.
        settings: a dataclass whose fields are its options.
        instead: values that are written in the place of others.
        leave_out: settings that are not written.
    """
    words = ["agssp-zoo", name]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or field.name in leave_out:
            continue
        value = (instead or {}).get(field.name, value)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
    return shlex.join(words)


def data_name(settings: TrainSettings) -> str:
    """The name of the data: of their folder, without the path."""
    return folder_name(settings.data)


def folder_name(path: str) -> str:
    """The last part of a path or URL."""
    return path.rstrip("/").rpartition("/")[2] if "://" in path else Path(path).resolve().name


def names_only(value: Any) -> Any:
    """Plain values with the last part of every absolute path in its place."""
    if isinstance(value, dict):
        return {key: names_only(part) for key, part in value.items()}
    if isinstance(value, list):
        return [names_only(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def fingerprint(train: Dataset, val: Dataset) -> str:
    """What identifies the labels and splits that a run uses."""
    return f"{train.fingerprint()[:32]}{val.fingerprint()[:32]}"


def write_record(out: Path, record: dict[str, Any], stored: dict[str, Any] | None) -> None:
    """Writes the run's config.json; of a resumed run what was stored stays, with the time of each resumption.

    Raises:
        TrainingError: it cannot be written.
    """
    from .state import write_text

    if stored:
        times = [*stored.get("resumed", []), record["started"]]
        record = {**stored, "settings": record["settings"], "resumed": times}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error}); give another --out.") from error


def _git_commit() -> str | None:
    """The commit of the source checkout that this runs from, with ``+changes`` if files differ from it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()

    try:
        # An installed copy inside some other project's checkout says nothing about that project.
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
