"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo.errors import AgsspZooError, TrainingError

from .checkpoint import Checkpoint
from .data.dataset import Dataset
from .devices import settle_workers
from .ema import AveragedModel
from .failures import explain
from .loader import Batch, BatchPlan, ImageStore, TrainingSamples, build_loader
from .losses import DetectionLoss, class_balance
from .optimizer import build_optimizer, set_rates
from .outputs import Outputs
from .position import Outcome, Position
from .settings import TrainSettings
from .stopping import StopRequest
from .transfer import Start
from .validation import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from agssp_zoo.models.detectors import YOLOv8

PATIENCE = "no better map50_95 for a while"
"""Why a run ends early although nobody asked it to."""
Pending = list[tuple[int, tuple[str, ...], Tensor]]
"""Step, keys of its images and losses of steps whose losses have not been looked at yet."""


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
        self.device = accelerator.device
        self.position = Position()
        self.bad_images: list[str] = []
        self.module: YOLOv8 = start.module
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

        preprocess = self.module.config.preprocess
        cache = settings.cache_mb * 2**20
        self.validator = Validator(
            val.records,
            val.class_names,
            preprocess,
            batch=max(1, 2 * settings.batch // processes),
            cache_bytes=cache // 4,
            rank=rank,
            processes=processes,
        )
        store = ImageStore(train.records, settings.size, cache - cache // 4)
        self.images = len(store) + len(val)
        self._first_problems = (*store.problems, *self.validator.problems)
        self.plan = BatchPlan(len(store), settings.batch, rank, processes)
        samples = TrainingSamples(store, settings, preprocess.pad_value)
        workers = settle_workers(settings, self.device.type)
        self.loader = build_loader(samples, self.plan, workers, pin=self.device.type == "cuda")
        self.loss = DetectionLoss(
            self.module.strides,
            self.module.num_classes,
            self.module.reg_max,
            box_weight=settings.box_weight,
            class_weight=settings.cls_weight,
            distance_weight=settings.dfl_weight,
            class_balance=class_balance(train.class_counts(), settings.cls_pw),
        )
        folder = Path(settings.out)
        self.checkpoint = Checkpoint(folder, accelerator, self.module, self.average, self.optimizer)
        self.outputs = Outputs(folder, accelerator.is_main_process, settings, self.module.config, provenance)
        self.stop = StopRequest(accelerator, settings.time_limit)

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
            raise explain(error, out=self.settings.out, kept=kept, several=self._several) from error

    def _run(self) -> Outcome:
        self.position, self.bad_images = self.checkpoint.restore()
        self._note_problems(self._first_problems)
        at, outputs = self.position, self.outputs
        outputs.open(at.history, at.step)
        reason = ""
        finished = False
        with self.stop.listening():
            try:
                while at.epoch < self.settings.epochs and not reason:
                    reason = self.train_epoch() or self._end_epoch() or self.stop.reason()
                finished = reason == PATIENCE or at.epoch >= self.settings.epochs
            finally:
                outputs.close(at.history)
        said = reason or "all epochs done"
        return Outcome(Path(self.settings.out), finished, said, at.best, at.best_epoch, at.epoch)

    def train_epoch(self) -> str:
        """The rest of an epoch; returns why it was left before its end, if it was."""
        settings, at = self.settings, self.position
        self.network.train()
        self.plan.start(at.epoch, at.epoch_step)
        pending: Pending = []
        lr = 0.0
        batches = iter(self.loader)
        clock = time.monotonic()
        while (batch := next(batches, None)) is not None:
            at.waited += time.monotonic() - clock
            self._note_problems(batch.problems)
            lr = set_rates(self.optimizer, at.step, self.plan.steps, settings)
            parts = self._step(batch, last=at.epoch_step + 1 == self.plan.steps)
            at.step += 1
            at.epoch_step += 1
            pending.append((at.step, batch.keys, parts))
            # Asking and looking at losses makes a GPU wait, so it is done now and then there.
            log = at.step % settings.log_every == 0
            stop = self.stop.reason() if log or self.device.type == "cpu" or not self._several else ""
            moved = at.epoch_step % settings.accumulate == 0
            save = moved and bool(settings.save_every) and at.step % settings.save_every == 0
            if log or save or stop or self.device.type == "cpu":
                rows = self._take_losses(pending)
                if log:
                    self.outputs.log_step(rows[-1], lr, at.step)
            now = time.monotonic()
            at.seconds, clock = at.seconds + now - clock, now
            if (stop or save) and moved and at.epoch_step < self.plan.steps:
                self.checkpoint.save(at, self.bad_images)
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

    def _step(self, batch: Batch, *, last: bool) -> Tensor:
        """Forward, backward and, unless gradients are still being added up, the weights' move. Returns the parts."""
        settings, accelerator = self.settings, self.accelerator
        moves = last or (self.position.epoch_step + 1) % settings.accumulate == 0
        images = self.module.normalize(batch.images.to(self.device, non_blocking=True))
        syncing = contextlib.nullcontext() if moves else accelerator.no_sync(self.network)
        with syncing:
            with accelerator.autocast():
                raw = self.network(images)
            sums = self.loss(
                raw,
                batch.targets.to(self.device),
                reduce_sum=self._sum if self._several else None,
                processes=accelerator.num_processes,
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

    def _take_losses(self, pending: Pending) -> list[list[float]]:
        """Adds the losses of the last steps up and stops when one is no number. Returns them, one row a step."""
        if not pending:
            return []
        parts = torch.stack([p for _, _, p in pending])
        if self._several:
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
        names = [key for part in self._gather([keys]) for key in part]
        raise TrainingError(
            f"The loss is not a number (box {row[0]}, class {row[1]}, distance {row[2]}) at batch "
            f"{(step - 1) % self.plan.steps + 1} of epoch {self.position.epoch + 1} (step {step}; images "
            f"{', '.join(names)}); {self.checkpoint.kept()}. Try a smaller --lr, a longer --warmup, or --precision no."
        )

    def _end_epoch(self) -> str:
        """Validates, saves models, metrics and state; returns :data:`PATIENCE` when that has run out."""
        settings, at = self.settings, self.position
        row = at.history[-1]
        measured = at.epoch % settings.val_every == 0 or at.epoch == settings.epochs
        better = False
        if measured:
            started = time.monotonic()
            row.update(self.validate())
            row["val_seconds"] = time.monotonic() - started
            # The first score counts even if it is no number: better a model than none.
            better = at.best_epoch == 0 or row["map50_95"] > at.best
            if better:
                at.best, at.best_epoch = float(row["map50_95"]), at.epoch
        self.outputs.end_epoch(row, self.average.module, better=better)
        self.checkpoint.save(at, self.bad_images)
        self.outputs.write_history(at.history)
        out_of_patience = settings.patience and at.epoch - at.best_epoch >= settings.patience
        return PATIENCE if measured and out_of_patience else ""

    def validate(self) -> dict[str, float]:
        """map50, map75 and map50_95 of the averaged network on the validation images, in float32 as it will run."""
        found = self.validator.predict(self.average.module, self.device)
        score = self.validator.score(dict(self._gather(list(found.items()))))
        # Every process has seen its own images; from here on all know of all that cannot be read.
        self._note_problems(self._gather([*self.bad_images, *self.validator.problems]))
        return {"map50": score.map50, "map75": score.map75, "map50_95": score.map50_95}

    def _note_problems(self, problems: Sequence[str]) -> None:
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
    def _several(self) -> bool:
        return bool(self.accelerator.num_processes > 1)

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, "sum")
        return total

    def _gather(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in one list."""
        if not self._several:
            return values
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(values)
        return gathered
