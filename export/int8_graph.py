"""What is done to a detector's graph around its quantisation, so that whole numbers stay whole numbers.

:func:`prepare` changes how the first layer is written, not what it computes; :func:`plan` says what is quantised: all
that lies before the last convolutions, which stay in float together with decoding and suppression; :func:`finish`
removes what the first layer and the nearest-neighbour upsampling would compute in float.

Why the first layer is rewritten: three channels fill no vector, and integer kernels want a multiple of four. The image,
(batch, height, width, 3), is read as (batch, height, width / 4, 12) without moving a byte, and one convolution
of stride (2, 1) answers two neighbouring columns of the output at once. A pixel is already a whole number of scale
1 / std and zero point 0, so nothing has to be normalised, and none of the image's precision is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import (
    before,
    drop_unused,
    float_tensors,
    last_layers,
    makers_of,
    readers_of,
    replace_nodes,
    sort_nodes,
    unify_opset,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

QUANTIZED = frozenset({"Conv", "Sigmoid", "Relu", "Mul", "Add", "Concat", "Slice", "Split", "MaxPool", "Resize"})
"""What ONNX Runtime computes in 8 bits on a CPU. With Sigmoid and Mul, SiLU needs no float in between."""
SAME_SCALE = frozenset({"Concat", "Slice", "Split", "MaxPool", "Resize", "Transpose", "Reshape"})
"""What only moves values: inputs and output share one scale, so that bytes are copied and not computed anew."""
COLUMNS = 4
"""Columns of the image that become one; sides are multiples of the stride, which is a multiple of this."""
SILU_FLOOR = -8.0
"""SiLU of less is above -0.003: nothing that 8 bits would show, so the range before it starts here."""
PREFIX = "int8/"
"""Of the names that are made here."""


@dataclass(frozen=True)
class Plan:
    """What to quantise.

    Attributes:
        nodes: names of the nodes.
        tensors: names of the activations that need a range.
        groups: tensors that share one; those in none have their own.
        fixed: ranges that are known: of pixels, which are whole numbers already.
        floors: tensors of which only what lies above a value matters.
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    fixed: dict[str, tuple[float, float]]
    floors: dict[str, float]


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a detector's float graph that computes the same, ready to be quantised."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    unify_opset(copy)
    for index, node in enumerate(copy.graph.node):
        node.name = node.name or f"{PREFIX}node_{index}"
    _rewrite_stem(copy.graph)
    return copy


def plan(model: onnx.ModelProto) -> Plan:
    """What of a graph of :func:`prepare` is quantised."""
    graph = model.graph
    makers = makers_of(graph)
    inner = before(last_layers(graph, makers), makers)
    floats = float_tensors(model)
    chosen = [
        node
        for node in graph.node
        if id(node) in inner
        and node.output[0] in floats
        and (node.op_type in QUANTIZED or node.name.startswith(PREFIX + "columns"))
        and node.output[0] not in _NORMALIZING
    ]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {
        name: None
        for node in chosen
        for name in [*node.input, *node.output]
        if name in floats and name not in constants
    }
    fixed = {_UNIT: (0.0, 255 * numpy_helper.to_array(constants[_SCALE]).item())} if _UNIT in tensors else {}
    readers = readers_of(graph)
    floors = {
        node.input[0]: SILU_FLOOR
        for node in chosen
        if node.op_type == "Sigmoid" and {r.op_type for r in readers[node.input[0]]} == {"Sigmoid", "Mul"}
    }
    return Plan(tuple(node.name for node in chosen), tuple(tensors), tuple(_groups(chosen, tensors)), fixed, floors)


def finish(model: onnx.ModelProto) -> None:
    """After quantising: pixels go in as they are, and upsampling copies bytes. The answers stay the same."""
    graph = model.graph
    _fold_pixels(graph)
    for index, name in enumerate([node.output[0] for node in graph.node if node.op_type == "Resize"]):
        _upsample_bytes(graph, makers_of(graph)[name], f"{PREFIX}up{index}/")
    sort_nodes(graph)
    drop_unused(graph)


# --- the first layer --------------------------------------------------------------------------------------------------

_PLANES, _FLOAT, _UNIT, _SCALE = (PREFIX + name for name in ("planes", "float", "unit", "scale"))
_NORMALIZING = (_FLOAT, _UNIT)


