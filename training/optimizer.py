"""Optimizers, and the learning rate over time."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import nn

from .settings import TrainSettings


class OptimizerSettings(Protocol):
    """The settings that an optimizer is built from."""

    @property
    def optimizer(self) -> Literal["sgd", "adamw"]:
        """Which one."""

    def chosen(self, name: str) -> float:
        """``lr``, ``momentum`` or ``weight_decay``."""


WARMUP_MOMENTUM = 0.8
"""Momentum at the first step; it reaches its own value with the end of the warm-up."""


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, *, nesterov: bool = True, backbone_lr: float = 1.0
) -> torch.optim.Optimizer:
    """SGD with (Nesterov) momentum or AdamW. Kernels and matrices decay; biases and normalisation layers do not.

    Args:
        module: what is trained.
        settings: of the run.
        nesterov: of sgd.
        backbone_lr: learning rate of what is called ``backbone``, as a share of the others'.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    trained = [p for _, p in named]
    groups: list[dict[str, Any]] = []
    for share in sorted({1.0, backbone_lr}, reverse=True):
        of_share = [p for n, p in named if backbone_lr == 1 or n.startswith("backbone.") == (share == backbone_lr)]
        groups += [
            {"params": [p for p in of_share if p.ndim > 1], "weight_decay": settings.chosen("weight_decay")},
            {"params": [p for p in of_share if p.ndim <= 1], "weight_decay": 0.0},
        ]
        for group in groups[-2:]:
            group["share"] = share
    groups = [g for g in groups if g["params"]]
    lr, momentum = settings.chosen("lr"), settings.chosen("momentum")
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused or None
        )
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=fused or None)


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Sets learning rate and momentum for a step of the whole run and returns the rate.

    The rate follows the schedule over all steps, times a linear rise from 0 over the warm-up.
    """
    total = steps_per_epoch * settings.epochs
    warmup = steps_per_epoch * min(settings.warmup, settings.epochs / 2)
    progress = step / max(total, 1)
    if settings.schedule == "cosine":
        share = settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - (1 - settings.final_lr) * progress
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    rate = settings.chosen("lr") * share * rise
    high = settings.chosen("momentum")
    low = min(WARMUP_MOMENTUM, high)
    momentum = low + (high - low) * rise
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])
    return rate
