"""A map's coarse grid at the size of its image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Map = NDArray[np.float32]


def enlarge(values: Map, size: tuple[int, int]) -> Map:
    """Resizes a map bilinearly to an image, cells lying around their centres (torch's ``align_corners=False``).

    Values never leave the range of the map. Nothing is averaged where the image is smaller than the grid.

    Args:
        values: float32 (gh, gw).
        size: (height, width) of the image in pixels.

    Returns:
        float32 (height, width).
    """
    rows = _weights(values.shape[0], size[0])
    columns = _weights(values.shape[1], size[1])
    large: Map = rows @ (np.asarray(values, np.float32) @ columns.T)
    return np.clip(large, values.min(), values.max(), out=large)  # rounding may leave the range by an ulp


def enlarge_all(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same for maps (B, gh, gw) onto a finer grid, as (B, *grid)."""
    import torch.nn.functional as F

    return F.interpolate(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


@lru_cache(maxsize=64)
def _weights(cells: int, pixels: int) -> Map:
    """How much each cell counts at each pixel along one axis, float32 (pixels, cells); read only."""
    places = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0.0, cells - 1.0)
    first = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    share = places - first
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), first] = 1.0 - share
    weights[np.arange(pixels), np.minimum(first + 1, cells - 1)] += share
    answer = weights.astype(np.float32)
    answer.flags.writeable = False
    return answer
