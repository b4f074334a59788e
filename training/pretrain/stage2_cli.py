"""``agssp-zoo pretrain-detector``: stage 2, from anomaly maps and a pretrained backbone to a detector of anomalies.

Also ``python -m agssp_zoo.training.pretrain.stage2_cli``, and for several processes, with the same options,
``accelerate launch --multi_gpu --num_processes 2 -m agssp_zoo.training.pretrain.stage2_cli``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from agssp_zoo.errors import AgsspZooError, MissingDependencyError, SettingError, TrainingError
from agssp_zoo.surroundings import exit_code

from ..devices import build_accelerator, is_main, settle_precision, settle_threads
from ..idle import TRAINING, refuse_idle
from ..position import Outcome
from ..record import RUN_FILE, write_record
from ..settings import add_setting_arguments, given_settings, merge_settings
from .stage2_settings import HIDDEN, DetectorSettings

MOVABLE = ("out", "images", "exclude", "maps", "data", "backbone_weights")
"""Settings that name places: a run that goes on may find the same things elsewhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``agssp-zoo pretrain-detector``."""
    add_setting_arguments(parser, DetectorSettings, leave_out=HIDDEN)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in --out stopped, with its settings (from the start if it never saved a state)",
    )


def run(args: argparse.Namespace) -> int:
    """Pretrains as the options say.

    Returns:
        0 when the run is finished or its time limit is over, 128 + its number when a signal has stopped it: the state
        is saved, but what follows by ``&&`` would take a model that is not ready.
    """
    as_json = bool(getattr(args, "json", False))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        outcome = pretrain_detector(**given_settings(args, DetectorSettings), resume=args.resume)
    code = exit_code(outcome.signal)
    if not is_main():
        return code
    if as_json:
        from agssp_zoo.commands.options import print_json

        print_json({**vars(outcome), "folder": str(outcome.folder), "model": str(outcome.folder / "best")})
    elif outcome.finished:
        sys.stdout.write(
            f"done ({outcome.reason}) after {outcome.epochs} epochs; best map50_95 on held-out pseudo-boxes "
            f"{outcome.best:.4f} in epoch {outcome.best_epoch}: {outcome.folder / 'best'}\n"
            f"next: agssp-zoo finetune --data YOUR_DATA --model {shlex.quote(str(outcome.folder / 'best'))}\n"
        )
    else:
        sys.stdout.write(
            f"{outcome.reason} in epoch {outcome.epochs + 1}; the state is saved, go on with: agssp-zoo "
            f"pretrain-detector --out {shlex.quote(str(outcome.folder))} --resume\n"
        )
    return code


def pretrain_detector(*, resume: bool = False, **values: Any) -> Outcome:
    """Pretrains a detector on the pseudo-boxes of anomaly maps, its backbone frozen (AGDP).

    Args:
        resume: go on where the run in ``out`` stopped. Settings left out are the stored ones.
        values: fields of :class:`DetectorSettings`.

    Returns:
        How the run ended; ``outcome.folder / "best"`` is a model folder. Its scores are measured on pseudo-boxes.

    Raises:
        TrainingError: the run cannot start, resume or go on; its kind SettingError where a setting is wrong.
        DataError: images or maps cannot be read, do not belong together, or give no boxes.
        ModelNotFoundError: no such model.
        MissingDependencyError: the ``train`` extra is not installed.
    """
    try:
        import accelerate  # noqa: F401
        import scipy  # noqa: F401
        import torch
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"Training needs {error.name}; run `pip install 'agssp-zoo[train]'`.") from None
    from ..families import family_of
    from ..finetune import check_extras
    from ..trainer import Trainer
    from ..transfer import build_start, settle_nms
    from .stage2 import announce, changes, check_frozen, describe, provenance, read_boxes, write_boxes

    settings, stored = _settle(values, resume)
    check_extras(settings)
    precision = settle_precision(settings)
    accelerator = build_accelerator(dataclasses.replace(settings, precision=precision))
    torch.set_num_threads(settle_threads(settings))

    start = build_start(settings, ("anomaly",), tag="agssp")
    check_frozen(settings, start)
    backbone = start.module.backbone
    names = tuple(info.name for info in backbone.stage_info)
    settings = settle_nms(settings, start, None)
    settings = settings.settled_for(precision, backbone.config.architecture, names, family_of(start.module).rates)
    pool = read_boxes(settings)
    family_of(start.module).build_loss(start.module, settings, pool.train.class_counts())  # refuses those of another
    record = describe(settings, pool, start)
    if stored and (changed := changes(record, stored)):
        raise TrainingError(
            f"{', '.join(changed)} changed since the run in {settings.out} began; restore what was there, or start a "
            "new run with another --out."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_record(Path(settings.out), record, stored)
        write_boxes(pool, Path(settings.data))
        announce(settings, pool, start, bool(stored))
    outcome = Trainer(settings, pool.train, pool.val, start, accelerator, provenance(record, settings)).run()
    if accelerator.is_main_process and outcome.finished:
        from ..outputs import finish

        for line in finish(
            outcome.folder, pool.val, settings, device=str(accelerator.device), command=record["command"]
        ):
            sys.stdout.write(line + "\n")
    accelerator.end_training()
    return outcome


def _settle(values: dict[str, Any], resume: bool) -> tuple[DetectorSettings, dict[str, Any] | None]:
    """The run's settings, and what the run's folder has stored about it when it is resumed."""
    from ..state import JSON_NAME

    if "images" in values:
        images = values["images"]
        values["images"] = (str(images),) if isinstance(images, str | Path) else tuple(map(str, images))
    out = Path(values.get("out", DetectorSettings.out))
    file = out / RUN_FILE
    if resume and file.is_file():
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            merged = merge_settings(DetectorSettings, stored["settings"], values, str(file), movable=MOVABLE)
            return merged, stored
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, AgsspZooError):
                raise
            raise TrainingError(f"{file}: is not the record of a run ({error}); start a new one.") from None
    given = DetectorSettings(**values)
    if (out / "state" / JSON_NAME).is_file():
        raise TrainingError(f"{out} holds a run already; add --resume to go on with it, or give another --out.")
    what = f"{out} holds no run to resume; " if resume else ""
    if not given.images:
        raise SettingError(f"{what}give the folder of images with --images.")
    if not given.maps:
        raise SettingError(
            f"{what}give the images' anomaly maps with --maps; make them with: agssp-zoo anomaly-maps "
            f"{shlex.join(given.images)} --out MAPS"
        )
    refuse_idle(values, given, TRAINING)
    return given, None


def main() -> int:
    """``python -m agssp_zoo.training.pretrain.stage2_cli``."""
    parser = argparse.ArgumentParser(prog="python -m agssp_zoo.training.pretrain.stage2_cli", description=__doc__)
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
