"""The network of stage 1: a backbone, its task, and the anomaly maps that its activations should resemble."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agssp_zoo.errors import SettingError
from agssp_zoo.models import Backbone

from ..branches import set_branches
from .activation import guidance_losses
from .settings import PretrainSettings
from .stages import StageRunner
from .tasks import Task, build_task, check_patch


class PretrainNetwork(nn.Module):
    """Backbone and task; answers the losses of a batch.

    All of it lies in ``forward``, so that several processes average the gradients of everything.

    Args:
        backbone: the backbone; its stages are frozen as the settings say.
        settings: of the run.
        classes: number of names that task ``cls`` tells apart.

    Attributes:
        backbone: the backbone.
        parts: names of the losses.

    Raises:
        SettingError: a stage that is not there, or that is frozen, is tapped or frozen.
    """

    def __init__(self, backbone: Backbone, settings: PretrainSettings, classes: int) -> None:
        super().__init__()
        check_stages(backbone, settings)
        backbone.freeze_stages(settings.freeze)
        self.task: Task = build_task(settings, backbone, classes)
        count = len(backbone.stages)
        task_runs = settings.active_task != "none"
        self.stages = StageRunner(backbone, count if task_runs else max(settings.taps))
        # So that norms behind other maps are not waited for when gradients of several processes are averaged.
        used = {number - 1 for number in settings.taps} | ({count - 1} if task_runs else set())
        backbone.set_out_indices(sorted(used))
        self.settings = settings
        self.parts = (*(f"{backbone.stage_info[i - 1].name}_loss" for i in settings.taps), "task_loss")

    @property
    def backbone(self) -> Backbone:
        """The backbone."""
        return self.stages.backbone

    def forward(self, images: Tensor, maps: Tensor, labels: Tensor, hidden: Tensor) -> Tensor:
        """The losses of a batch, weighted; their sum is what is minimised.

        Args:
            images: (V * B, S, S, 3) uint8 RGB.
            maps: (V * B, 1, S / 4, S / 4), 0-1.
            labels: (B,) int64.
            hidden: (B, P, P) bool.

        Returns:
            (number of parts,) float32.
        """
        settings = self.settings
        x = self.backbone.normalize(images)
        if not settings.channels_last:
            x = x.contiguous()
        features, task_loss, visible = self.task(self.stages, x, labels, hidden)
        tapped = [features[number - 1] for number in settings.taps]
        with torch.autocast(x.device.type, enabled=False):
            guidance = guidance_losses(tapped, maps, form=settings.form, resizing=settings.resizing, visible=visible)
        return torch.cat([settings.map_weight * guidance, settings.task_weight * task_loss.float()[None]])


def check_stages(backbone: Backbone, settings: PretrainSettings) -> None:
    """Refuses what the backbone has not or cannot do, and sets what it can.

    Raises:
        SettingError: such taps, frozen stages, an input or hidden patches of such a size, or blocks of other backbones.
    """
    names = [info.name for info in backbone.stage_info]
    count = len(names)
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))
    if settings.freeze >= count:
        raise SettingError(
            f"--freeze {settings.freeze}: {settings.model} has {count} stages ({listed}), and the last one at least "
            "has to learn."
        )
    if settings.taps[-1] > count:
        raise SettingError(f"--taps {settings.taps[-1]}: {settings.model} has {count} stages ({listed}).")
    if settings.taps[0] <= settings.freeze:
        raise SettingError(
            f"--taps {settings.taps[0]}: with --freeze {settings.freeze} this stage cannot learn; tap later stages, or "
            "freeze fewer."
        )
    stride = backbone.stage_info[-1].reduction
    if settings.size % stride:
        raise SettingError(f"--size {settings.size}: {settings.model} needs a multiple of {stride}.")
    set_branches(backbone, settings)
    if settings.active_task == "simmim":
        check_patch(backbone, settings)
