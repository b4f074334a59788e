"""The training loop that every kind of run shares: epochs of steps, stopping, saving, and going on."""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from agssp_zoo.errors import AgsspZooError, TrainingError

from .checkpoint import Checkpoint
from .failures import explain
from .loader import BatchPlan
from .outputs import Outputs
from .position import Outcome, Position
from .stopping import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

Pending = list[tuple[int, tuple[str, ...], Tensor]]
"""Step, keys of its images and losses of steps whose losses have not been looked at yet."""


class LoopSettings(Protocol):
    """The settings that the loop itself looks at."""

    @property
    def out(self) -> str:
        """Folder of the run."""

    @property
    def epochs(self) -> int:
        """Passes over the images."""

    @property
    def accumulate(self) -> int:
        """Steps whose gradients are added up."""

    @property
    def clip_norm(self) -> float:
        """Largest norm of the gradient; 0 does not clip."""

    @property
    def log_every(self) -> int:
        """Steps between two entries of the step log."""

    @property
    def save_every(self) -> int:
        """Steps between two states; 0 saves after an epoch only."""

    @property
    def tolerance(self) -> float:
        """Share of the images that may be unreadable."""


class AnyBatch(Protocol):
    """What the loop asks of a batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The images that the samples started from."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every image that could not be read."""


BatchT = TypeVar("BatchT", bound=AnyBatch)


