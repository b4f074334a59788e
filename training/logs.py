"""What a run writes for people: metrics.csv, TensorBoard events, plots and a line an epoch."""

from __future__ import annotations

import csv
import io
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .state import write_text

Row = Mapping[str, float | int]


def write_metrics(path: Path, history: Sequence[Row], columns: Sequence[str]) -> None:
    """Writes metrics.csv whole, so that it always agrees with the state."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in history:
        writer.writerow({name: _short(row.get(name)) for name in columns})
    write_text(path, text.getvalue())


def epoch_line(row: Row, epochs: int, losses: Sequence[str]) -> str:
    """An epoch in one line.

    Args:
        row: its row.
        epochs: of the run.
        losses: columns of the parts of the loss.
    """
    parts = [f"epoch {int(row['epoch'])}/{epochs}", f"loss {row['loss']:.3f}"]
    parts.append("(" + " ".join(f"{name.removesuffix('_loss')} {row[name]:.3f}" for name in losses) + ")")
    if "map50" in row:
        parts.append(f"map50 {row['map50']:.4f} map50_95 {row['map50_95']:.4f}")
    parts.append(f"lr {row['lr']:.2e}")
    parts.append(f"{row['train_seconds']:.1f} s + val {row.get('val_seconds', 0):.1f} s")
    return "  ".join(parts)


class Progress:
    """A line that moves on a terminal, and nothing elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._last = 0.0

    def show(self, text: str) -> None:
        """Replaces the line, at most four times a second."""
        if self.enabled and time.monotonic() - self._last > 0.25:
            self._last = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Removes the line."""
        if self.enabled:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Events:
    """TensorBoard events; silent when TensorBoard is not installed.

    Args:
        folder: where the event files go; ``None`` writes none.
        first_step: the first that is written; what the folder has of it or of later ones, from before a kill, is void.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars at a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is pending."""
        if self._writer is not None:
            self._writer.close()


def draw_plots(folder: Path, history: Sequence[Row], plots: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Draws curves over the epochs; nothing without matplotlib or before the first epoch.

    Args:
        folder: where they go.
        history: a row an epoch.
        plots: file name -> label of the ordinate, and the columns drawn.
    """
    if not history:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    for name, (label, columns) in plots.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for column in columns:
            rows = [row for row in history if column in row]
            axes.plot([row["epoch"] for row in rows], [row[column] for row in rows], label=column)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        temporary = folder / f".{name}.tmp"
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]
        temporary.replace(folder / name)


@dataclass(frozen=True)
class Layout:
    """What the outputs of a kind of run show.

    Attributes:
        columns: of metrics.csv.
        parts: how the losses of a step are called in the step log, in the order of the position's.
        figures: columns that a saved model's config.json states.
        plots: see :func:`draw_plots`.
        line: (row, epochs) -> an epoch in one line.
    """

    columns: tuple[str, ...]
    parts: tuple[str, ...]
    figures: tuple[str, ...]
    plots: Mapping[str, tuple[str, Sequence[str]]]
    line: Callable[[Row, int], str]


def finetuning(losses: Sequence[str]) -> Layout:
    """What the fine-tuning of a detector shows; metrics.csv has one row an epoch, empty where nothing was measured.

    Args:
        losses: columns of the parts of the loss.
    """
    return Layout(
        columns=(
            *("epoch", "step", "loss", *losses, "lr", "map50", "map75", "map50_95"),
            *("train_seconds", "data_wait_seconds", "val_seconds"),
        ),
        parts=tuple(f"loss/{name.removesuffix('_loss')}" for name in losses),
        figures=("map50", "map75", "map50_95"),
        plots=MappingProxyType(
            {
                "loss.png": ("loss", ("loss", *losses)),
                "map.png": ("average precision", ("map50", "map50_95")),
            }
        ),
        line=lambda row, epochs: epoch_line(row, epochs, losses),
    )


def _short(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
