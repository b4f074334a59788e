"""What a run leaves in its folder: model folders, metrics.csv, events, plots, and the report at the end."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from agssp_zoo import models
from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import AgsspZooError
from agssp_zoo.folder import ModelFolder, write_folder

from . import logs
from .data.dataset import ALL, Dataset
from .data.text import readable
from .settings import TrainSettings


class OutputSettings(Protocol):
    """The settings that the outputs depend on."""

    @property
    def epochs(self) -> int:
        """Epochs of the run."""

    @property
    def plots(self) -> bool:
        """Whether curves are drawn."""


class Outputs:
    """Writes the outputs of a run; every method does nothing on the other processes.

    Args:
        folder: the run's folder.
        main: whether this process writes.
        settings: of the run.
        config: of the model.
        provenance: what the saved models' config.json says about their origin.
        layout: what is shown.
    """

    def __init__(
        self,
        folder: Path,
        main: bool,
        settings: OutputSettings,
        config: ModelConfig,
        provenance: Mapping[str, Any],
        layout: logs.Layout,
    ) -> None:
        self.folder = folder
        self.main = main
        self.settings = settings
        self.config = config
        self.provenance = dict(provenance)
        self.layout = layout
        self.progress = logs.Progress(main)
        self._events: logs.Events | None = None

    def open(self, history: Sequence[logs.Row], steps: int) -> None:
        """Begins, or goes on after so many steps: metrics.csv as in the state, later events void, a kill cleared up."""
        if not self.main:
            return
        for rest in (*self.folder.glob(".*.tmp"), *self.folder.glob(".*.old")):
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
        logs.write_metrics(self.folder / "metrics.csv", history, self.layout.columns)
        self._events = logs.Events(self.folder / "events", steps + 1)

    def close(self, history: Sequence[logs.Row] | None) -> None:
        """Ends; with a history, the plots are drawn."""
        self.progress.clear()
        if self._events is not None:
            self._events.close()
        if self.main and self.settings.plots and history:
            logs.draw_plots(self.folder, history, self.layout.plots)

    def log_step(self, parts: Sequence[float], lr: float, step: int) -> None:
        """Notes the losses of a step."""
        if self._events is not None:
            values = dict(zip(self.layout.parts, parts, strict=True))
            self._events.add({**values, "loss/total": sum(parts), "lr": lr}, step)

    def end_epoch(self, row: logs.Row, module: nn.Module, *, better: bool) -> None:
        """Writes the models of an epoch and says how it went."""
        if not self.main:
            return
        if self._events is not None:
            self._events.add({f"epoch/{k}": v for k, v in row.items() if k != "epoch"}, int(row["step"]))
        for name in ("best", "last") if better else ("last",):
            self._write_model(name, module, row)
        self.progress.clear()
        sys.stdout.write(self.layout.line(row, self.settings.epochs) + "\n")
        sys.stdout.flush()

    def write_again(self, name: str, module: nn.Module, row: logs.Row) -> None:
        """Writes a model that the folder has lost, and says so.

        Args:
            name: ``"last"`` or ``"best"``.
            module: the network.
            row: of the epoch that it is of.
        """
        if self.main:
            self._write_model(name, module, row)
        self.say(f"{self.folder / name} was not there any more: written again from the state")

    def say(self, text: str) -> None:
        """Says something in a line."""
        if self.main:
            self.progress.clear()
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def tell_unreadable(self, problems: Sequence[str]) -> None:
        """Says which images could not be read, one line for all of them; nothing where there are none."""
        if self.main and problems:
            sys.stdout.write(unreadable_line(problems) + "\n")
            sys.stdout.flush()

    def write_history(self, history: Sequence[logs.Row]) -> None:
        """Brings metrics.csv and, now and then, the plots up to date."""
        if self.main:
            logs.write_metrics(self.folder / "metrics.csv", history, self.layout.columns)
            if self.settings.plots and len(history) % 10 == 0:
                logs.draw_plots(self.folder, history, self.layout.plots)

    def _write_model(self, name: str, module: nn.Module, row: logs.Row) -> None:
        figures = {k: round(float(row[k]), 5) for k in self.layout.figures if k in row}
        config = self.config.replace(provenance={**self.provenance, "epoch": row["epoch"], "metrics": figures})
        write_folder(
            self.folder / name,
            config,
            {"model.safetensors": lambda path: models.save_weights(module, path, config)},
            overwrite=True,
        )


def unreadable_line(problems: Sequence[str], limit: int = 3) -> str:
    """How many images could not be read, and the first few of them with the reason."""
    listed = "; ".join(readable(problem).rstrip(".") for problem in problems[:limit])
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    what = "1 image cannot be read and is" if len(problems) == 1 else f"{len(problems)} images cannot be read and are"
    return f"note: {what} left out: {listed}{more}"


def finish(folder: Path, data: Dataset, settings: TrainSettings, *, device: str, command: str) -> list[str]:
    """What is made of a finished run's best model: its evaluation report, and the ONNX file if it was asked for.

    A failure here does not undo the training; it is said, with the command that does the same again.

    Args:
        folder: the run's folder.
        data: the images to validate on.
        settings: of the run.
        device: what the model is evaluated on, as accelerate calls it: ``"cpu:0"`` where there are several processes.
        command: what the report states as its command.

    Returns:
        A line for everything made or failed.
    """
    said = []
    best = folder / "best"
    split = ALL if len(data.splits) > 1 else next(iter(data.splits))
    if settings.report and (best / "model.safetensors").is_file():
        try:
            from agssp_zoo.tiling import OVERLAP

            from .evaluation import validate
            from .evaluation.settings import ValidationSettings

            chosen = ValidationSettings(
                engine="pytorch",
                device=device if device.startswith("cuda") else device.partition(":")[0],  # no engine numbers CPUs
                tile=settings.tile or None,
                overlap=settings.overlap if settings.tile else OVERLAP,
                tolerance=1.0 if settings.tolerance else 0.0,  # the run has judged what cannot be read
            )
            found = validate(best, data, split=split, settings=chosen, command=command)
            figures, report = found.save(folder / "val")
            said.append(f"report: {report} (map50 {found.metrics.map50:.4f}, figures in {figures.name})")
        except (AgsspZooError, OSError) as error:
            said.append(f"no report: {error} Again with: {_val_command(folder, settings, split)}")
    if settings.export and (best / "model.safetensors").is_file():
        try:
            said.append(f"ONNX: {_export(best)}")
        except (AgsspZooError, OSError) as error:
            said.append(f"no ONNX file: {error} Again with: {shlex.join(['agssp-zoo', 'export', str(best)])}")
    return said


def _val_command(folder: Path, settings: TrainSettings, split: str) -> str:
    """The command that measures a run's best model on the images that it was validated on."""
    words: list[object] = [
        "agssp-zoo",
        "val",
        "--data",
        settings.data,
        "--model",
        folder / "best",
        "--out",
        folder / "val",
    ]
    if split != "val":
        words += ["--split", split]
    if settings.val_fraction and split == "val":
        words += ["--val-fraction", settings.val_fraction, "--seed", settings.seed]
    if settings.format != "auto":
        words += ["--format", settings.format]
    if settings.tile:
        words += ["--tile", settings.tile, "--overlap", settings.overlap]
    if settings.tolerance:
        words += ["--tolerance", settings.tolerance]
    return shlex.join(map(str, words))


def _export(best: Path) -> Path:
    """Adds model.onnx to a model folder, and to its card."""
    from agssp_zoo.export import export_onnx

    file: Path = export_onnx(ModelFolder.open(best))
    return file
