"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo import models
from agssp_zoo.errors import TrainingError
from agssp_zoo.folder import write_folder

from . import logs
from .data.dataset import Dataset
from .ema import AveragedModel
from .loader import Batch, BatchPlan, ImageStore, TrainingSamples, build_loader
from .losses import DetectionLoss, class_balance
from .optimizer import build_optimizer, set_rates
from .settings import TrainSettings
from .state import (
    load_state,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_state,
    saved_step,
)
from .transfer import Start
from .validation import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from agssp_zoo.models.detectors import YOLOv8

STATE_FOLDER = "state"


@dataclass
class Position:
    """Where a run stands; saved with the state.

    Attributes:
        step: steps done since the start of the run.
        epoch: epochs done.
        epoch_step: steps done in the epoch that is under way.
        sums: sums over those steps: box, class and distance loss.
        best: the best map50_95 so far.
        best_epoch: the epoch (from 1) that it was reached in; 0 before the first.
        history: a row for every epoch done.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)


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


class Trainer:
    """Trains one detector.

    Args:
        settings: of the run.
        train: the images to train on.
        val: the images to validate on.
        start: the network to start from.
        accelerator: device, precision and processes.
        provenance: what the saved models' config.json says about their origin.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train: Dataset,
        val: Dataset,
        start: Start,
        accelerator: Accelerator,
        provenance: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.provenance = dict(provenance)
        self.folder = Path(settings.out)
        self.position = Position()
        self.module: YOLOv8 = start.module
        self.config = start.module.config
        self.device = accelerator.device
        processes, rank = accelerator.num_processes, accelerator.process_index

        if settings.freeze:
            self.module.backbone.freeze_stages(settings.freeze)
        self.module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.module, settings.ema_decay, settings.ema_ramp)
        network: torch.nn.Module = self.module
        if processes > 1 and self.device.type == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.optimizer = build_optimizer(self.module, settings)
        self.network, self.prepared_optimizer = accelerator.prepare(network, self.optimizer)

        preprocess = self.config.preprocess
        cache = settings.cache_mb * 2**20
        store = ImageStore(train.records, settings.size, cache)
        self.images = len(store)
        self.plan = BatchPlan(len(store), settings.batch, rank, processes)
        samples = TrainingSamples(store, settings, preprocess.pad_value)
        self.loader = build_loader(samples, self.plan, settings.workers, pin=self.device.type == "cuda")
        self.validator = Validator(
            val.records,
            val.class_names,
            preprocess,
            batch=2 * settings.batch // processes,
            cache_bytes=cache,
            rank=rank,
            processes=processes,
        )
        self.loss = DetectionLoss(
            self.module.strides,
            self.module.num_classes,
            self.module.reg_max,
            box_weight=settings.box_weight,
            class_weight=settings.cls_weight,
            distance_weight=settings.dfl_weight,
            class_balance=class_balance(train.class_counts(), settings.cls_pw),
        )
        self.bad_images: list[str] = []
        self._stop_reason = ""
        self._deadline = time.monotonic() + settings.time_limit if settings.time_limit else math.inf
        self._progress = logs.Progress(accelerator.is_main_process)

    # ------------------------------------------------------------------ the run

    def run(self) -> Outcome:
        """Trains until the last epoch, or until patience, the time limit or a signal ends it; goes on from the state.

        Raises:
            TrainingError: the loss is no longer a number, or a file cannot be written. The last good state is kept.
            DataError: more images than tolerated cannot be read.
        """
        self.restore()
        if self.accelerator.is_main_process:
            logs.write_metrics(self.folder / "metrics.csv", self.position.history)
        events = logs.Events(self.folder / "events" if self.accelerator.is_main_process else None, self.position.step)
        reason = ""
        with self._signals():
            try:
                while self.position.epoch < self.settings.epochs and not reason:
                    reason = self._train_epoch(events) or self._end_epoch(events) or self._should_stop()
            finally:
                events.close()
                self._progress.clear()
        if self.accelerator.is_main_process and self.settings.plots:
            logs.draw_plots(self.folder, self.position.history)
        patience = reason == "patience"
        finished = patience or self.position.epoch >= self.settings.epochs
        said = "no better map50_95 for a while" if patience else reason or "all epochs done"
        return Outcome(self.folder, finished, said, self.position.best, self.position.best_epoch, self.position.epoch)

    def _train_epoch(self, events: logs.Events) -> str:
        """The rest of an epoch; returns why it was left before its end, if it was."""
        settings, at = self.settings, self.position
        self.network.train()
        self.plan.start(at.epoch, at.epoch_step)
        pending: list[tuple[int, tuple[str, ...], Tensor]] = []
        started, waited = time.monotonic(), 0.0
        lr = 0.0
        batches = iter(self.loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            waited += time.monotonic() - asked
            if batch is None:
                break
            self._note_problems(batch)
            lr = set_rates(self.optimizer, at.step, self.plan.steps, settings)
            parts = self._step(batch, last=at.epoch_step + 1 == self.plan.steps)
            at.step += 1
            at.epoch_step += 1
            pending.append((at.step, batch.keys, parts))
            stop = self._should_stop()
            log = at.step % settings.log_every == 0
            moved = at.epoch_step % settings.accumulate == 0
            save = moved and bool(settings.save_every) and at.step % settings.save_every == 0
            if log or save or stop or self.device.type == "cpu":
                self._take_losses(pending, events if log else None, lr)
            if (stop or save) and moved and at.epoch_step < self.plan.steps:
                self.save()
                if stop:
                    return stop
            self._progress.show(
                f"epoch {at.epoch + 1}/{settings.epochs}  {at.epoch_step}/{self.plan.steps}  "
                f"loss {sum(at.sums) / at.epoch_step:.3f}"
            )
        self._take_losses(pending, None, lr)
        means = [value / self.plan.steps for value in at.sums]
        at.history.append(
            {
                "epoch": at.epoch + 1,
                "step": at.step,
                "loss": sum(means),
                "box_loss": means[0],
                "cls_loss": means[1],
                "dfl_loss": means[2],
                "lr": lr,
                "train_seconds": time.monotonic() - started,
                "data_wait_seconds": waited,
            }
        )
        return ""

    def _step(self, batch: Batch, *, last: bool) -> Tensor:
        """Forward, backward and, unless gradients are still being added up, the weights' move. Returns the parts."""
        settings, accelerator = self.settings, self.accelerator
        moves = last or (self.position.epoch_step + 1) % settings.accumulate == 0
        images = self.module.normalize(batch.images.to(self.device, non_blocking=True))
        syncing = contextlib.nullcontext() if moves else accelerator.no_sync(self.network)
        with syncing:
            with accelerator.autocast():
                raw = self.network(images)
            processes = accelerator.num_processes
            sums = self.loss(
                raw,
                batch.targets.to(self.device),
                reduce_sum=self._reduce if processes > 1 else None,
                processes=processes,
            )
            # The family's learning rates are meant for the loss times the images of a step.
            accelerator.backward(sums.total * settings.batch)
        if moves:
            if settings.clip_norm:
                accelerator.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad(set_to_none=True)
            self.average.update(self.module)
        return sums.parts

    def _take_losses(
        self, pending: list[tuple[int, tuple[str, ...], Tensor]], events: logs.Events | None, lr: float
    ) -> None:
        """Adds the losses of the last steps up and stops when one is no number."""
        if not pending:
            return
        parts = torch.stack([p for _, _, p in pending])
        if self.accelerator.num_processes > 1:
            parts = self.accelerator.reduce(parts, "mean")
        rows = parts.tolist()
        for (step, keys, _), row in zip(pending, rows, strict=True):
            if not all(map(math.isfinite, row)):
                self._fail_not_finite(step, keys, row)
            self.position.sums = [a + b for a, b in zip(self.position.sums, row, strict=True)]
        if events is not None:
            box, classes, distance = rows[-1]
            values = {"loss/box": box, "loss/cls": classes, "loss/dfl": distance, "loss/total": sum(rows[-1])}
            events.add({**values, "lr": lr}, pending[-1][0])
        pending.clear()

    def _fail_not_finite(self, step: int, keys: tuple[str, ...], row: list[float]) -> None:
        batch = (step - 1) % self.plan.steps + 1
        saved = saved_step(self.folder / STATE_FOLDER)
        kept = "nothing had been saved yet" if saved is None else f"the state of step {saved} is kept"
        raise TrainingError(
            f"The loss is not a number (box {row[0]}, class {row[1]}, distance {row[2]}) at batch {batch} of epoch "
            f"{self.position.epoch + 1} (step {step}; images {', '.join(keys)}); {kept}. Try a smaller --lr, a longer "
            "--warmup, or --precision no."
        )

    # ------------------------------------------------------------------ the end of an epoch

    def _end_epoch(self, events: logs.Events) -> str:
        """Validates, saves models, metrics and state; returns ``"patience"`` when that has run out."""
        settings, at = self.settings, self.position
        at.epoch += 1
        at.epoch_step = 0
        at.sums = [0.0, 0.0, 0.0]
        row = at.history[-1]
        better = False
        if at.epoch % settings.val_every == 0 or at.epoch == settings.epochs:
            started = time.monotonic()
            score = self.validate()
            row.update(score)
            row["val_seconds"] = time.monotonic() - started
            better = row["map50_95"] > at.best
            if better:
                at.best, at.best_epoch = float(row["map50_95"]), at.epoch
        events.add({f"epoch/{k}": v for k, v in row.items() if k != "epoch"}, at.step)
        if self.accelerator.is_main_process:
            if better:
                self._write_model("best", row)
            self._write_model("last", row)
            self._progress.clear()
            sys.stdout.write(logs.epoch_line(row, settings.epochs) + "\n")
            sys.stdout.flush()
        self.save()
        if self.accelerator.is_main_process:
            logs.write_metrics(self.folder / "metrics.csv", at.history)
            if settings.plots and at.epoch % 10 == 0:
                logs.draw_plots(self.folder, at.history)
        if settings.patience and at.epoch - at.best_epoch >= settings.patience:
            return "patience"
        return ""

    def validate(self) -> dict[str, float]:
        """map50, map75 and map50_95 of the averaged network on the validation images, in float32 as it will run."""
        module = self.average.module
        found = self.validator.predict(module, self.device)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            found = dict(gather_object(list(found.items())))
        score = self.validator.score(found)
        return {"map50": score.map50, "map75": score.map75, "map50_95": score.map50_95}

    def _write_model(self, name: str, row: Mapping[str, float | int]) -> None:
        figures = {k: round(float(row[k]), 5) for k in ("map50", "map75", "map50_95") if k in row}
        provenance = {**self.provenance, "epoch": row["epoch"], "metrics": figures}
        config = self.config.replace(provenance=provenance)
        try:
            write_folder(
                self.folder / name,
                config,
                {"model.safetensors": lambda path: models.save_weights(self.average.module, path, config)},
                overwrite=True,
            )
        except OSError as error:
            raise TrainingError(
                f"{self.folder / name}: cannot be written ({error}); the last state is kept."
            ) from error

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """Saves the state; only the main process writes."""
        if self.accelerator.is_main_process:
            tensors = {
                **module_tensors(self.module, "model"),
                **module_tensors(self.average.module, "average"),
                **optimizer_tensors(self.optimizer),
                "rng.torch": torch.get_rng_state(),
            }
            values = {
                **{k: v for k, v in vars(self.position).items() if k != "step"},
                "average_steps": self.average.steps,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "bad_images": self.bad_images,
            }
            save_state(self.folder / STATE_FOLDER, tensors, values, self.position.step)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Goes back to the saved state, if there is one."""
        saved = load_state(self.folder / STATE_FOLDER)
        if saved is None:
            return
        tensors, values = saved
        restore_module(self.module, tensors, "model")
        restore_module(self.average.module, tensors, "average")
        restore_optimizer(self.optimizer, tensors)
        torch.set_rng_state(tensors["rng.torch"])
        self.average.steps = values["average_steps"]
        self.bad_images = values["bad_images"]
        if values["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.position = Position(**{name: values[name] for name in vars(Position())})

    # ------------------------------------------------------------------ small things

    def _reduce(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, "sum")
        return total

    def _note_problems(self, batch: Batch) -> None:
        """Stops when more images than tolerated cannot be read."""
        new = [p for p in batch.problems if p not in self.bad_images]
        if not new:
            return
        self.bad_images += new
        allowed = int(self.settings.tolerance * self.images)
        if len(self.bad_images) > allowed:
            saved = saved_step(self.folder / STATE_FOLDER)
            kept = "" if saved is None else f" The state of step {saved} is kept."
            raise TrainingError(
                f"{len(self.bad_images)} images cannot be read, more than the tolerated {allowed}: "
                f"{'; '.join(self.bad_images[:5])}. Repair or remove them, or raise --tolerance.{kept}"
            )

    def _should_stop(self) -> str:
        reason = self._stop_reason or ("time limit" if time.monotonic() > self._deadline else "")
        if self.accelerator.num_processes > 1:
            flag = self._reduce(torch.tensor(float(bool(reason)), device=self.device))
            if flag.item() and not reason:
                reason = "another process stopped"
        return reason

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the run to stop at the next step; a second SIGINT ends it at once."""

        def ask(number: int, _: FrameType | None) -> None:
            if self._stop_reason and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_reason = f"stopped by {signal.Signals(number).name}"

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
