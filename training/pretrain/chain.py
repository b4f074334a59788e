"""The whole of AGSSP in one go: anomaly maps, the backbone guided by them (AGBP), the detector on their boxes (AGDP).

Each step is what its own command does, in a folder of its own below ``out``, and can go on from wherever it was
stopped; ``chain.json`` says which are done. The same call goes on, whatever ended the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agssp_zoo.errors import (
    AgsspZooError,
    DataError,
    InvalidArgumentError,
    MissingDependencyError,
    SettingError,
    TrainingError,
)

from ..anomaly.boxes import BoxSettings
from ..anomaly.layout import read_store_file, writing
from ..anomaly.methods import refuse_unused
from ..data.dataset import Dataset
from ..data.unlabelled import read_images, sources
from ..devices import device_kind
from ..idle import PRETRAINING, TRAINING, refuse_idle
from ..position import Outcome
from ..record import circumstances, command_line
from ..settings import merge_settings
from ..state import write_text
from .chain_settings import PLACES, STEPS, ChainSettings, same_options, small_recipe
from .recipes import with_recipe
from .settings import PretrainSettings
from .stage2_settings import HIDDEN, DetectorSettings

RECORD = "chain.json"
REPORT = "report.html"
KIND = "agssp-zoo agssp"
MODULES = tuple(f"agssp_zoo.training.{name}" for name in ("anomaly.maps_cli", "pretrain.cli", "pretrain.stage2_cli"))
TITLES = {
    "maps": "anomaly maps",
    "backbone": "backbone (AGBP)",
    "detector": "detector (AGDP)",
}


@dataclass(frozen=True)
class ChainOutcome:
    """How the chain ended.

    Attributes:
        folder: of the run.
        finished: whether all steps are done; else the same call goes on.
        reason: why it stopped, in words.
        step: the step that was under way; ``"report"`` at the end.
        backbone: the pretrained backbone, a model folder.
        detector: the pretrained detector, a model folder.
        report: the report; ``None`` where it was not written.
        signal: the number of the signal that stopped it; 0 where none did.
    """

    folder: Path
    finished: bool
    reason: str
    step: str
    backbone: Path
    detector: Path
    report: Path | None = None
    signal: int = 0


def run_chain(**values: Any) -> ChainOutcome:
    """Runs all steps, or goes on where an earlier call with the same ``out`` stopped.

    Args:
        values: fields of :class:`ChainSettings`. Of a run that goes on those left out are the stored ones.

    Returns:
        How it ended.

    Raises:
        TrainingError: a setting differs from that of the run that is there, or a step cannot go on; its kind
            SettingError where a setting is wrong.
        InvalidArgumentError: a setting of the maps or boxes is wrong.
        ModelNotFoundError, ConfigError, CheckpointError, IntegrityError: ``weights`` cannot be had.
        DataError: the images cannot be read, have changed, or give no boxes.
        MissingDependencyError: the ``train`` extra is not installed.
    """
    chain = open_chain(values)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TrainingError(
            "agssp runs in one process. For several, let --plan print the commands of its steps, start each of them by "
            f"`accelerate launch -m MODULE` ({', '.join(MODULES)}), then this command again, in one process: it finds "
            "the steps done and writes the report."
        )
    chain.save()
    return chain.run()


def open_chain(values: dict[str, Any]) -> Chain:
    """The chain of some settings, begun or not; errors as for :func:`run_chain`."""
    try:
        import accelerate  # noqa: F401
        import scipy  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"This needs {error.name}; run `pip install 'agssp-zoo[train]'`.") from None
    from agssp_zoo import models

    from .network import check_stages
    from .start import build_backbone

    settings, stored = _settle(values)
    architecture = models.get_architecture(settings.model)
    if architecture.backbone is None:
        raise SettingError(f"--model {settings.model} is a {architecture.task}; give a detector: yolov8_n, yolov8_s.")
    if not settings.recipe and stored is None:
        recipe = small_recipe(architecture.backbone, device_kind(settings.device))
        settings = replace(settings, recipe=recipe)
    for path in settings.images:
        folder = Path(path).absolute()
        if folder.is_dir() and Path(settings.out).absolute().is_relative_to(folder):
            raise InvalidArgumentError(f"--out {settings.out} lies in the folder of the images, {path}; give another.")
    images = read_images(settings.images, exclude=settings.exclude or None)
    images = images.require_clean(settings.tolerance, labels=False)
    chain = Chain(settings, architecture.backbone, images, stored)
    steps = chain.steps()  # a wrong setting of the last step should not wait for the others
    if stored is None:
        refuse_unused(steps["maps"])
        refuse_idle(steps["backbone"], PretrainSettings(**with_recipe(steps["backbone"])), PRETRAINING)
        refuse_idle(steps["detector"], DetectorSettings(**steps["detector"]), TRAINING)
    if "backbone" not in chain.finished:  # nor should weights that are not there, or do not fit
        backbone = PretrainSettings(**with_recipe(steps["backbone"]))
        check_stages(build_backbone(backbone).module, backbone)
    if stored and stored["pool"]["fingerprint"] != images.fingerprint():
        raise DataError(
            f"{images.path}: the images have changed since the run in {settings.out} began ({stored['pool']['images']} "
            f"images then, {len(images)} now); restore them, or start a new run with another --out."
        )
    return chain


def _settle(values: dict[str, Any]) -> tuple[ChainSettings, dict[str, Any] | None]:
    """The run's settings, and what chain.json says where there is one."""
    for name in ("images", *STEPS):
        if name in values:
            value = values[name]
            values[name] = (str(value),) if isinstance(value, str | Path) else tuple(map(str, value))
    file = Path(values.get("out", ChainSettings.out)) / RECORD
    if file.is_file():
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            if stored.get("kind") != KIND:
                raise ValueError("of another kind")
            same = same_options(stored["settings"], values)
            merged = merge_settings(ChainSettings, stored["settings"], values, str(file), movable=(*PLACES, *same))
            return merged, stored
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, AgsspZooError):
                raise
            raise TrainingError(f"{file}: is not the record of a run ({error}); give another --out.") from None
    settings = ChainSettings(**values)
    if not settings.images:
        raise SettingError("Give the folder of images with --images.")
    return settings, None


