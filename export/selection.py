"""Choosing detections inside an ONNX graph: the best candidates, class-wise NMS, the best ``max_det``.

The graph is written in ONNX's own text form rather than traced from torch, because neither torchvision's nms nor
anything data dependent traces well over a dynamic batch, and because text can be read. It computes what
``agssp_zoo.models.postprocess.select_detections`` computes.

NMS is greedy: a box only ever loses to a better one. So the survivors among the best K candidates are survivors among
all of them, and once ``max_det`` boxes survive, no worse candidate can change the answer. The graph therefore tries
the best few candidates, and only while that is not enough many more. Boxes of different classes are kept apart by
NonMaxSuppression's class axis, not by shifting coordinates, which would cost float32 precision.

Where boxes are made of distributions, only those of the candidates are decoded; see :mod:`agssp_zoo.export.candidates`.

A score must lie above the threshold of its class before anything else happens: what lies below takes no candidate's
place and none of the ``max_det`` places from a class whose threshold is lower. Suppression works within a class, where
what lies below the threshold is worse than all that lies above it, so dropping it first changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .candidates import Source, decoded

if TYPE_CHECKING:
    import onnx

    from agssp_zoo.config import Postprocess

FIRST_CANDIDATES = 400
"""Candidates of the first attempt, or a third more than ``max_det``; suppression costs their number squared."""
GROWTH = 6
"""How many times as many every further attempt takes; those before the last cost a fifth of it at most."""

_MULTI_LABEL = """
  above = Greater (all_scores, conf_threshold)
  passing = Where (above, all_scores, none)
  candidates = Reshape (passing, rows)"""
_BEST_LABEL = """
  best_score = ReduceMax <keepdims = 0> (all_scores, last)
  best_class = ArgMax <axis = 2, keepdims = 0> (all_scores)
  class_threshold = Expand (conf_threshold, class_number)
  its_threshold = Gather (class_threshold, best_class)
  above = Greater (best_score, its_threshold)
  candidates = Where (above, best_score, none)"""
_MULTI_LABEL_OF = """
      anchor = Div (index, classes)
      label = Mod (index, classes)"""
_BEST_LABEL_OF = """
      anchor = Identity (index)
      label = GatherElements <axis = 1> (best_class, index)"""

_GRAPH = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
selection ({inputs},
           float[one_or_classes] conf_threshold, float[1] iou_threshold)
  => (float[batch, {max_det}, 4] boxes, float[batch, {max_det}] scores, int64[batch, {max_det}] labels,
      int64[batch] count)
<
  int64[1] max_det = {{{max_det}}}, int64[1] first = {{{first}}}, int64[1] growth = {{{growth}}},
  int64[1] limit = {{{max_candidates}}}, int64 rounds = {{{rounds}}}, bool yes = {{1}},
  int64[2] rows = {{0, -1}}, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[1] minus_one = {{-1}},
  int64[2] image_and_place = {{0, 2}}, int64[3] across = {{1, {classes}, 1}}, int64[1] class_number = {{{classes}}},
  int64[{classes}] class_range = {{{range}}},
  int64[1] four = {{4}}, float[1] none = {{-1}}, float[1] zero = {{0}},
  int64[{inner}] inner_axes = {{{inner_axes}}}{constants}
>
{{{before}{flatten}
  classes = Shape <start = 2, end = 3> (all_scores)
  batch_size = Shape <start = 0, end = 1> (all_scores)
  passing_number = Cast <to = 1> (above)
  passing_sum = ReduceSum <keepdims = 0> (passing_number, inner_axes)
  wanted = Cast <to = 7> (passing_sum)
  total = Shape <start = 1, end = 2> (candidates)
  most_wanted = ReduceMax <keepdims = 1> (wanted)
  some_wanted = Max (most_wanted, one)
  most = Min (total, limit, some_wanted)
  by_class = Reshape (class_range, across)
  slots_shape = Concat <axis = 0> (batch_size, max_det)
  box_shape = Concat <axis = 0> (slots_shape, four)
  no_slots = ConstantOfShape <value = float[1] {{-1}}> (slots_shape)
  no_boxes = ConstantOfShape <value = float[1] {{0}}> (box_shape)
  no_labels = ConstantOfShape <value = int64[1] {{0}}> (slots_shape)
  no_count = ConstantOfShape <value = int64[1] {{0}}> (batch_size)
  tried, boxes, scores, labels, count = Loop (rounds, yes, first, no_boxes, no_slots, no_labels, no_count) <
    body = attempt (int64 round, bool go_on, int64[1] number, float[batch, {max_det}, 4] boxes_before,
                    float[batch, {max_det}] scores_before, int64[batch, {max_det}] labels_before,
                    int64[batch] count_before)
      => (bool unfinished, int64[1] next_number, float[batch, {max_det}, 4] boxes_after,
          float[batch, {max_det}] scores_after, int64[batch, {max_det}] labels_after, int64[batch] count_after)
    {{
      depth = Min (number, most)
      value, index = TopK <axis = 1> (candidates, depth){label_of}{of_candidates}
      label_row = Unsqueeze (label, one)
      of_class = Equal (label_row, by_class)
      value_row = Unsqueeze (value, one)
      class_value = Where (of_class, value_row, none)
      survivors = NonMaxSuppression (box, class_value, max_det, iou_threshold, zero)
      place = Gather <axis = 1> (survivors, image_and_place)
      place_value = GatherND (value, place)
      value_shape = Shape (value)
      nowhere = ConstantOfShape <value = float[1] {{-1}}> (value_shape)
      kept = ScatterND (nowhere, place, place_value)
      slots = Concat <axis = 1> (kept, no_slots)
      best, slot = TopK <axis = 1> (slots, max_det)
      filled = GreaterOrEqual (best, zero)
      filled_number = Cast <to = 7> (filled)
      count_after = ReduceSum <keepdims = 0> (filled_number, one)
      scores_after = Where (filled, best, zero)
      real_slot = Mul (slot, filled_number)
      slot_label = GatherElements <axis = 1> (label, real_slot)
      labels_after = Where (filled, slot_label, minus_one)
      slot_column = Unsqueeze (real_slot, last)
      slot_box = GatherND <batch_dims = 1> (box, slot_column)
      filled_column = Unsqueeze (filled, last)
      boxes_after = Where (filled_column, slot_box, zero)
      full = Equal (count_after, max_det)
      seen_all = GreaterOrEqual (depth, wanted)
      enough = Or (full, seen_all)
      lacking = Not (enough)
      lacking_number = Cast <to = 7> (lacking)
      images_lacking = ReduceSum <keepdims = 0> (lacking_number)
      some_lack = Cast <to = 9> (images_lacking)
      can_grow = Less (depth, most)
      can_grow_scalar = Squeeze (can_grow)
      unfinished = And (some_lack, can_grow_scalar)
      next_number = Mul (number, growth)
    }}
  >
}}
"""


