"""Averaged weights: an exponential moving average of a network."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class AveragedModel(Generic[ModuleT]):
    """Keeps ``average = d * average + (1 - d) * network``, with ``d = decay * (1 - exp(-step / ramp))``.

    The short memory at first lets the average leave the random start behind. BatchNorm statistics are averaged too.

    Args:
        module: the network; it is copied.
        decay: the decay reached in the long run; 0 makes the average a plain copy.
        ramp: steps over which the decay rises; 0 has it from the start.
    """

    def __init__(self, module: ModuleT, decay: float, ramp: float) -> None:
        self.module: ModuleT = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes one step's weights in."""
        self.steps += 1
        decay = self.decay * (1 - math.exp(-self.steps / self.ramp)) if self.ramp else self.decay
        current = module.state_dict(keep_vars=True)
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, average in self.module.state_dict(keep_vars=True).items():
            if average.is_floating_point():
                averages.append(average.data)
                values.append(current[name].data)
            else:
                average.copy_(current[name])
        torch._foreach_lerp_(averages, values, 1 - decay)
