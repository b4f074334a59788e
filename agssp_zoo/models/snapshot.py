"""Whether tensors still are what something was computed from."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

SAMPLED = 8
"""Of how many rows, and how many columns of each, a weight's values are compared."""


@dataclass(frozen=True)
class Snapshot:
    """What tells whether float32 tensors of a module on the CPU still are what they were.

    A few microseconds; to compare all values would take long. Changes that PyTorch counts are all seen; those through
    ``.data`` or NumPy are when they concern what is compared.

    Attributes:
        parts: the tensors.
        state: how often each was changed, and where it lies.
        values: some of the parts' values, as they are now; as views they also keep the addresses from being used again.
        sample: the first of these as they were.
    """

    parts: tuple[Any, ...]
    state: list[tuple[int, int]]
    values: tuple[Tensor, ...]
    sample: tuple[Tensor, ...]

    @classmethod
    def take(cls, parts: Sequence[Any], compared: int) -> Self:
        """Of tensors that can be watched (:func:`can_be_watched`).

        Args:
            parts: a weight (out, in, ...) and other tensors.
            compared: of how many parts values are compared: samples of the weight, the others' all.
        """
        weight, *others = (part.detach() for part in parts)
        out, inputs = (max(1, length // SAMPLED) for length in weight.shape[:2])
        values = (weight[(slice(None, None, out), slice(None, None, inputs), *[0] * (weight.ndim - 2))], *others)
        return cls(tuple(parts), _state(parts), values, tuple(value.clone() for value in values[:compared]))

    def holds(self, parts: Sequence[Any]) -> bool:
        """Whether these are the tensors, unchanged."""
        return (
            all(map(operator.is_, self.parts, parts))
            and self.state == _state(self.parts)
            and all(map(torch.equal, self.sample, self.values))
        )


def can_be_watched(part: object) -> bool:
    """Whether it is a float32 tensor on the CPU, with values, whose changes are counted."""
    return (
        type(part) in (nn.Parameter, Tensor)
        and isinstance(part, Tensor)
        and part.dtype == torch.float32
        and part.device.type == "cpu"
        and not part.is_inference()
    )


def _state(parts: Sequence[Any]) -> list[tuple[int, int]]:
    return [(part._version, part.data_ptr()) for part in parts]