class EpochLoop(ABC, Generic[BatchT]):
    """Epochs of steps. A kind of run says what a step and the end of an epoch are.

    The methods that are not abstract here expect these attributes, which the subclass sets.

    Attributes:
        settings: of the run.
        accelerator: device, precision and processes.
        device: the accelerator's.
        position: where the run stands.
        bad_images: one line for every image that could not be read so far.
        first_problems: those known before the first step.
        images: number of images, of which the tolerated share may be unreadable.
        network: what is trained, as the accelerator has prepared it.
        parameters: those that are trained.
        optimizer: of those.
        prepared_optimizer: the same, as the accelerator has prepared it.
        plan: which samples make which step.
        loader: of batches, in the plan's order.
        checkpoint: the state on the disk.
        outputs: what is written for people.
        stop: whether the run should stop.
    """

    settings: LoopSettings
    accelerator: Accelerator
    device: torch.device
    position: Position
    bad_images: list[str]
    first_problems: tuple[str, ...]
    images: int
    network: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    prepared_optimizer: Any
    plan: BatchPlan
    loader: DataLoader[Any]
    checkpoint: Checkpoint
    outputs: Outputs
    stop: StopRequest

    @property
    @abstractmethod
    def result(self) -> torch.nn.Module:
        """The network that is saved: the averaged one where there is an average."""

    @abstractmethod
    def losses(self, batch: BatchT) -> tuple[Tensor, Tensor]:
        """Runs the network: what is minimised, and the losses that are reported (one for each of the parts)."""

    @abstractmethod
    def set_rates(self) -> float:
        """Sets what follows a schedule for the step at hand; returns the learning rate."""

    @abstractmethod
    def after_move(self) -> None:
        """What follows every move of the weights, such as averaging them."""

    @abstractmethod
    def end_epoch(self) -> str:
        """Closes an epoch: outputs and state; returns why the run ends early, if it does so as it should."""

    def over(self) -> str:
        """Why a run that stands where this one does has ended early; empty where it goes on."""
        return ""

    def run(self) -> Outcome:
        """Trains until the last epoch, or until patience, the time limit or a signal ends it; goes on from the state.

        Raises:
            TrainingError: the loss is no longer a number, more images than tolerated cannot be read, a file cannot be
                written, or another process has stopped. The last good state is kept.
        """
        try:
            return self._run()
        except AgsspZooError:
            raise
        except Exception as error:
            kept = self.checkpoint.kept()
            raise explain(error, out=self.settings.out, kept=kept, several=self.several) from error

    def _run(self) -> Outcome:
        self.position, self.bad_images = self.checkpoint.restore(self.position)
        self.note_problems(self.first_problems)
        at, outputs = self.position, self.outputs
        outputs.open(at.history, at.step)
        reason = ended = self.over()
        self.restore_models(over=bool(ended) or at.epoch >= self.settings.epochs)
        with self.stop.listening():
            try:
                while at.epoch < self.settings.epochs and not reason:
                    reason = self.train_epoch()
                    if not reason:
                        ended = self.end_epoch()
                        reason = ended or self.stop.reason()
            finally:
                outputs.close(at.history)
        finished = bool(ended) or at.epoch >= self.settings.epochs
        said = reason or "all epochs done"
        by = 0 if finished else self.stop.signal
        return Outcome(outputs.folder, finished, said, at.best, at.best_epoch, at.epoch, by)

    def restore_models(self, *, over: bool) -> None:
        """Writes the models anew that the run's folder has lost, as far as the state has them.

        Args:
            over: whether no epoch is left.

        Raises:
            TrainingError: the best model is lost, and no epoch is left that could give another.
        """
        at, folder = self.position, self.outputs.folder
        lost = [name for name in ("last", "best") if not (folder / name / "model.safetensors").is_file()]
        closed = at.epoch > 0 and at.epoch_step == 0  # what the state holds is the model of the last epoch
        for name, epoch in (("last", at.epoch), ("best", at.best_epoch)):
            if name in lost and closed and epoch == at.epoch:
                self.outputs.write_again(name, self.result, at.history[-1])
                lost.remove(name)
        if "best" not in lost or not at.best_epoch:
            return
        what = f"{folder / 'best'} is lost: it was the model of epoch {at.best_epoch}, and the state holds a later one"
        if over:
            raise TrainingError(
                f"{what}. Take {folder / 'last'} in its place, or train again: remove {folder}, or give another --out."
            )
        self.outputs.say(f"{what}; the best of the epochs to come takes its place")
        at.best, at.best_epoch = -1.0, 0

    def train_epoch(self) -> str:
        """The rest of an epoch; returns why it was left before its end, if it was."""
        settings, at = self.settings, self.position
        self.network.train()
        self.plan.start(at.epoch, at.epoch_step)
        pending: Pending = []
        lr = 0.0
        stop, save = "", False  # once asked for, both wait for the next move of the weights
        batches = iter(self.loader)
        clock = time.monotonic()
        while (batch := next(batches, None)) is not None:
            at.waited += time.monotonic() - clock
            self.note_problems(batch.problems)
            lr = self.set_rates()
            parts = self._step(batch, last=at.epoch_step + 1 == self.plan.steps)
            at.step += 1
            at.epoch_step += 1
            pending.append((at.step, batch.keys, parts))
            # Asking and looking at losses makes a GPU wait, so it is done now and then there.
            log = at.step % settings.log_every == 0
            if not stop and (log or self.device.type == "cpu" or not self.several):
                stop = self.stop.reason()
            save = save or (bool(settings.save_every) and at.step % settings.save_every == 0)
            due = bool(stop or save) and at.epoch_step % settings.accumulate == 0
            if log or due or self.device.type == "cpu":
                rows = self._take_losses(pending)
                if log:
                    self.outputs.log_step(rows[-1], lr, at.step)
            now = time.monotonic()
            at.seconds, clock = at.seconds + now - clock, now
            if due and at.epoch_step < self.plan.steps:
                self.checkpoint.save(at, self.bad_images)
                save = False
                if stop:
                    return stop
            self.outputs.progress.show(
                f"epoch {at.epoch + 1}/{settings.epochs}  {at.epoch_step}/{self.plan.steps}  "
                f"loss {sum(at.sums) / at.epoch_step:.3f}"
            )
        self._take_losses(pending)
        at.seconds += time.monotonic() - clock
        at.close_epoch(lr)
        return ""

    def _step(self, batch: BatchT, *, last: bool) -> Tensor:
        """Forward, backward and, unless gradients are still being added up, the weights' move. Returns the parts."""
        settings, accelerator = self.settings, self.accelerator
        moves = last or (self.position.epoch_step + 1) % settings.accumulate == 0
        syncing = contextlib.nullcontext() if moves else accelerator.no_sync(self.network)
        with syncing:
            total, parts = self.losses(batch)
            accelerator.backward(total)
        if moves:
            if settings.clip_norm:
                accelerator.clip_grad_norm_(self.parameters, settings.clip_norm)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad(set_to_none=True)
            self.after_move()
        return parts

    def _take_losses(self, pending: Pending) -> list[list[float]]:
        """Adds the losses of the last steps up and stops when one is no number. Returns them, one row a step."""
        if not pending:
            return []
        parts = torch.stack([p for _, _, p in pending])
        if self.several:
            parts = self.accelerator.reduce(parts, "mean")
        rows: list[list[float]] = parts.tolist()
        for (step, keys, _), row in zip(pending, rows, strict=True):
            if not all(map(math.isfinite, row)):
                self._fail_not_finite(step, keys, row)
            self.position.sums = [a + b for a, b in zip(self.position.sums, row, strict=True)]
        pending.clear()
        return rows

    def _fail_not_finite(self, step: int, keys: tuple[str, ...], row: list[float]) -> None:
        # The mean over processes is no number on all of them as soon as one's is, so all of them come here.
        names = [key for part in self.gather([keys]) for key in part]
        losses = ", ".join(f"{name} {value}" for name, value in zip(self.position.parts, row, strict=True))
        raise TrainingError(
            f"The loss is not a number ({losses}) at batch {(step - 1) % self.plan.steps + 1} of epoch "
            f"{self.position.epoch + 1} (step {step}; images {', '.join(names)}); {self.checkpoint.kept()}. Try a "
            "smaller --lr, a longer --warmup, or --precision no."
        )

    def note_problems(self, problems: Sequence[str]) -> None:
        """Stops when more images than tolerated cannot be read."""
        new = [problem for problem in dict.fromkeys(problems) if problem not in self.bad_images]
        if not new:
            return
        self.bad_images += new
        allowed = int(self.settings.tolerance * self.images)
        if len(self.bad_images) > allowed:
            listed = "; ".join(problem.rstrip(".") for problem in self.bad_images[:5])
            raise TrainingError(
                f"{len(self.bad_images)} images cannot be read, more than the tolerated {allowed} of {self.images}: "
                f"{listed}. Repair or remove them, or raise --tolerance; {self.checkpoint.kept()}."
            )

    @property
    def several(self) -> bool:
        """Whether the run has several processes."""
        return bool(self.accelerator.num_processes > 1)

    def gather(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in one list."""
        if not self.several:
            return values
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(values)
        return gathered
