"""Where a run stands, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Position:
    """Where a run stands; saved with the state.

    Attributes:
        step: steps done since the start of the run.
        epoch: epochs done.
        epoch_step: steps done in the epoch that is under way.
        sums: sums over those steps: box, class and distance loss.
        seconds: time that those steps took, over all sittings.
        waited: the part of it in which the network waited for data.
        best: the best map50_95 so far.
        best_epoch: the epoch (from 1) that it was reached in; 0 before the first.
        history: a row for every epoch done.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    waited: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)

    def close_epoch(self, lr: float) -> dict[str, float | int]:
        """Ends the epoch under way: its row, with mean losses, is appended to the history and returned.

        Args:
            lr: the learning rate of its last step.
        """
        box, classes, distance = (value / max(self.epoch_step, 1) for value in self.sums)
        self.epoch += 1
        row: dict[str, float | int] = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": box + classes + distance,
            "box_loss": box,
            "cls_loss": classes,
            "dfl_loss": distance,
            "lr": lr,
            "train_seconds": self.seconds,
            "data_wait_seconds": self.waited,
        }
        self.history.append(row)
        self.epoch_step, self.sums, self.seconds, self.waited = 0, [0.0, 0.0, 0.0], 0.0, 0.0
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
    """

    folder: Path
    finished: bool
    reason: str
    best: float
    best_epoch: int
    epochs: int
