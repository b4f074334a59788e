"""Operators on the maps of several levels that a tracer keeps whole.

Sides of maps are long expressions of the input's sides, and the number of all pixels is a sum of their products. A
tracer that has to reason about these takes minutes for every layer; behind an operator they have plain new names. The
exporter has a translation of each into ONNX; everywhere else the functions are called directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agssp_zoo.models.deformable_attention import sample_points


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """The pixels of all maps, level by level, row by row: [(B, C, h_i, w_i)] -> (B, N, C)."""
    return torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2).contiguous()


def sample_levels(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor, levels: int, heads: int, points: int
) -> Tensor:
    """As :func:`agssp_zoo.models.deformable_attention.sample_points`, with the levels' shapes as a tensor.

    Args:
        value: (B, N, heads, D).
        locations: (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).
        shapes: (levels, 2) int64 height and width.
        levels: as in the shapes, for the exporter, as are the two below.
        heads: of the attention.
        points: of each level.
    """
    return sample_points(value, locations, weights, [(int(h), int(w)) for h, w in shapes.tolist()]).contiguous()


def rename_sides(x: Tensor, axes: Sequence[int], multiple: int) -> Tensor:
    """The same tensor, of which a tracer no longer knows how some of its sides came about.

    Args:
        x: any tensor.
        axes: those that get new names.
        multiple: what these sides are multiples of, of more than one.
    """
    out: Tensor = torch.ops.agssp_zoo.rename_sides(x, axes, multiple)
    return out


_flatten = torch.library.custom_op(
    "agssp_zoo::flatten_levels", flatten_levels, mutates_args=(), schema="(Tensor[] maps) -> Tensor"
)
_sample = torch.library.custom_op(
    "agssp_zoo::sample_levels",
    sample_levels,
    mutates_args=(),
    schema="(Tensor value, Tensor locations, Tensor weights, Tensor shapes, int levels, int heads, int points)"
    " -> Tensor",
)
_rename = torch.library.custom_op(
    "agssp_zoo::rename_sides",
    lambda x, axes, multiple: x.clone(),
    mutates_args=(),
    schema="(Tensor x, int[] axes, int multiple) -> Tensor",
)


@_flatten.register_fake
def _(maps: Sequence[Tensor]) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size()
    return maps[0].new_empty((maps[0].shape[0], count, maps[0].shape[1]))


@_sample.register_fake
def _(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor, levels: int, heads: int, points: int
) -> Tensor:
    return value.new_empty((value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]))


@_rename.register_fake
def _(x: Tensor, axes: Sequence[int], multiple: int) -> Tensor:
    shape: list[int | torch.SymInt] = list(x.shape)
    for axis in axes:
        shape[axis] = multiple * torch.library.get_ctx().new_dynamic_size(min=2)
    return x.new_empty(shape)
