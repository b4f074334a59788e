"""Where a run stands, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Position:
    """Where a run stands; saved with the state.

    Attributes:
        step: steps done since the start of the run.
        epoch: epochs done.
        epoch_step: steps done in the epoch that is under way.
        sums: sums of the losses over those steps, one for every name in ``parts``.
        seconds: time that those steps took, over all sittings.
        waited: the part of it in which the network waited for data.
        best: the best map50_95 so far.
        best_epoch: the epoch (from 1) that it was reached in; 0 before the first.
        history: a row for every epoch done.
        parts: names of the losses that add up to the loss.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    sums: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)
    parts: tuple[str, ...] = ("box_loss", "cls_loss", "dfl_loss")

    def __post_init__(self) -> None:
        self.sums = self.sums or [0.0] * len(self.parts)

    def to_dict(self) -> dict[str, Any]:
        """What the state keeps of it."""
        return {k: v for k, v in vars(self).items() if k != "parts"}

    def close_epoch(self, lr: float) -> dict[str, float | int]:
        """Ends the epoch under way: its row, with mean losses, is appended to the history and returned.

        Args:
            lr: the learning rate of its last step.
        """
        means = [value / max(self.epoch_step, 1) for value in self.sums]
        self.epoch += 1
        row: dict[str, float | int] = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": sum(means),
            **dict(zip(self.parts, means, strict=True)),
            "lr": lr,
            "train_seconds": self.seconds,
            "data_wait_seconds": self.waited,
        }
        self.history.append(row)
        self.epoch_step, self.sums, self.seconds, self.waited = 0, [0.0] * len(means), 0.0, 0.0
        return row


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        finished: whether all epochs were done (or patience ran out); else ``--resume`` goes on.
        reason: why it stopped, in words.
        best: the best map50_95.
        best_epoch: the epoch, from 1, that it was reached in.
        epochs: epochs done.
        signal: the number of the signal that stopped it; 0 where none did.
    """

    folder: Path
    finished: bool
    reason: str
    best: float
    best_epoch: int
    epochs: int
    signal: int = 0
