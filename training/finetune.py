"""``agssp-zoo finetune``: trains a detector on a folder of labelled images.

Also ``python -m agssp_zoo.training.finetune``, and for several processes
``accelerate launch -m agssp_zoo.training.finetune`` with the same options.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import AgsspZooError, MissingDependencyError, TrainingError

from .settings import TrainSettings, add_setting_arguments, given_settings, merge_for_resume

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .data.dataset import Dataset
    from .trainer import Outcome
    from .transfer import Start

RUN_FILE = "config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``agssp-zoo finetune``."""
    add_setting_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in --out stopped, with its settings (from the start if it never saved a state)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains as the options say; 0 when the run finished or was stopped with its state saved."""
    outcome = finetune(**given_settings(args), resume=args.resume)
    if _is_main():
        if outcome.finished:
            text = f"done ({outcome.reason}) after {outcome.epochs} epochs; best map50_95 {outcome.best:.4f} in epoch "
            text += f"{outcome.best_epoch}: {outcome.folder / 'best'}"
        else:
            text = (
                f"{outcome.reason} in epoch {outcome.epochs + 1}; the state is saved, go on with: agssp-zoo finetune "
            )
            text += f"--out {outcome.folder} --resume"
        sys.stdout.write(text + "\n")
    return 0


def finetune(*, resume: bool = False, **values: Any) -> Outcome:
    """Trains a detector.

    Args:
        resume: go on where the run in ``out`` stopped. Settings left out are the stored ones.
        values: fields of :class:`TrainSettings`.

    Returns:
        How the run ended; ``outcome.folder / "best"`` is a model folder.

    Raises:
        TrainingError: a setting is wrong, the run cannot start, resume or go on.
        DataError: the data cannot be read or hold no labels.
        ModelNotFoundError: no such model.
        MissingDependencyError: the ``train`` extra is not installed.
    """
    try:
        import accelerate  # noqa: F401
        import torch
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"Training needs {error.name}; run `pip install 'agssp-zoo[train]'`.") from None
    settings, stored = _settle(values, resume)
    accelerator = _accelerator(settings)
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // _local_processes())
    torch.set_num_threads(threads)

    from .trainer import Trainer
    from .transfer import build_start

    train, val = read_splits(settings)
    fingerprint = f"{train.fingerprint()[:32]}{val.fingerprint()[:32]}"
    if stored and stored["data"]["fingerprint"] != fingerprint:
        raise TrainingError(
            f"{settings.data}: the labels or splits have changed since the run in {settings.out} began; restore them, "
            "or start a new run with another --out."
        )
    start = build_start(settings, train.class_names)
    record = _describe(settings, train, val, fingerprint, start)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _write_record(Path(settings.out), record, stored)
        _announce(record, start, bool(stored))
    provenance = {
        "trained_on": {k: record["data"][k] for k in ("name", "fingerprint", "train_images", "val_images")},
        "start": record["start"],
        "settings": {k: v for k, v in record["settings"].items() if k not in ("data", "out")},
        "versions": record["versions"],
        "git_commit": record["git_commit"],
    }
    return Trainer(settings, train, val, start, accelerator, provenance).run()


def read_splits(settings: TrainSettings) -> tuple[Dataset, Dataset]:
    """The images to train on and to validate on.

    Raises:
        DataError: no labels, no such split, or more faulty labels than tolerated.
    """
    from .data import read_dataset

    data = read_dataset(settings.data, format=settings.format).require_clean(settings.tolerance)
    train, val = data.split(settings.train_split), data.split(settings.val_split)
    for split in (train, val):
        split.require_clean(settings.tolerance)
    return train, val


def _settle(values: dict[str, Any], resume: bool) -> tuple[TrainSettings, dict[str, Any] | None]:
    """The run's settings, and what the run's folder has stored about it when it is resumed."""
    from .state import JSON_NAME

    settings_given = TrainSettings(**values)
    out = Path(settings_given.out)
    file = out / RUN_FILE
    if resume and file.is_file():
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            return merge_for_resume(stored["settings"], values, str(file)), stored
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, AgsspZooError):
                raise
            raise TrainingError(f"{file}: is not the record of a run ({error}); start a new one.") from None
    if (out / "state" / JSON_NAME).is_file():
        raise TrainingError(f"{out} holds a run already; add --resume to go on with it, or give another --out.")
    if not settings_given.data:
        what = f"{out} holds no run to resume; " if resume else ""
        raise TrainingError(f"{what}give the folder of labelled images with --data.")
    return settings_given, None


def _accelerator(settings: TrainSettings) -> Accelerator:
    """Device, precision and processes.

    Raises:
        TrainingError: the device is not there.
    """
    import torch
    from accelerate import Accelerator

    kind, _, number = settings.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise TrainingError(f"--device {settings.device!r}: choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            raise TrainingError(
                f"--device {settings.device}: this machine has {count} usable CUDA devices; use --device cpu, or "
                "install a torch build that supports the GPU."
            )
        if number:
            torch.cuda.set_device(int(number))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise TrainingError("--device mps: there is no Apple GPU that torch can use; use --device cpu.")
    precision = None if settings.precision == "no" else settings.precision  # None: as `accelerate launch` says
    return Accelerator(cpu=kind == "cpu", mixed_precision=precision)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _describe(settings: TrainSettings, train: Dataset, val: Dataset, fingerprint: str, start: Start) -> dict[str, Any]:
    """The content of the run's config.json."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "accelerate", "numpy", "pillow", "agssp-zoo")
    return {
        "settings": settings.to_dict(),
        "class_names": list(train.class_names),
        "data": {
            "path": str(Path(settings.data).resolve()),
            "name": Path(settings.data).resolve().name,
            "format": train.format,
            "fingerprint": fingerprint,
            "train_images": len(train),
            "val_images": len(val),
            "train_boxes": dict(zip(train.class_names, train.class_counts().tolist(), strict=True)),
            "val_boxes": dict(zip(val.class_names, val.class_counts().tolist(), strict=True)),
        },
        "start": {"source": start.source, "tensors_loaded": start.loaded, "tensors_drawn": list(start.left)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "git_commit": _git_commit(),
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write_record(out: Path, record: dict[str, Any], stored: dict[str, Any] | None) -> None:
    from .state import write_text

    out.mkdir(parents=True, exist_ok=True)
    if stored:
        times = [*stored.get("resumed", []), record["started"]]
        record = {**stored, "settings": record["settings"], "resumed": times}
    write_text(out / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _announce(record: dict[str, Any], start: Start, resumed: bool) -> None:
    data, settings = record["data"], record["settings"]
    lines = [
        f"{settings['model']} on {data['name']} ({data['format']}): {data['train_images']} training and "
        f"{data['val_images']} validation images, {len(record['class_names'])} classes"
    ]
    if resumed:
        lines.append(f"resuming {settings['out']}")
    else:
        drawn = f"; drawn anew: {_some(start.left)}" if start.left else ""
        lines.append(f"weights: {start.source}" + (f" ({start.loaded} tensors{drawn})" if start.loaded else ""))
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _some(names: tuple[str, ...], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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


def main() -> int:
    """``python -m agssp_zoo.training.finetune``."""
    parser = argparse.ArgumentParser(prog="python -m agssp_zoo.training.finetune", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return run(args)
    except AgsspZooError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
