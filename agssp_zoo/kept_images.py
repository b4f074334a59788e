"""Pixels that answers hold on to, so that drawing a picture does not decode its file again; bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

LIMIT = 1 << 28
"""Bytes of pixels that the answers of one call may hold together; further images are read again."""


class KeptImages:
    """Counts what the answers of one call of ``stream`` hold. Used by one thread; answers are let go in any.

    Args:
        limit: most bytes held together.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._held: list[weakref.ref[Image]] = []

    def keep(self, image: Image, reload: Callable[[], Image] | None) -> Callable[[], Image] | None:
        """What gives an image's pixels again: the pixels themselves where there is room for them, else ``reload``."""
        alive = [one for ref in self._held if (one := ref()) is not None]
        if sum(one.nbytes for one in alive) + image.nbytes > self.limit:
            return reload
        self._held = [weakref.ref(one) for one in (*alive, image)]
        return lambda: image
