"""3x3 convolutions with fewer multiplications.

Winograd's minimal filtering, F(2x2, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv
1509.09308, section 4.1: four neighbouring outputs of a channel need 16 products instead of 36, for which sums of
inputs, of weights and of products are computed. Those of the weights once; the others cost memory traffic, so that it
pays with many channels. Errors of rounding are no larger than a plain convolution's, as fewer numbers are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agssp_zoo.models.cpu_linear import has_onednn, rows_at_once

TILE = 4
"""Side of the input's tiles; they overlap by two, and each gives 2x2 outputs."""

PRODUCTS = TILE * TILE
"""Of an input and an output channel, for every tile."""

FEWEST_CHANNELS = 128
"""Of input and output."""

FEWEST_WEIGHTS = 2**15
"""Input channels times output channels. Below, sums cost what is saved."""

FEWEST_NUMBERS = 2**14
"""Tiles times channels. Below, bringing the weights from memory costs what is saved."""


def pays(out_channels: int, in_channels: int, shape: Sequence[int]) -> bool:
    """Whether it is quicker than a plain convolution of an input of a shape (B, in, H, W), as measured."""
    batch, _, height, width = shape
    fewest = min(out_channels, in_channels)
    tiles = batch * ((height + 1) // 2) * ((width + 1) // 2)
    return (
        fewest >= FEWEST_CHANNELS
        and out_channels * in_channels >= FEWEST_WEIGHTS
        and tiles * fewest >= FEWEST_NUMBERS
        and has_onednn("_linear_pointwise")
        and has_onednn("_reorder_linear_weight")
    )


def transform_weight(weight: Tensor) -> tuple[Tensor, ...]:
    """The sums of the weights, G g G^T in the paper, each in the order that oneDNN multiplies with.

    Args:
        weight: (out, in, 3, 3) float32.

    Returns:
        16 of (out, in), opaque; together 16 / 9 of the weight's memory.
    """
    half = 0.5 * (weight[:, :, 0] + weight[:, :, 2])
    rows = (weight[:, :, 0], half + 0.5 * weight[:, :, 1], half - 0.5 * weight[:, :, 1], weight[:, :, 2])
    order: Any = torch.ops.mkldnn._reorder_linear_weight
    found = []
    for row in rows:
        half = 0.5 * (row[..., 0] + row[..., 2])
        columns = (row[..., 0], half + 0.5 * row[..., 1], half - 0.5 * row[..., 1], row[..., 2])
        found += [order(column.contiguous(), _tiles_at_once(*weight.shape[:2])) for column in columns]
    return tuple(found)


def convolve(x: Tensor, weights: Sequence[Tensor], bias: Tensor, act: str, other: Tensor | None = None) -> Tensor:
    """Convolves with a border of one zero, adds ``other`` and applies an activation. No gradients.

    Args:
        x: (B, in, H, W) float32, channels last in memory.
        weights: see :func:`transform_weight`.
        bias: (out,).
        act: ``"swish"`` (SiLU), ``"relu"`` or ``"none"``.
        other: of the result's shape; ``None`` adds nothing.

    Returns:
        (B, out, H, W), channels last.
    """
    batch, channels, height, width = x.shape
    down, across = (height + 1) // 2, (width + 1) // 2
    padded = F.pad(x, (1, 2 * across - width + 1, 1, 2 * down - height + 1)).permute(0, 2, 3, 1)
    out = x.new_empty(batch, 2 * down, 2 * across, len(bias))
    strips = -(-down * across // _tiles_at_once(len(bias), channels))
    step = -(-down // strips)
    for image, result in zip(padded, out, strict=True):
        for top in range(0, down, step):
            end = min(top + step, down)
            _strip(image[2 * top : 2 * end + 2], weights, bias, result[2 * top : 2 * end])
    out = out[:, :height, :width]
    if other is not None:
        out += other.permute(0, 2, 3, 1)
    if act == "swish":
        F.silu(out, inplace=True)
    elif act == "relu":
        out.relu_()
    return out.contiguous().permute(0, 3, 1, 2)


def _tiles_at_once(out_channels: int, in_channels: int) -> int:
    return rows_at_once(PRODUCTS * max(out_channels, in_channels))


def _strip(image: Tensor, weights: Sequence[Tensor], bias: Tensor, out: Tensor) -> None:
    """The rows (2 T + 2, 2 U + 2, in) of an image with its border -> the sums (2 T, 2 U, out), written."""
    down, across, channels = out.shape[0] // 2, out.shape[1] // 2, image.shape[2]
    tiles = image.new_empty(TILE, TILE, down, across, channels)
    first, second, third, fourth = (image[place : place + 2 * down - 1 : 2] for place in range(TILE))
    for row, sums in enumerate((first - third, second + third, third - second, second - fourth)):
        one, two, three, four = (sums[:, place : place + 2 * across - 1 : 2] for place in range(TILE))
        torch.sub(one, three, out=tiles[row, 0])
        torch.add(two, three, out=tiles[row, 1])
        torch.sub(three, two, out=tiles[row, 2])
        torch.sub(two, four, out=tiles[row, 3])
    multiply: Any = torch.ops.mkldnn._linear_pointwise
    # The product of the second row and column is part of all four outputs, each time with a plus: it brings the bias.
    products = [
        multiply(tile, weight, bias if place == TILE + 1 else None, "none", [], "").view(down, across, -1)
        for place, (tile, weight) in enumerate(zip(tiles.view(PRODUCTS, down * across, channels), weights, strict=True))
    ]
    columns = [_pair(products[place::TILE]) for place in range(TILE)]
    for row in range(2):
        one, two, three, four = (column[row] for column in columns)
        torch.add(two + three, one, out=out[row::2, 0::2])
        torch.sub(two - three, four, out=out[row::2, 1::2])


def _pair(four: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A column of four products to two sums, A^T m in the paper."""
    return (four[1] + four[2]).add_(four[0]), (four[1] - four[2]).sub_(four[3])
