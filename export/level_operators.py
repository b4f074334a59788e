"""How the operators of :mod:`agssp_zoo.models.level_operators` are written in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxscript import opset18

from agssp_zoo.models import level_operators as level_operators  # registers them with torch

Value = Any
"""A tensor of the graph that is being written."""
op: Any = opset18  # its signatures tell constants' types no better


def flatten_levels(maps: Sequence[Value]) -> Value:
    """Each map reshaped, all of them in one row, channels last."""
    flat = op.Constant(value_ints=[0, 0, -1])
    return op.Transpose(op.Concat(*(op.Reshape(x, flat) for x in maps), axis=2), perm=[0, 2, 1])


def sample_levels(
    value: Value, locations: Value, weights: Value, shapes: Value, levels: int, heads: int, points: int
) -> Value:
    """GridSample on each level's map, the batch and the heads as its batch."""
    one, two = op.Constant(value_float=1.0), op.Constant(value_float=2.0)
    rest, single = op.Constant(value_ints=[-1]), op.Constant(value_ints=[1])
    queries = op.Shape(locations, start=1, end=2)
    grid_shape = op.Concat(rest, queries, op.Constant(value_ints=[points, 2]), axis=0)
    weight_shape = op.Concat(rest, single, queries, op.Constant(value_ints=[points]), axis=0)
    grid = op.Transpose(op.Sub(op.Mul(locations, two), one), perm=[0, 2, 1, 3, 4, 5])
    weights = op.Transpose(weights, perm=[0, 2, 1, 3, 4])
    depth = op.Shape(value, start=3, end=4)
    planes = op.Reshape(
        op.Transpose(value, perm=[0, 2, 3, 1]), op.Concat(rest, depth, op.Shape(value, start=1, end=2), axis=0)
    )  # (B * heads, D, N)
    start, axis = op.Constant(value_ints=[0]), op.Constant(value_ints=[2])
    total = None
    for number in range(levels):
        level = op.Constant(value_int=number)
        shape = op.Gather(shapes, level, axis=0)
        end = op.Add(start, op.ReduceProd(shape, keepdims=1))
        plane = op.Reshape(
            op.Slice(planes, start, end, axis), op.Concat(op.Shape(planes, start=0, end=2), shape, axis=0)
        )
        sampled = op.GridSample(
            plane,
            op.Reshape(op.Gather(grid, level, axis=3), grid_shape),
            align_corners=0,
            mode="bilinear",
            padding_mode="zeros",
        )
        part = op.ReduceSum(
            op.Mul(sampled, op.Reshape(op.Gather(weights, level, axis=3), weight_shape)),
            op.Constant(value_ints=[3]),
            keepdims=0,
        )
        total = part if total is None else op.Add(total, part)
        start = end
    back = op.Concat(op.Shape(value, start=0, end=1), rest, queries, axis=0)
    return op.Transpose(op.Reshape(total, back), perm=[0, 2, 1])


def rename_sides(x: Value, axes: Sequence[int], multiple: int) -> Value:
    """Nothing: only the tracer needs it."""
    return op.Identity(x)
