"""What candidates are chosen from, in ONNX's text form: scores and boxes that are there, or a head's raw outputs.

Where sides are distributions (:class:`agssp_zoo.models.heads.dfl.DFLHead`), only the candidates' are decoded, a
twentieth of all. It is :meth:`DFLHead.decode` written in ONNX, operator by operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

NETWORK = "network/"
"""Prefix of the network's names in a detector's graph."""


@dataclass(frozen=True)
class Source:
    """Pieces of the graph of :mod:`agssp_zoo.export.selection`.

    Attributes:
        inputs: of that graph.
        constants: that the lines below need.
        before: lines that make ``all_scores`` (batch, anchors, classes), where it is no input.
        of_candidates: lines that make ``box`` (batch, depth, 4) of ``anchor`` and ``label``, int64 (batch, depth).
    """

    inputs: str
    constants: str
    before: str
    of_candidates: str


def decoded(classes: int, *, box_of_class: bool = False) -> Source:
    """Scores and boxes of all anchors; or of every anchor a box for each class."""
    scores = "float[batch, anchors, classes] all_scores"
    if not box_of_class:
        lines = """
      box_column = Unsqueeze (anchor, last)
      box = GatherND <batch_dims = 1> (all_boxes, box_column)"""
        return Source(f"float[batch, anchors, 4] all_boxes, {scores}", "", "", lines)
    before = """
  boxes_flat = Reshape (all_boxes, box_rows)"""
    lines = """
      first_box = Mul (anchor, classes)
      box_index = Add (first_box, label)
      box_column = Unsqueeze (box_index, last)
      box = GatherND <batch_dims = 1> (boxes_flat, box_column)"""
    inputs = f"float[batch, anchors, {classes}, 4] all_boxes, {scores}"
    return Source(inputs, ", int64[3] box_rows = {0, -1, 4}", before, lines)


def distributions(classes: int, bins: int, strides: Sequence[int]) -> Source:
    """The raw outputs of a head whose sides are distributions, named as in the raw export.

    Args:
        classes: of the head.
        bins: of each side's distribution.
        strides: of the levels, at least two.
    """
    inputs = ", ".join(
        f"float[batch, {channels}, rows_{stride}, columns_{stride}] {kind}_logits_{stride}"
        for stride in strides
        for kind, channels in (("class", classes), ("box", 4 * bins))
    )
    before = ""
    for stride in strides:
        before += f"""
  class_row_{stride} = Reshape (class_logits_{stride}, class_row_shape)
  box_row_{stride} = Reshape (box_logits_{stride}, box_row_shape)
  width_{stride} = Shape <start = 3, end = 4> (box_logits_{stride})
  cells_{stride} = Shape <start = 2, end = 3> (box_row_{stride})"""
    ends = [f"cells_{strides[0]}"]
    for stride in strides[1:-1]:
        before += f"""
  end_{stride} = Add ({ends[-1]}, cells_{stride})"""
        ends.append(f"end_{stride}")
    before += f"""
  class_logits = Concat <axis = 2> ({_list("class_row", strides)})
  probabilities = Sigmoid (class_logits)
  all_scores = Transpose <perm = [0, 2, 1]> (probabilities)
  box_logits = Concat <axis = 2> ({_list("box_row", strides)})
  widths = Concat <axis = 0> ({_list("width", strides)})
  level_ends = Concat <axis = 0> ({", ".join(ends)})
  level_starts = Concat <axis = 0> (no_cells, level_ends)"""
    lines = """
      anchor_row = Unsqueeze (anchor, one)
      logit_place = Expand (anchor_row, logit_rows)
      logits = GatherElements <axis = 2> (box_logits, logit_place)
      anchor_column = Unsqueeze (anchor, last)"""
    constants = (
        f", int64[3] class_row_shape = {{0, {classes}, -1}}, int64[3] box_row_shape = {{0, {4 * bins}, -1}},\n"
        f"  int64[3] logit_rows = {{1, {4 * bins}, 1}}, int64[1] no_cells = {{0}}, {_decoding_constants(bins, strides)}"
    )
    return Source(inputs, constants, before, lines + _DECODING)


_DECODING = """
      distributions = Reshape (logits, bin_rows)
      peak = ReduceMax <keepdims = 1> (distributions, bin_axis)
      centred = Sub (distributions, peak)
      weight = Exp (centred)
      weighted = Mul (weight, bin_numbers)
      weighted_sum = ReduceSum <keepdims = 0> (weighted, bin_axis)
      weight_sum = ReduceSum <keepdims = 0> (weight, bin_axis)
      distance = Div (weighted_sum, weight_sum)
      side = Transpose <perm = [0, 2, 1]> (distance)
      reach = Mul (side, directions)
      beyond = GreaterOrEqual (anchor_column, level_ends)
      beyond_number = Cast <to = 7> (beyond)
      level = ReduceSum <keepdims = 1> (beyond_number, last_axis)
      level_start = Gather (level_starts, level)
      width = Gather (widths, level)
      stride = Gather (strides, level)
      cell = Sub (anchor_column, level_start)
      cell_x = Mod (cell, width)
      cell_y = Div (cell, width)
      corner_cells = Concat <axis = -1> (cell_x, cell_y, cell_x, cell_y)
      corner = Cast <to = 1> (corner_cells)
      centre = Add (corner, half)
      corners = Add (centre, reach)
      box = Mul (corners, stride)"""
"""``box`` of ``logits`` (batch, 4 * bins, depth) and ``anchor_column``, int64 (batch or 1, depth, 1)."""
_MADE = ("box_logits", "level_starts", "level_ends", "widths")
"""What decoding takes from the graph around it."""


def _decoding_constants(bins: int, strides: Sequence[int]) -> str:
    return (
        f"float[{len(strides)}] strides = {{{', '.join(map(str, strides))}}}, float[1] half = {{0.5}},\n"
        f"  int64[4] bin_rows = {{0, 4, {bins}, -1}}, int64[1] bin_axis = {{2}}, int64[1] last_axis = {{-1}},\n"
        f"  float[1, 1, {bins}, 1] bin_numbers = {{{', '.join(map(str, range(bins)))}}}, "
        "float[4] directions = {-1, -1, 1, 1}"
    )


def _list(name: str, strides: Sequence[int]) -> str:
    return ", ".join(f"{name}_{stride}" for stride in strides)


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Lets a detector's graph answer tensors of its inside, for comparisons.

    Args:
        model: is changed.
        names: of the tensors, among them ``network/boxes`` (batch, anchors, 4) and ``network/scores`` (batch, anchors,
            classes), which are made where the graph decodes its candidates only.
    """
    import onnx

    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    for name in names:
        if name == f"{NETWORK}scores" and name not in made:
            graph.node.append(onnx.helper.make_node("Identity", ["all_scores"], [name]))
        elif name == f"{NETWORK}boxes" and name not in made:
            _decode_all(graph, name)
        graph.output.append(onnx.helper.make_empty_tensor_value_info(name))


