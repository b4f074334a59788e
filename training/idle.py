"""Settings that do nothing beside others: whoever gives one means something by it, so it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agssp_zoo.errors import SettingError


@dataclass(frozen=True)
class Needs:
    """What some settings need to have an effect.

    Attributes:
        names: the settings.
        met: settings of a run -> whether these have an effect there.
        what: what they need, as options.
    """

    names: tuple[str, ...]
    met: Callable[[Any], bool]
    what: str


TRAINING = (
    Needs(("overlap", "tile_empty"), lambda s: bool(s.tile), "--tile"),
    Needs(("ema_ramp",), lambda s: s.ema_decay > 0, "--ema-decay above 0"),
)
"""For fine-tuning and stage 2."""

PRETRAINING = (
    Needs(("milestones", "step_factor"), lambda s: s.schedule == "step", "--schedule step"),
    Needs(("final_lr",), lambda s: s.schedule != "step", "--schedule cosine or linear"),
    Needs(("nesterov",), lambda s: s.optimizer == "sgd", "--optimizer sgd"),
    Needs(("task_weight",), lambda s: s.task != "none", "a --task"),
    Needs(("label_smoothing",), lambda s: s.active_task == "cls", "--task cls"),
    Needs(("mask_ratio", "mask_patch"), lambda s: s.active_task == "simmim", "--task simmim"),
    Needs(("moco_momentum", "moco_temperature", "moco_width"), lambda s: s.active_task == "mocov3", "--task mocov3"),
    Needs(("form", "resizing", "map_power"), lambda s: s.map_weight > 0, "--map-weight above 0"),
    Needs(("ema_ramp",), lambda s: s.ema_decay > 0, "--ema-decay above 0"),
)
"""For stage 1."""


def refuse_idle(given: Mapping[str, Any], settings: Any, rules: Sequence[Needs]) -> None:
    """Refuses settings that were given and have no effect; their defaults are let through.

    Args:
        given: the settings that were given, by name; not those of a recipe, which serves several ways to train.
        settings: all of the run's, a dataclass.
        rules: what which need.

    Raises:
        SettingError: one has no effect.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for rule in rules:
        if rule.met(settings):
            continue
        for name in rule.names:
            if name in given and getattr(settings, name) != defaults[name]:
                flag = f"--{name.replace('_', '-')}"
                raise SettingError(f"{flag} has no effect without {rule.what}; give that, too, or leave {flag} out.")
