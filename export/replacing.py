"""Layers of a module replaced for as long as it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def replaced(owners: Iterable[nn.Module], name: str, make: Callable[[Any], nn.Module]) -> Iterator[None]:
    """Puts other layers in the place of some, as long as the context lasts.

    Args:
        owners: the modules that have the layer.
        name: of the attribute that it is.
        make: what takes its place.
    """
    places = [(owner, getattr(owner, name)) for owner in owners]
    others = [make(layer) for _, layer in places]
    try:
        for (owner, _), other in zip(places, others, strict=True):
            setattr(owner, name, other)
        yield
    finally:
        for owner, layer in places:
            setattr(owner, name, layer)
