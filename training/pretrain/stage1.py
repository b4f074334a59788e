"""Stage 1, anomaly-guided backbone pretraining (AGBP): the training loop's steps and epochs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agssp_zoo.models import Backbone

from ..checkpoint import Checkpoint
from ..devices import settle_workers
from ..ema import AveragedModel
from ..loader import BatchPlan, load_batches
from ..logs import Layout, Row
from ..loop import EpochLoop
from ..optimizer import build_optimizer
from ..outputs import Outputs
from ..position import Position
from ..state import saved_step
from ..stopping import StopRequest
from .network import PretrainNetwork
from .pictures import ActivationPictures
from .pool import ImageCache, Pool, PoolSamples, ViewBatch, stack_views
from .schedule import learning_rate, set_rate
from .settings import PretrainSettings
from .start import BackboneStart

if TYPE_CHECKING:
    from accelerate import Accelerator


def layout(parts: tuple[str, ...]) -> Layout:
    """What the outputs of stage 1 show, for these losses."""
    return Layout(
        columns=("epoch", "step", "loss", *parts, "lr", "train_seconds", "data_wait_seconds", "images_per_second"),
        parts=tuple(f"loss/{name.removesuffix('_loss')}" for name in parts),
        figures=("loss", *parts),
        plots={"loss.png": ("loss", ("loss", *parts))},
        line=lambda row, epochs: epoch_line(row, epochs, parts),
    )


def epoch_line(row: Row, epochs: int, parts: tuple[str, ...]) -> str:
    """An epoch in one line."""
    losses = " ".join(f"{name.removesuffix('_loss')} {row[name]:.4f}" for name in parts)
    return (
        f"epoch {int(row['epoch'])}/{epochs}  loss {row['loss']:.4f} ({losses})  lr {row['lr']:.2e}  "
        f"{row['train_seconds']:.1f} s  {row['images_per_second']:.1f} images/s"
    )


class Pretrainer(EpochLoop[ViewBatch]):
    """Pretrains one backbone.

    Args:
        settings: of the run.
        pool: images, maps and classes.
        start: the backbone to start from.
        accelerator: device, precision and processes.
        provenance: what the saved model's config.json says about its origin.

    Raises:
        TrainingError: settings that do not suit the backbone.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        pool: Pool,
        start: BackboneStart,
        accelerator: Accelerator,
        provenance: Mapping[str, Any],
    ) -> None:
        self.settings: PretrainSettings = settings
        self.accelerator = accelerator
        self.device = accelerator.device
        self.bad_images = []
        processes, rank = accelerator.num_processes, accelerator.process_index

        self.module = PretrainNetwork(start.module, settings, len(pool.class_names))
        self.position = Position(parts=self.module.parts)
        order = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.module.to(device=self.device, memory_format=order)  # type: ignore[call-overload]
        decay = settings.ema_decay
        self.average = AveragedModel(self.module, decay, settings.ema_ramp) if decay else None
        network: torch.nn.Module = self.module
        if processes > 1 and self.device.type == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.module, settings, nesterov=settings.nesterov)
        self.network, self.prepared_optimizer = accelerator.prepare(network, self.optimizer)

        cache = ImageCache(pool.images, settings, settings.cache_mb * 2**20)
        self.images = len(pool)
        self.first_problems = cache.problems
        self.plan = BatchPlan(len(pool), settings.batch, rank, processes)
        workers = settle_workers(settings, self.device.type)
        samples = PoolSamples(pool, cache, settings)
        self.loader = load_batches(samples, self.plan, stack_views, workers, pin=self.device.type == "cuda")
        folder = Path(settings.out)
        self.checkpoint = Checkpoint(folder, accelerator, self.module, self.average, self.optimizer)
        config = start.module.config
        self.outputs = Outputs(
            folder, accelerator.is_main_process, settings, config, provenance, layout(self.module.parts)
        )
        self.stop = StopRequest(accelerator, settings.time_limit)
        self.pictures: ActivationPictures | None = None
        if accelerator.is_main_process and not self.first_problems:
            self.pictures = ActivationPictures(folder, pool, cache, settings)
            # The state is restored later: what is here now is what the run started from, also when it goes on.
            goes_on = saved_step(self.checkpoint.folder) is not None
            self.pictures.keep_before(self.module.backbone, goes_on=goes_on)

    @property
    def result(self) -> Backbone:
        """The backbone that is saved: the averaged one where there is an average."""
        return (self.average.module if self.average else self.module).backbone

    def losses(self, batch: ViewBatch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its parts: one for every tapped stage, and the task's."""
        tensors = (batch.images, batch.maps, batch.labels, batch.hidden)
        images, maps, labels, hidden = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        with self.accelerator.autocast():
            parts: Tensor = self.network(images, maps, labels, hidden)
        return parts.sum() / self.settings.accumulate, parts.detach()

    def set_rates(self) -> float:
        """The learning rate of the step at hand."""
        rate = learning_rate(self.settings, self.position.step, self.plan.steps)
        set_rate(self.optimizer, rate)
        return rate

    def after_move(self) -> None:
        """Second encoders and averages follow the new weights."""
        progress = self.position.step / max(1, self.plan.steps * self.settings.epochs)
        self.module.task.after_move(self.module.stages, progress)
        if self.average:
            self.average.update(self.module)

    def end_epoch(self) -> str:
        """Writes the model, metrics and the state; pictures now and then."""
        settings, at = self.settings, self.position
        row = at.history[-1]
        row["images_per_second"] = self.plan.steps * settings.batch / max(float(row["train_seconds"]), 1e-9)
        self.outputs.end_epoch(row, self.result, better=False)
        self.checkpoint.save(at, self.bad_images)
        self.outputs.write_history(at.history)
        if self.pictures and (at.epoch % 10 == 0 or at.epoch in (1, settings.epochs)):
            self.pictures.draw(self.result)
        return ""
