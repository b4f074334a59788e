"""How the operators of :mod:`agssp_zoo.models.operators` are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxscript
import torch

from agssp_zoo.models import operators as operators  # registers them with torch
from agssp_zoo.models.anchors import RATIOS, base_anchors
from agssp_zoo.models.box_coder import MAX_STRETCH

from .level_operators import flatten_levels, rename_sides, sample_levels

op: Any = onnxscript.opset18  # its own types are too narrow for a graph that is being written
Value = Any
"""A tensor of the graph that is being written."""


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Operator -> the function that writes it, as ``torch.onnx.export`` takes them."""
    return {
        torch.ops.agssp_zoo.best_anchors.default: best_anchors,
        torch.ops.agssp_zoo.suppress.default: suppress,
        torch.ops.agssp_zoo.pool_regions.default: pool_regions,
        torch.ops.agssp_zoo.flatten_levels.default: flatten_levels,
        torch.ops.agssp_zoo.sample_levels.default: sample_levels,
        torch.ops.agssp_zoo.rename_sides.default: rename_sides,
    }


def best_anchors(objectness: Value, deltas: Value, stride: int, most: int) -> tuple[Value, Value]:
    """TopK of the level's logits, filled up so that there always are enough, and the anchors of their places."""
    shapes, rest = len(RATIOS), op.Constant(value_ints=[0, -1])
    logits = op.Reshape(op.Transpose(objectness, perm=[0, 2, 3, 1]), rest)
    every = op.Reshape(op.Transpose(deltas, perm=[0, 2, 3, 1]), op.Constant(value_ints=[0, -1, 4]))
    count, number = op.Constant(value_ints=[most]), op.Shape(logits, start=1, end=2)
    slots = op.Expand(
        op.Constant(value_float=float("-inf")), op.Concat(op.Shape(logits, start=0, end=1), count, axis=0)
    )
    best, index = op.TopK(op.Concat(logits, slots, axis=1), count, axis=1)
    there = op.Less(index, number)
    zero = op.Constant(value_int=0)
    index = op.Where(there, index, zero)
    column = op.Unsqueeze(index, [2])
    shift, stretch = _parts(op.GatherND(every, column, batch_dims=1), 2, 2, axis=2)
    cell, width = op.Div(index, op.Constant(value_int=shapes)), op.Shape(objectness, start=3, end=4)
    places = [op.Unsqueeze(part, [2]) for part in (op.Mod(cell, width), op.Div(cell, width))]
    corner = op.Mul(op.Cast(op.Concat(*places, axis=2), to=1), op.Constant(value_float=float(stride)))
    # All anchors are centred on the corner, so that their shape alone is looked up.
    left_top, right_bottom = base_anchors(stride).chunk(2, dim=1)
    sides = op.Gather(
        op.Constant(value=tensor(right_bottom - left_top)), op.Mod(index, op.Constant(value_int=shapes)), axis=0
    )
    centre = op.Add(corner, op.Mul(sides, shift))
    limit = op.Constant(value_float=MAX_STRETCH)
    half = op.Mul(op.Mul(sides, op.Constant(value_float=0.5)), op.Exp(op.Clip(stretch, op.Neg(limit), limit)))
    boxes = op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=2)
    return boxes, op.Where(there, op.Sigmoid(best), op.Constant(value_float=-1.0))


def _parts(value: Value, first: int, rest: int, *, axis: int) -> tuple[Value, Value]:
    """The first entries along an axis, and the rest."""
    axes, ends = op.Constant(value_ints=[axis]), [0, first, first + rest]
    cuts = [op.Constant(value_ints=[end]) for end in ends]
    return op.Slice(value, cuts[0], cuts[1], axes), op.Slice(value, cuts[1], cuts[2], axes)


def tensor(values: torch.Tensor) -> Any:
    """Values as a constant of the graph."""
    from onnx import numpy_helper

    return numpy_helper.from_array(values.numpy())


def suppress(boxes: Value, scores: Value, labels: Value, iou: float, keep: int, groups: int) -> Value:
    """NonMaxSuppression with the labels as its classes, then the best of each image."""
    numbers = op.Constant(value_ints=list(range(groups)))
    of_group = op.Equal(op.Unsqueeze(labels, [0]), op.Unsqueeze(numbers, [1]))  # (groups, N)
    nothing = op.Constant(value_float=-1.0)
    group_scores = op.Where(op.Unsqueeze(of_group, [0]), op.Unsqueeze(scores, [1]), nothing)
    most, overlap, above = (
        op.Constant(value_ints=[keep]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[-0.5]),  # scores below 0 stand for no box
    )
    survivors = op.NonMaxSuppression(boxes, group_scores, most, overlap, above)
    place = op.Gather(survivors, op.Constant(value_ints=[0, 2]), axis=1)
    empty = op.Expand(nothing, op.Shape(scores))
    kept = op.ScatterND(empty, place, op.GatherND(scores, place))
    slots = op.Expand(nothing, op.Concat(op.Shape(scores, start=0, end=1), most, axis=0))
    best, index = op.TopK(op.Concat(kept, slots, axis=1), most, axis=1)
    return op.Where(op.Greater(best, op.Constant(value_float=-0.5)), index, op.Constant(value_int=-1))


def pool_regions(maps: Sequence[Value], rows: Value, level: Value, strides: Sequence[int], size: int) -> Value:
    """RoiAlign on each level for the boxes that belong to it, and the answers back in the boxes' order."""
    parts, places = [], []
    flat = op.Constant(value_ints=[-1])
    for number, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        place = op.Reshape(op.NonZero(op.Equal(level, op.Constant(value_int=number))), flat)
        chosen = op.Gather(rows, place, axis=0)
        image, box = _parts(chosen, 1, 4, axis=1)
        places.append(place)
        parts.append(
            op.RoiAlign(
                x,
                box,
                op.Cast(op.Reshape(image, flat), to=7),
                coordinate_transformation_mode="half_pixel",
                mode="avg",
                output_height=size,
                output_width=size,
                sampling_ratio=0,
                spatial_scale=1.0 / stride,
            )
        )
    place = op.Concat(*places, axis=0)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    numbers = op.Range(zero, op.Squeeze(op.Shape(place)), one)
    back = op.ScatterElements(op.Expand(zero, op.Shape(place)), place, numbers, axis=0)
    return op.Gather(op.Concat(*parts, axis=0), back, axis=0)
