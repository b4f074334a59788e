"""The network itself as an ONNX graph: normalising, backbone, neck, head and decoding, traced by torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agssp_zoo.errors import ExportError
from agssp_zoo.models import Backbone, DetectorModule, ZooModule

from .coarse_first import coarse_first
from .halves import halves_apart

if TYPE_CHECKING:
    import onnx

EXAMPLE_SIDES = (9, 15)
"""Height and width of the traced example, in strides: different, so that none is mistaken for the other, and more than
a window of Swin's at the last stage, since the tracer takes a number that is 1 to be always 1."""
LEAST_STEP = 32
"""Pixels that the example's sides are counted in, where the stride is smaller."""
MAX_SIDE = 4096
"""Of the input, in strides; a bound that the tracer asks for, not one of the graph."""


def trace(module: ZooModule, *, raw: bool, opset: int) -> onnx.ModelProto:
    """Traces a module from uint8 images to its outputs.

    Args:
        module: in evaluation mode, float32, on the CPU.
        raw: for a detector, its raw outputs instead of the decoded ``boxes`` and ``scores``.
        opset: ONNX operator set.

    Returns:
        A model with the input ``images`` uint8 (batch, height, width, 3), for models that pad after normalising also
        ``sizes`` int64 (batch or 1, 2), and the outputs of :func:`output_names`.

    Raises:
        ExportError: the module cannot be traced.
    """
    from .operators import translations

    stride = module.config.preprocess.stride
    height, width = (side * max(stride, LEAST_STEP) for side in EXAMPLE_SIDES)
    examples = [torch.zeros((2, height, width, 3), dtype=torch.uint8)]
    sides: list[Any] = [torch.export.Dim(axis, min=1, max=MAX_SIDE) for axis in ("rows", "columns")]
    if stride > 1:
        sides = [stride * side for side in sides]
    batch = torch.export.Dim("batch", min=1, max=MAX_SIDE)
    axes: list[dict[int, Any]] = [{0: batch, 1: sides[0], 2: sides[1]}]
    if takes_sizes(module):
        examples.append(torch.tensor([[height, width]] * 2))
        axes.append({0: batch})
    names = output_names(module, raw=raw)
    with _quiet(), coarse_first(module), halves_apart(module):
        try:
            program = torch.onnx.export(
                FromImages(module, raw=raw).eval(),
                tuple(examples),
                input_names=["images", "sizes"][: len(examples)],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=tuple(axes),
                custom_translation_table=dict(translations()),
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its many passes do
            raise ExportError(f"{module.config.name} cannot be exported: {error}") from error
    if program is None:
        raise ExportError(f"{module.config.name} cannot be exported: torch.onnx answered nothing.")
    model = program.model_proto
    _tidy(model)
    if takes_sizes(module):
        _broadcast_sizes(model)
    return model


def takes_sizes(module: ZooModule) -> bool:
    """Whether a module's graph has the input ``sizes``."""
    return isinstance(module, DetectorModule) and module.config.preprocess.pad_after_normalize


def default_sizes() -> onnx.TensorProto:
    """What ``sizes`` is when nobody gives it: larger than any image, so that all of each is valid."""
    from onnx import TensorProto, helper

    return helper.make_tensor("sizes", TensorProto.INT64, [1, 2], [2**31 - 1] * 2)


def _broadcast_sizes(model: onnx.ModelProto) -> None:
    """Lets ``sizes`` have one row for all images, and entries beyond the canvas, as its default has."""
    from onnx import helper, numpy_helper

    graph = model.graph
    for node in graph.node:
        node.input[:] = ["sizes/valid" if name == "sizes" else name for name in node.input]
    nodes = [
        helper.make_node("Shape", ["images"], ["sizes/canvas"], start=1, end=3),
        helper.make_node("Min", ["sizes", "sizes/canvas"], ["sizes/bounded"]),
        helper.make_node("Shape", ["images"], ["sizes/batch"], start=0, end=1),
        helper.make_node("Concat", ["sizes/batch", "sizes/two"], ["sizes/shape"], axis=0),
        helper.make_node("Expand", ["sizes/bounded", "sizes/shape"], ["sizes/valid"]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "sizes/two"))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    for entry in graph.input:
        if entry.name == "sizes":
            entry.type.tensor_type.shape.dim[0].dim_param = "batch_or_1"


class FromImages(nn.Module):
    """A module behind its normalising, with a flat tuple of outputs.

    Args:
        module: a backbone or a detector.
        raw: see :func:`trace`.
    """

    def __init__(self, module: ZooModule, *, raw: bool) -> None:
        super().__init__()
        self.module = module
        self.raw = raw

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, 3), and the valid sizes (B, 2) -> the tensors that :func:`output_names` names."""
        x = self.module.normalize(images, sizes)
        if not isinstance(self.module, DetectorModule):
            return tuple(_flatten(self.module(x)))
        out = self.module(x, sizes)
        if self.raw:
            return tuple(_flatten(out))
        rows = self.module.row_boxes(out)
        return (*self.module.decode(out), *(() if rows is None else (rows,)))


def output_names(module: ZooModule, *, raw: bool) -> list[str]:
    """What the outputs of a module are called in a graph, in order."""
    if isinstance(module, Backbone):
        return [info.name for info in module.feature_info]
    if not isinstance(module, DetectorModule):
        raise ExportError(f"{module.config.name} is neither a backbone nor a detector.")
    if raw:
        return list(module.raw_names)
    return ["boxes", "scores", *(["row_boxes"] if has_row_boxes(module) else [])]


def has_row_boxes(module: DetectorModule) -> bool:
    """Whether a detector answers rows in no fixed order; see :meth:`DetectorModule.row_boxes`."""
    return type(module).row_boxes is not DetectorModule.row_boxes


def _tidy(model: onnx.ModelProto) -> None:
    """Names the input's axes, and drops what the tracer leaves for debugging: it doubles the size of small models."""
    shape = model.graph.input[0].type.tensor_type.shape
    for axis, name in zip(shape.dim, ("batch", "height", "width"), strict=False):
        axis.dim_param = name
    for output in model.graph.output:
        for position, axis in enumerate(output.type.tensor_type.shape.dim):
            if axis.dim_param:
                axis.dim_param = f"{output.name}_{position}" if position else "batch"
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which reports its progress and its doubts in several ways; errors still are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _flatten(nested: Tensor | Sequence[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    """The tensors of nested lists and tuples, in order."""
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested:
            yield from _flatten(part)
