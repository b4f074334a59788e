"""``agssp-zoo pretrain-backbone``: stage 1, from unlabelled images and their anomaly maps to a backbone.

Also ``python -m agssp_zoo.training.pretrain.cli``, and for several processes, with the same options,
``accelerate launch --multi_gpu --num_processes 2 -m agssp_zoo.training.pretrain.cli``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import AgsspZooError, MissingDependencyError, SettingError, TrainingError
from agssp_zoo.surroundings import exit_code

from ..devices import build_accelerator, is_main, settle_precision, settle_threads
from ..idle import PRETRAINING, refuse_idle
from ..position import Outcome
from ..record import RUN_FILE, write_record
from ..settings import add_setting_arguments, given_settings, merge_settings
from .settings import PretrainSettings, check_frozen

if TYPE_CHECKING:
    from .pool import Pool
    from .start import BackboneStart

MOVABLE = ("out", "images", "exclude", "maps")
"""Settings that name places: a run that goes on may find the same data elsewhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``agssp-zoo pretrain-backbone``."""
    add_setting_arguments(parser, PretrainSettings)
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
        outcome = pretrain_backbone(**given_settings(args, PretrainSettings), resume=args.resume)
    code = exit_code(outcome.signal)
    if not is_main():
        return code
    if as_json:
        from agssp_zoo.commands.options import print_json

        values = {name: getattr(outcome, name) for name in ("finished", "reason", "epochs", "signal")}
        print_json({**values, "folder": str(outcome.folder), "model": str(outcome.folder / "last")})
    elif outcome.finished:
        sys.stdout.write(f"done ({outcome.reason}) after {outcome.epochs} epochs: {outcome.folder / 'last'}\n")
    else:
        sys.stdout.write(
            f"{outcome.reason} in epoch {outcome.epochs + 1}; the state is saved, go on with: agssp-zoo "
            f"pretrain-backbone --out {shlex.quote(str(outcome.folder))} --resume\n"
        )
    return code


def pretrain_backbone(*, resume: bool = False, **values: Any) -> Outcome:
    """Pretrains a backbone on unlabelled images, guided by their anomaly maps (AGBP).

    Args:
        resume: go on where the run in ``out`` stopped. Settings left out are the stored ones.
        values: fields of :class:`PretrainSettings`; what a ``recipe`` says counts where they say nothing.

    Returns:
        How the run ended; ``outcome.folder / "last"`` is a model folder.

    Raises:
        TrainingError: the run cannot start, resume or go on; its kind SettingError where a setting is wrong.
        ConfigError: a recipe with an unknown key or a wrong value.
        DataError: images or maps cannot be read, or do not belong together.
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
    settings = settings.settled(settle_precision(settings))
    accelerator = build_accelerator(settings)
    torch.set_num_threads(settle_threads(settings))

    from .network import check_stages
    from .pool import read_pool
    from .record import describe, provenance, same_data
    from .stage1 import Pretrainer
    from .start import build_backbone

    start = build_backbone(settings)
    check_stages(start.module, settings)
    if stored is None:  # a run that goes on has its stages, whatever they are
        check_frozen(settings.weights, settings.freeze, model=settings.model, recipe=settings.recipe)
    pool = read_pool(settings)
    record = describe(settings, pool, start)
    if stored and not same_data(record, stored):
        raise TrainingError(
            f"The images or their anomaly maps have changed since the run in {settings.out} began; restore them, or "
            "start a new run with another --out."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_record(Path(settings.out), record, stored)
        _announce(settings, pool, start, bool(stored))
    outcome = Pretrainer(settings, pool, start, accelerator, provenance(record, settings)).run()
    accelerator.end_training()
    return outcome


def _settle(values: dict[str, Any], resume: bool) -> tuple[PretrainSettings, dict[str, Any] | None]:
    """The run's settings, and what the run's folder has stored about it when it is resumed."""
    from ..state import JSON_NAME
    from .recipes import with_recipe

    for name in ("images", "taps", "milestones", "options"):
        if isinstance(values.get(name), str | Path):
            values[name] = (str(values[name]),)
        elif name in values:
            values[name] = tuple(values[name])
    out = Path(values.get("out", PretrainSettings.out))
    file = out / RUN_FILE
    if resume and file.is_file():
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            merged = merge_settings(PretrainSettings, stored["settings"], values, str(file), movable=MOVABLE)
            return merged, stored
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, AgsspZooError):
                raise
            raise TrainingError(f"{file}: is not the record of a run ({error}); start a new one.") from None
    given = PretrainSettings(**with_recipe(values))
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
    refuse_idle(values, given, PRETRAINING)
    return given, None


def _announce(settings: PretrainSettings, pool: Pool, start: BackboneStart, resumed: bool) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in pool.counts.items())
    method = pool.maps.settings.get("method", "maps")
    lines = [
        f"{settings.model} on {len(pool)} images ({counts}), anomaly maps {method} {pool.maps.grid}",
        f"resuming {settings.out}" if resumed else f"weights: {start.source}; task {settings.task}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def main() -> int:
    """``python -m agssp_zoo.training.pretrain.cli``."""
    parser = argparse.ArgumentParser(prog="python -m agssp_zoo.training.pretrain.cli", description=__doc__)
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
