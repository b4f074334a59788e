"""``agssp-zoo finetune``: trains a detector on a folder of labelled images.

Also ``python -m agssp_zoo.training.finetune``, and for several processes, with the same options,
``accelerate launch --multi_gpu --num_processes 2 -m agssp_zoo.training.finetune`` (add ``--device cpu`` for two on the
CPU: ``accelerate launch --cpu`` starts only one).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import AgsspZooError, DataError, MissingDependencyError, SettingError, TrainingError
from agssp_zoo.surroundings import exit_code

from .data.problems import some
from .devices import build_accelerator, is_main, settle_precision, settle_threads
from .idle import TRAINING, refuse_idle
from .position import Outcome
from .record import RUN_FILE, command, describe, fingerprint, provenance, write_record
from .settings import TrainSettings, add_setting_arguments, given_settings, merge_for_resume

if TYPE_CHECKING:
    from .data.dataset import Dataset
    from .transfer import Start


MANY_THIN = 0.2
"""From this share of boxes that the input makes too thin on, a run says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``agssp-zoo finetune``."""
    add_setting_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in --out stopped, with its settings (from the start if it never saved a state)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains as the options say.

    Returns:
        0 when the run is finished or its time limit is over, 128 + its number when a signal has stopped it: the state
        is saved, but what follows by ``&&`` would take a model that is not ready.
    """
    as_json = bool(getattr(args, "json", False))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        outcome = finetune(**given_settings(args), resume=args.resume)
    code = exit_code(outcome.signal)
    if not is_main():
        return code
    if as_json:
        from agssp_zoo.commands.options import print_json

        print_json({**vars(outcome), "folder": str(outcome.folder), "model": str(outcome.folder / "best")})
    elif outcome.finished:
        sys.stdout.write(
            f"done ({outcome.reason}) after {outcome.epochs} epochs; best map50_95 {outcome.best:.4f} in epoch "
            f"{outcome.best_epoch}: {outcome.folder / 'best'}\n"
        )
    else:
        sys.stdout.write(
            f"{outcome.reason} in epoch {outcome.epochs + 1}; the state is saved, go on with: agssp-zoo finetune "
            f"--out {shlex.quote(str(outcome.folder))} --resume\n"
        )
    return code


def finetune(*, resume: bool = False, **values: Any) -> Outcome:
    """Trains a detector.

    Args:
        resume: go on where the run in ``out`` stopped. Settings left out are the stored ones.
        values: fields of :class:`TrainSettings`.

    Returns:
        How the run ended; ``outcome.folder / "best"`` is a model folder.

    Raises:
        TrainingError: the run cannot start, resume or go on; its kind SettingError where a setting is wrong.
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
    precision = settle_precision(settings)
    settings = dataclasses.replace(settings, precision=precision)
    check_extras(settings)
    accelerator = build_accelerator(settings)
    torch.set_num_threads(settle_threads(settings))

    from .augment import turning_labels
    from .families import family_of
    from .trainer import Trainer
    from .transfer import build_start, settle_nms, settle_size

    train, val = read_splits(settings)
    turning_labels(settings, train.class_names)  # an unknown class is told before the run has a folder
    if stored and stored["data"]["fingerprint"] != fingerprint(train, val):
        raise TrainingError(
            f"{settings.data}: the labels or splits have changed since the run in {settings.out} began; restore them, "
            "or start a new run with another --out."
        )
    start = build_start(settings, train.class_names)
    size_given = settings.size
    settings = settle_size(settings, start, train.records)
    family = family_of(start.module)
    family.build_loss(start.module, settings, train.class_counts())  # settings of another loss are told, too
    settings = settle_nms(settings, start, None if stored else family.nms_iou)  # a run of an earlier version had none
    settings = settings.settled(precision, family.rates)
    record = describe(settings, train, val, start)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_record(Path(settings.out), record, stored)
        _announce(record, start, bool(stored))
        if not size_given:
            sys.stdout.write(f"input: {settings.size} pixels; --size takes another longer side\n")
        sys.stdout.write(_thin_boxes(train, settings) + _turned_classes(train, val, settings))
    trainer = Trainer(settings, train, val, start, accelerator, provenance(record, settings))
    outcome = trainer.run()
    if outcome.finished:
        trainer.outputs.tell_unreadable(trainer.bad_images)
    if accelerator.is_main_process and outcome.finished:
        from .outputs import finish

        for line in finish(outcome.folder, val, settings, device=str(accelerator.device), command=command(settings)):
            sys.stdout.write(line + "\n")
    accelerator.end_training()
    return outcome


def read_splits(settings: TrainSettings) -> tuple[Dataset, Dataset]:
    """The images to train on, or their tiles, and the images to validate on.

    Raises:
        DataError: no labels, no such split, or more faulty labels than tolerated.
    """
    from .data import read_dataset
    from .data.dataset import ALL

    data = read_dataset(settings.data, format=settings.format).require_clean(settings.tolerance)
    if settings.val_split not in (*data.splits, ALL):
        if not settings.val_fraction:
            try:
                data.split(settings.val_split)
            except DataError as error:
                raise DataError(f"{error} In training, --val-fraction 0.2 does the same.") from None
        data = data.random_split(settings.val_fraction, settings.seed)  # as `val` does; see Dataset.with_val
        settings = dataclasses.replace(settings, val_split="val")
    train, val = data.split(settings.train_split), data.split(settings.val_split)
    for split in (train, val):
        split.require_clean(settings.tolerance, whole=len(data))
    if settings.tiling is not None:
        from .tiled import tile_dataset

        train = tile_dataset(train, settings.tiling, empty=settings.tile_empty, seed=settings.seed)
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
        raise SettingError(f"{what}give the folder of labelled images with --data.")
    refuse_idle(values, settings_given, TRAINING)
    return settings_given, None


def check_extras(settings: TrainSettings) -> None:
    """Refuses a run at once that could not write at its end what it was asked for."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if settings.export and missing:
        raise MissingDependencyError(f"--export needs {', '.join(missing)}; run `pip install 'agssp-zoo[export]'`.")


