"""What a backbone says about its feature maps; without torch, for both engines."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from agssp_zoo.errors import InvalidArgumentError


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map of a backbone.

    Attributes:
        channels: its channels.
        reduction: its stride, in input pixels.
        name: the stage that makes it, as in the module's state dict.
    """

    channels: int
    reduction: int
    name: str


def check_indices(out_indices: Iterable[int], count: int) -> tuple[int, ...]:
    """The stages that were asked for, from 0.

    Args:
        out_indices: numbers of stages from 0; negative ones count from the end.
        count: how many stages there are.

    Raises:
        InvalidArgumentError: no such stage, none at all, not ascending, or no numbers.
    """
    try:
        given = [operator.index(i) for i in out_indices]
    except TypeError:
        raise InvalidArgumentError(
            f"out_indices={out_indices!r}: give a list of stage numbers out of 0..{count - 1}, such as [{count - 1}]."
        ) from None
    indices = tuple(i + count if i < 0 else i for i in given)
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
        raise InvalidArgumentError(f"out_indices={tuple(given)}: give ascending stage numbers out of 0..{count - 1}.")
    return indices