class Chain:
    """The steps of one run, and what is known of them.

    Args:
        settings: of the run.
        backbone: architecture of the detector's backbone.
        images: the pool.
        stored: what chain.json says; ``None`` for a new run.
    """

    def __init__(
        self, settings: ChainSettings, backbone: str, images: Dataset, stored: Mapping[str, Any] | None
    ) -> None:
        self.settings = settings
        self.backbone = backbone
        self.images = images
        self.single = len(set(sources(images, one=settings.options("maps").get("sources") == "one"))) == 1
        self.finished: dict[str, Any] = dict(stored["finished"]) if stored else {}
        self.begun: dict[str, Any] = dict(stored["begun"]) if stored else circumstances()

    @property
    def box_rule(self) -> BoxSettings:
        """How pseudo-boxes are made."""
        return DetectorSettings(**self.settings.detector_values()).rule

    def steps(self) -> dict[str, Any]:
        """The settings of every step, checked.

        Raises:
            TrainingError, InvalidArgumentError, ConfigError: a value out of range, or no such recipe.
        """
        settings = self.settings
        backbone = settings.backbone_values(self.backbone, single=self.single)
        detector = settings.detector_values()
        PretrainSettings(**with_recipe(backbone))
        DetectorSettings(**detector)
        return {
            "maps": settings.map_settings(),
            "backbone": backbone,
            "detector": detector,
        }

    def commands(self) -> dict[str, str]:
        """The command of every step, as one would type it."""
        steps = self.steps()
        maps = command_line("anomaly-maps", steps["maps"], leave_out=("data",))
        data = shlex.join(self.settings.images)
        return {
            "maps": maps.replace("anomaly-maps", f"anomaly-maps {data}", 1),
            "backbone": command_line("pretrain-backbone", PretrainSettings(**steps["backbone"])),
            "detector": command_line("pretrain-detector", DetectorSettings(**steps["detector"]), leave_out=HIDDEN),
        }

    def record(self) -> dict[str, Any]:
        """The content of chain.json."""
        values = dataclasses.asdict(self.settings)
        return {
            "kind": KIND,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
            "pool": {"fingerprint": self.images.fingerprint(), "images": len(self.images)},
            "commands": {"agssp": command_line("agssp", self.settings), **self.commands()},
            "finished": self.finished,
            "begun": self.begun,
        }

    def save(self) -> None:
        """Writes chain.json.

        Raises:
            TrainingError: it cannot be written.
        """
        out = Path(self.settings.out)
        with writing(out / RECORD):
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / RECORD, json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n")

    def run(self) -> ChainOutcome:
        """Runs what is not done yet, then writes the report; errors as for :func:`run_chain`."""
        settings, commands = self.settings, self.commands()
        out = Path(settings.out)
        done = ChainOutcome(
            out,
            True,
            "all steps done",
            "report",
            settings.folder("backbone") / "last",
            settings.folder("detector") / "best",
        )
        for number, step in enumerate(STEPS, 1):
            if step in self.finished and self._is_there(step):
                _say(f"{number}/3 {TITLES[step]}: done already")
                continue
            _say(f"{number}/3 {TITLES[step]}: {commands[step]}")
            begun = time.monotonic()
            outcome = self._run_step(step)
            if outcome is not None and not outcome.finished:
                return replace(done, finished=False, reason=outcome.reason, step=step, signal=outcome.signal)
            self.finished[step] = {"last_sitting_seconds": round(time.monotonic() - begun, 1)}
            self.save()
        from .chain_report import write_chain_report

        report = write_chain_report(out / REPORT, self)
        return replace(done, report=report)

    def _run_step(self, step: str) -> Outcome | None:
        """Runs or goes on with a step; what it answers, if it can be stopped with its state saved."""
        values = self.steps()[step]
        if step == "maps":
            from ..anomaly.maps import make_maps

            made = make_maps(values, self.images)
            for note in made.notes:
                _say(note)
            return None
        if step == "backbone":
            from .cli import pretrain_backbone

            return pretrain_backbone(resume=True, **values)
        from .stage2_cli import pretrain_detector

        return pretrain_detector(resume=True, **values)

    def _is_there(self, step: str) -> bool:
        """Whether what a finished step left is still there."""
        folder = self.settings.folder(step)
        if step == "maps":
            return bool((read_store_file(folder) or {}).get("complete"))
        return (folder / ("last" if step == "backbone" else "best") / "model.safetensors").is_file()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