def _announce(record: dict[str, Any], start: Start, resumed: bool) -> None:
    data, settings = record["data"], record["settings"]
    lines = [
        f"{settings['model']} on {data['name']} ({data['format']}): {data['train_images']} training "
        f"{'tiles ' if settings['tile'] else ''}and "
        f"{data['val_images']} validation images, {len(record['class_names'])} classes"
    ]
    if resumed:
        lines.append(f"resuming {settings['out']}")
    else:
        drawn = f"; drawn anew: {some(start.left, 8)}" if start.left else ""
        lines.append(f"weights: {start.source}" + (f" ({start.loaded} tensors{drawn})" if start.loaded else ""))
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _thin_boxes(train: Dataset, settings: TrainSettings) -> str:
    """A line that says so where the input is too small for many boxes."""
    from .data.input_sizes import THIN, count_thin

    boxes = sum(len(record.boxes) for record in train.records)
    thin = count_thin(train.records, settings.size)
    if thin < MANY_THIN * max(boxes, 1):
        return ""
    return (
        f"note: at --size {settings.size} {thin} of {boxes} boxes to train on are thinner than {THIN} pixels, which is "
        "hard to find; `agssp-zoo check-data` compares sizes and tiles\n"
    )


def _turned_classes(train: Dataset, val: Dataset, settings: TrainSettings) -> str:
    """Lines that say so where the network would never see the direction in which classes lie to be scored."""
    from .data.directions import turned_classes

    covered = settings.turn_classes or train.class_names if settings.quarter_turn else ()
    found = turned_classes(train.records, val.records, train.class_names, settings.val_split)
    found = [turned for turned in found if turned.name not in covered]
    if not found:
        return ""
    names = shlex.join(sorted({turned.name for turned in found}.union(settings.turn_classes)))
    advice = f"      --quarter-turn 0.5 --turn-classes {names} teaches the network both directions\n"
    return "".join(f"note: class {turned}\n" for turned in found) + advice


def main() -> int:
    """``python -m agssp_zoo.training.finetune``."""
    parser = argparse.ArgumentParser(prog="python -m agssp_zoo.training.finetune", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return run(args)
    except AgsspZooError as error:
        rank = os.environ.get("RANK")
        sys.stderr.write(f"error{f' (process {rank})' if rank else ''}: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