def selection_model(
    classes: int,
    settings: Postprocess,
    *,
    source: Source | None = None,
    opset: int,
    ir_version: int,
) -> onnx.ModelProto:
    """The selection as an ONNX model of its own.

    Args:
        classes: number of classes, C.
        settings: ``max_det``, ``max_candidates`` and ``multi_label`` are fixed in the graph; ``conf`` and ``iou``
            are its inputs.
        source: where scores and boxes come from; ``None``: they are there, a box at every anchor.
        opset: ONNX operator set, 18 or newer.
        ir_version: ONNX file format version.

    Returns:
        A model with the inputs of the source, else ``all_boxes`` float32 (batch, anchors, 4), xyxy, and ``all_scores``
        float32 (batch, anchors, C), and with ``conf_threshold`` float32 (1,) or (C,), ``iou_threshold`` float32
        (1,), and the outputs ``boxes`` float32 (batch, max_det, 4), ``scores`` float32 (batch, max_det), best first,
        ``labels`` int64 (batch, max_det) and ``count`` int64 (batch,). From ``count`` on, boxes and scores are 0,
        labels -1.
    """
    import onnx.parser

    if source is None:
        source = decoded(classes)
    first = min(max(FIRST_CANDIDATES, settings.max_det + settings.max_det // 3), settings.max_candidates)
    rounds, reach = 1, first
    while reach < settings.max_candidates:
        rounds, reach = rounds + 1, reach * GROWTH
    text = _GRAPH.format(
        ir_version=ir_version,
        opset=opset,
        classes=classes,
        range=", ".join(map(str, range(classes))),
        max_det=settings.max_det,
        max_candidates=settings.max_candidates,
        first=first,
        growth=GROWTH,
        rounds=rounds,
        inputs=source.inputs,
        constants=source.constants,
        before=source.before,
        of_candidates=source.of_candidates,
        inner=2 if settings.multi_label else 1,
        inner_axes="1, 2" if settings.multi_label else "1",
        flatten=_MULTI_LABEL if settings.multi_label else _BEST_LABEL,
        label_of=_MULTI_LABEL_OF if settings.multi_label else _BEST_LABEL_OF,
    )
    return onnx.parser.parse_model(text)
