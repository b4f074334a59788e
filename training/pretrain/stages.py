"""Running a backbone stage by stage: frozen stages without autograd, and something done between the stages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agssp_zoo.models import Backbone


class StageRunner(nn.Module):
    """A backbone up to a stage, answering the maps of all stages on the way.

    Stages that :meth:`Backbone.freeze_stages` froze are run without autograd, so nothing of them is kept for a
    backward pass, unless something between the stages learns and gets its gradients through them.

    Args:
        backbone: the backbone.
        count: how many stages are run. What lies beyond gets no gradients: its weights stay as they are.
    """

    def __init__(self, backbone: Backbone, count: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.count = count
        for stage in backbone.stages[count:]:
            stage.requires_grad_(False)

    def forward(self, x: Tensor, between: Callable[[int, Tensor], Tensor] | None = None) -> list[Tensor]:
        """Runs the stages.

        Args:
            x: normalised images, (B, 3, H, W).
            between: (stages done, map) -> what goes on into the next stage; called after the stem and each stage.

        Returns:
            A map for each stage run, as ``between`` has left it, behind the norm of stages that have one.
        """
        frozen = self.backbone.num_frozen_stages
        maps = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = self.backbone.forward_stem(x)
        x = x if between is None else between(0, x)
        for number, stage in enumerate(self.backbone.stages[: self.count], 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and (number > frozen or x.requires_grad)):
                x = stage(x)
                x = x if between is None else between(number, x)
                maps.append(self.backbone.output_map(number - 1, x))
        return maps
