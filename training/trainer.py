"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .augment import turning_labels
from .branches import set_branches
from .checkpoint import Checkpoint
from .data.dataset import Dataset
from .devices import settle_workers
from .ema import AveragedModel
from .families import family_of
from .loader import Batch, BatchPlan, ImageStore, TrainingSamples, build_loader
from .logs import finetuning
from .loop import EpochLoop
from .optimizer import build_optimizer, set_rates
from .outputs import Outputs
from .position import Position
from .settings import TrainSettings
from .stopping import StopRequest
from .transfer import Start
from .validation import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from agssp_zoo.models.detectors import DetectorModule

PATIENCE = "no better map50_95 for a while"
"""Why a run ends early although nobody asked it to."""


class Trainer(EpochLoop[Batch]):
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
        self.settings: TrainSettings = settings
        self.accelerator = accelerator
        self.device = accelerator.device
        self.module: DetectorModule = start.module
        self.family = family_of(self.module)
        self.position = Position(parts=self.family.parts)
        self.bad_images: list[str] = []
        self.told = 0
        processes, rank = accelerator.num_processes, accelerator.process_index

        if settings.freeze:
            self.module.backbone.freeze_stages(settings.freeze)
        set_branches(self.module.backbone, settings)
        self.module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.module, settings.ema_decay, settings.ema_ramp)
        network: torch.nn.Module = self.module
        if processes > 1 and self.device.type == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.optimizer = build_optimizer(self.module, settings, backbone_lr=settings.backbone_lr)
        self.parameters = list(self.module.parameters())
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
            tiling=settings.tiling,
        )
        store = ImageStore(train.records, settings.size, cache - cache // 4)
        # Of an image that cannot be read all tiles are lost, and it is one.
        self.images = len({(record.path, record.offset) for record in train.records}) + len(val)
        self.first_problems = (*store.problems, *self.validator.problems)
        self.plan = BatchPlan(len(store), settings.batch, rank, processes)
        turning = turning_labels(settings, train.class_names)
        samples = TrainingSamples(store, settings, preprocess.pad_value, turning)
        workers = settle_workers(settings, self.device.type)
        self.loader = build_loader(samples, self.plan, workers, pin=self.device.type == "cuda")
        self.loss = self.family.build_loss(self.module, settings, train.class_counts())
        folder = Path(settings.out)
        self.checkpoint = Checkpoint(folder, accelerator, self.module, self.average, self.optimizer)
        layout = finetuning(self.family.parts)
        self.outputs = Outputs(folder, accelerator.is_main_process, settings, self.module.config, provenance, layout)
        self.stop = StopRequest(accelerator, settings.time_limit)

    @property
    def result(self) -> DetectorModule:
        """The averaged network, which is what is validated and saved."""
        return self.average.module

    def set_rates(self) -> float:
        """Learning rate and momentum of the step at hand."""
        return set_rates(self.optimizer, self.position.step, self.plan.steps, self.settings)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its parts."""
        images = self.module.normalize(batch.images.to(self.device, non_blocking=True))
        targets = batch.targets.to(self.device)
        with self.accelerator.autocast():
            raw = self.network(images, None, targets)
        sums = self.loss(
            raw,
            targets,
            reduce_sum=self._sum if self.several else None,
            processes=self.accelerator.num_processes,
        )
        return sums.total * (self.settings.batch if self.family.times_batch else 1), sums.parts

    def after_move(self) -> None:
        """Takes the new weights into the average."""
        self.average.update(self.module)

    def end_epoch(self) -> str:
        """Validates, saves models, metrics and state; returns :data:`PATIENCE` when that has run out."""
        settings, at = self.settings, self.position
        row = at.history[-1]
        better = False
        if self._measured(at.epoch):
            started = time.monotonic()
            row.update(self.validate())
            row["val_seconds"] = time.monotonic() - started
            # The first score counts even if it is no number: better a model than none.
            # Of equal ones the later, longer trained epoch counts, where no patience waits for a better one.
            better = at.best_epoch == 0 or row["map50_95"] > at.best
            better = better or (row["map50_95"] == at.best and not settings.patience)
            if better:
                at.best, at.best_epoch = float(row["map50_95"]), at.epoch
        self.outputs.end_epoch(row, self.average.module, better=better)
        self.checkpoint.save(at, self.bad_images)
        self.outputs.write_history(at.history)
        self.outputs.tell_unreadable(self.bad_images[self.told :])
        self.told = len(self.bad_images)
        return self.over()

    def over(self) -> str:
        """:data:`PATIENCE` where the epoch that has just been closed, perhaps before a resumption, has used it up."""
        patience, at = self.settings.patience, self.position
        if not patience or at.epoch_step or not self._measured(at.epoch):
            return ""
        return PATIENCE if at.epoch - at.best_epoch >= patience else ""

    def _measured(self, epoch: int) -> bool:
        """Whether the run validates after an epoch, counted from 1."""
        return epoch > 0 and (epoch % self.settings.val_every == 0 or epoch == self.settings.epochs)

    def validate(self) -> dict[str, float]:
        """map50, map75 and map50_95 of the averaged network on the validation images, in float32 as it will run."""
        found = self.validator.predict(self.average.module, self.device)
        score = self.validator.score(dict(self.gather(list(found.items()))))
        # Every process has seen its own images; from here on all know of all that cannot be read.
        self.note_problems(self.gather([*self.bad_images, *self.validator.problems]))
        return {"map50": score.map50, "map75": score.map75, "map50_95": score.map50_95}

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, "sum")
        return total
