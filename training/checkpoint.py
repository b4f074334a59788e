"""Everything that a run needs to go on, saved and restored as one state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agssp_zoo.errors import TrainingError

from .ema import AveragedModel
from .position import Position
from .state import (
    load_state,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_state,
    saved_step,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FOLDER = "state"


class Checkpoint:
    """The state of a run in its folder.

    Args:
        folder: the run's folder.
        accelerator: whose main process writes.
        module: the network.
        average: its averaged weights, if there are any.
        optimizer: its optimizer.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        module: nn.Module,
        average: AveragedModel[Any] | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.folder = folder / STATE_FOLDER
        self.accelerator = accelerator
        self.module = module
        self.average = average
        self.optimizer = optimizer

    def save(self, position: Position, bad_images: list[str]) -> None:
        """Saves the state; only the main process writes, the others wait for it.

        Raises:
            TrainingError: a weight is no number, or the state cannot be written; the state before is still there.
        """
        if self.accelerator.is_main_process:
            tensors = {
                **module_tensors(self.module, "model"),
                **(module_tensors(self.average.module, "average") if self.average else {}),
                **optimizer_tensors(self.optimizer),
                "rng.torch": torch.get_rng_state(),
            }
            self._check_finite(tensors, position)
            values = {
                **{k: v for k, v in position.to_dict().items() if k != "step"},
                "average_steps": self.average.steps if self.average else 0,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "bad_images": bad_images,
            }
            save_state(self.folder, tensors, values, position.step)
        self.accelerator.wait_for_everyone()

    def restore(self, position: Position | None = None) -> tuple[Position, list[str]]:
        """Goes back to the saved state; to the beginning where there is none.

        Args:
            position: the beginning; it is filled and returned.

        Returns:
            Where the run stands, and the images that could not be read so far.

        Raises:
            TrainingError: the state is damaged.
        """
        position = position or Position()
        saved = load_state(self.folder)
        if saved is None:
            return position, []
        tensors, values = saved
        restore_module(self.module, tensors, "model")
        restore_optimizer(self.optimizer, tensors)
        torch.set_rng_state(tensors["rng.torch"])
        if self.average:
            restore_module(self.average.module, tensors, "average")
            self.average.steps = values["average_steps"]
        if values["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        for name in position.to_dict().keys() & values.keys():
            setattr(position, name, values[name])
        return position, list(values["bad_images"])

    def kept(self) -> str:
        """What there is to go on from, as the end of an error's message."""
        step = saved_step(self.folder)
        return "nothing had been saved yet" if step is None else f"the state of step {step} is kept"

    def _check_finite(self, tensors: dict[str, Tensor], position: Position) -> None:
        # The loss of a step can be a number although the gradient was none; weights like these must not replace good
        # ones. A sum is finite only if all of it is, up to overflow, which doubles rule out.
        floating = [(name, value) for name, value in tensors.items() if value.is_floating_point()]
        sums = torch.stack([value.sum(dtype=torch.float64) for _, value in floating])
        bad = [name for (name, _), good in zip(floating, sums.isfinite().tolist(), strict=True) if not good]
        if bad:
            raise TrainingError(
                f"After step {position.step} (epoch {position.epoch + 1}) {len(bad)} tensors hold values that are no "
                f"numbers, {bad[0]} the first; {self.kept()}. Try a smaller --lr, a longer --warmup, or --precision no."
            )
