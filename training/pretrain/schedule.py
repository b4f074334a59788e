"""The learning rate of stage 1 over time."""

from __future__ import annotations

import math

import torch

from .settings import PretrainSettings


def learning_rate(settings: PretrainSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step of the whole run, counted from 0.

    A schedule (cosine or straight down to ``final_lr`` over the steps after the warm-up, or steps down at milestones)
    times a linear rise over the warm-up.
    """
    total = steps_per_epoch * settings.epochs
    warmup = steps_per_epoch * min(settings.warmup, settings.epochs / 2)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    progress = min(1.0, max(0.0, step - warmup) / max(total - warmup, 1.0))
    if settings.schedule == "step":
        epoch = step // max(steps_per_epoch, 1)
        share = settings.step_factor ** sum(epoch >= milestone for milestone in settings.milestones)
    elif settings.schedule == "cosine":
        share = settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - (1 - settings.final_lr) * progress
    return settings.chosen("lr") * share * rise


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group of parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