def _rewrite_stem(graph: onnx.GraphProto) -> None:
    """From images -> Transpose -> Cast -> Div by one number -> Conv of stride 2, as the convolution described above.

    Any other beginning (a mean to subtract, another stride) stays as it is: its normalising is then computed in float.
    """
    readers = readers_of(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    chain: list[onnx.NodeProto] = []
    name = "images"
    for kind in ("Transpose", "Cast", "Div", "Conv"):
        node = next((node for node in readers[name] if node.op_type == kind), None)
        if node is None or (chain and len(readers[name]) > 1):
            return
        chain.append(node)
        name = node.output[0]
    divide, conv = chain[2:]
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    if divide.input[1] not in constants or conv.input[1] not in constants:
        return
    std = numpy_helper.to_array(constants[divide.input[1]])
    weight = numpy_helper.to_array(constants[conv.input[1]])
    _, channels, rows, columns = weight.shape
    pads = list(settings.get("pads", [0] * 4))
    if (
        len(set(std.flat)) != 1
        or (channels, rows) != (3, columns)
        or list(settings.get("strides", [])) != [2, 2]
        or list(settings.get("dilations", [1, 1])) != [1, 1]
        or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET")
        or len(set(pads)) != 1
        or any(name not in constants for name in conv.input[1:])
    ):
        return
    merged, before, after = merge_columns(weight, pads[0])
    end = conv.output[0]
    constants[conv.input[1]].CopyFrom(numpy_helper.from_array(merged, conv.input[1]))
    for bias in conv.input[2:]:
        twice = np.tile(numpy_helper.to_array(constants[bias]), 2)
        constants[bias].CopyFrom(numpy_helper.from_array(twice, bias))
    del conv.attribute[:]
    conv.attribute.extend(
        helper.make_attribute(key, value)
        for key, value in (
            ("kernel_shape", merged.shape[2:]),
            ("pads", [pads[0], before, pads[0], after]),
            ("strides", [2, 1]),
        )
    )
    conv.input[0], conv.output[0] = _UNIT, PREFIX + "columns"
    first = [
        _node("Reshape", "images", "wide", shape=(graph, [0, 0, -1, COLUMNS * 3])),
        _node("Transpose", PREFIX + "wide", "planes", perm=[0, 3, 1, 2]),
        _node("Cast", _PLANES, "float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [_FLOAT, _SCALE], [_UNIT], name=_UNIT),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(1 / std.flat[0], np.float32), _SCALE))
    last = [
        _node("Transpose", PREFIX + "columns", "columns_last", perm=[0, 2, 3, 1]),
        _node("Reshape", PREFIX + "columns_last", "columns_apart", shape=(graph, [0, 0, -1, len(weight)])),
        helper.make_node(
            "Transpose", [PREFIX + "columns_apart"], [end], name=PREFIX + "columns_done", perm=[0, 3, 1, 2]
        ),
    ]
    # Whatever else reads what normalising made (nothing does) would have been left out by the loop above.
    gone = {id(node) for node in chain[:3]}
    nodes = []
    for node in graph.node:
        if id(node) not in gone:
            nodes += [*first, node, *last] if node is conv else [node]
    replace_nodes(graph, nodes)


def merge_columns(weight: NDArray[np.float32], pad: int) -> tuple[NDArray[np.float32], int, int]:
    """A convolution of stride 2 and equal padding as one of stride (2, 1) on four columns at once.

    Args:
        weight: (O, C, K, K).
        pad: on every side.

    Returns:
        The weight (2 * O, 4 * C, K, N), output channels in the order (column, O), input channels (column, C), and how
        many merged columns are padded before and after.
    """
    out, channels, rows, columns = weight.shape
    first, last = -pad // COLUMNS, (2 - pad + columns - 1) // COLUMNS
    merged = np.zeros((2, out, COLUMNS, channels, rows, last - first + 1), np.float32)
    for which in range(2):
        for column in range(columns):
            place = 2 * which - pad + column
            merged[which, :, place % COLUMNS, :, :, place // COLUMNS - first] = weight[:, :, :, column]
    return merged.reshape(2 * out, COLUMNS * channels, rows, -1), -first, last


def _fold_pixels(graph: onnx.GraphProto) -> None:
    """Shortens planes -> Cast -> Mul -> QuantizeLinear -> DequantizeLinear to planes -> DequantizeLinear."""
    quantize = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == _UNIT), None)
    if quantize is None:
        return
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantize.output[0]:
            node.input[0] = _PLANES
    replace_nodes(graph, [n for n in graph.node if n is not quantize and n.output[0] not in _NORMALIZING])


# --- upsampling -------------------------------------------------------------------------------------------------------


def _upsample_bytes(graph: onnx.GraphProto, resize: onnx.NodeProto, prefix: str) -> None:
    """DequantizeLinear -> Resize (nearest, twice as large) -> QuantizeLinear, of one scale, as copies of bytes.

    In the order (batch, height, width, channels), in which ONNX Runtime keeps what it convolves in 8 bits anyway, a
    pixel is a run of bytes, and doubling columns or rows is a Concat of a map with itself.
    """
    makers, readers = makers_of(graph), readers_of(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in resize.attribute}
    dequantize = makers.get(resize.input[0])
    after = readers[resize.output[0]]
    scales = constants.get(resize.input[2]) if len(resize.input) > 2 else None
    if (
        dequantize is None
        or dequantize.op_type != "DequantizeLinear"
        or len(after) != 1
        or after[0].op_type != "QuantizeLinear"
        or scales is None
        or scales.tolist() != [1, 1, 2, 2]
        or settings.get("mode") != b"nearest"
        or any(
            not np.array_equal(constants[a], constants[b])
            for a, b in zip(dequantize.input[1:], after[0].input[1:], strict=True)
        )
    ):
        return
    (quantize,) = after

    def name(what: str) -> str:
        return prefix + what

    def node(kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, list(inputs), [output], name=name(kind + "_" + output), **attributes)

    for what, value in (("axis", [2]), ("doubled", [2]), ("keep", [1])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name(what)))
    nodes = [
        node("Transpose", [dequantize.input[0]], name("pixels"), perm=[0, 2, 3, 1]),
        node("Shape", [name("pixels")], name("batch"), start=0, end=1),
        node("Shape", [name("pixels")], name("height"), start=1, end=2),
        node("Shape", [name("pixels")], name("width"), start=2, end=3),
        node("Shape", [name("pixels")], name("channels"), start=3, end=4),
        node("Mul", [name("height"), name("doubled")], name("height2")),
        node("Mul", [name("width"), name("doubled")], name("width2")),
        node("Concat", [name("pixels")] * 2, name("side_by_side"), axis=3),
        node(
            "Concat", [name(n) for n in ("batch", "height", "keep", "width2", "channels")], name("wide_shape"), axis=0
        ),
        node("Reshape", [name("side_by_side"), name("wide_shape")], name("wide")),
        node("Concat", [name("wide")] * 2, name("rows"), axis=2),
        node("Concat", [name(n) for n in ("batch", "height2", "width2", "channels")], name("large_shape"), axis=0),
        node("Reshape", [name("rows"), name("large_shape")], name("large")),
        node("Transpose", [name("large")], quantize.output[0], perm=[0, 3, 1, 2]),
    ]
    rest = []
    for one in graph.node:
        if one is resize:
            rest += nodes
        elif one is not quantize and not (one is dequantize and len(readers[dequantize.output[0]]) == 1):
            rest.append(one)
    replace_nodes(graph, rest)


def _groups(nodes: Iterable[onnx.NodeProto], tensors: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Tensors joined by nodes that only move values."""
    of = {name: [name] for name in tensors}
    for node in nodes:
        if node.op_type in SAME_SCALE:
            names = [name for name in [*node.input, *node.output] if name in of]
            joined: list[str] = []
            for group in {id(of[name]): of[name] for name in names}.values():
                joined += group
            of.update(dict.fromkeys(joined, joined))
    yield from (tuple(group) for group in {id(group): group for group in of.values()}.values() if len(group) > 1)


def _node(
    kind: str, source: str, output: str, *, shape: tuple[onnx.GraphProto, list[int]] | None = None, **attributes: Any
) -> onnx.NodeProto:
    """A node of one input, named like its output; a Reshape's shape becomes a constant of the graph."""
    inputs = [source]
    if shape is not None:
        inputs.append(f"{PREFIX}{output}_shape")
        shape[0].initializer.append(numpy_helper.from_array(np.array(shape[1], np.int64), inputs[1]))
    return helper.make_node(kind, inputs, [PREFIX + output], name=PREFIX + output, **attributes)