def _decode_all(graph: onnx.GraphProto, name: str) -> None:
    """Decodes the boxes of all anchors, as the candidates' are."""
    import onnx.parser
    from onnx import compose, numpy_helper

    values = {tensor.name: tensor for tensor in graph.initializer}
    bins = int(numpy_helper.to_array(values["bin_rows"])[2])
    strides = numpy_helper.to_array(values["strides"]).astype(int).tolist()
    text = f"""
all (float[batch, {4 * bins}, anchors] box_logits, int64[levels] level_starts, int64[ends] level_ends,
     int64[levels] widths) => (float[batch, anchors, 4] box)
< int64 nothing = {{0}}, int64 step = {{1}}, int64[2] outer = {{0, 2}}, {_decoding_constants(bins, strides)} >
{{
      logits = Identity (box_logits)
      number = Shape <start = 2, end = 3> (box_logits)
      end = Squeeze (number)
      anchor = Range (nothing, end, step)
      anchor_column = Unsqueeze (anchor, outer){_DECODING}
}}"""
    every = compose.add_prefix_graph(onnx.parser.parse_graph(text), "all/")
    ends = {f"all/{one}": one for one in _MADE} | {"all/box": name}
    for node in every.node:
        node.input[:] = [ends.get(one, one) for one in node.input]
        node.output[:] = [ends.get(one, one) for one in node.output]
    graph.node.extend(every.node)
    graph.initializer.extend(every.initializer)
