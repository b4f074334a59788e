"""The network itself as an ONNX graph: normalising, backbone, neck, head and decoding, traced by torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from agssp_zoo.errors import ExportError
from agssp_zoo.models import Backbone, DetectorModule, ZooModule

if TYPE_CHECKING:
    import onnx

EXAMPLE_SIDES = (3, 5)
"""Height and width of the traced example, in strides; different ones, so that none is mistaken for the other."""
MAX_SIDE = 4096
"""Of the input, in strides; a bound that the tracer asks for, not one of the graph."""


def trace(module: ZooModule, *, raw: bool, opset: int) -> onnx.ModelProto:
    """Traces a module from uint8 images to its outputs.

    Args:
        module: in evaluation mode, float32, on the CPU.
        raw: for a detector, its raw outputs instead of the decoded ``boxes`` and ``scores``.
        opset: ONNX operator set.

    Returns:
        A model with the input ``images`` uint8 (batch, height, width, 3) and the outputs of :func:`output_names`.

    Raises:
        ExportError: the module cannot be traced.
    """
    stride = module.config.preprocess.stride
    height, width = (side * stride for side in EXAMPLE_SIDES)
    example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    sizes = [stride * torch.export.Dim(axis, min=1, max=MAX_SIDE) for axis in ("rows", "columns")]
    axes = {0: torch.export.Dim("batch", min=1, max=MAX_SIDE), 1: sizes[0], 2: sizes[1]}
    names = output_names(module, raw=raw)
    with _quiet():
        try:
            program = torch.onnx.export(
                FromImages(module, raw=raw).eval(),
                (example,),
                input_names=["images"],
                output_names=names,
                opset_version=opset,
                dynamic_shapes={"images": axes},
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
    return model


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

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, 3) -> the tensors that :func:`output_names` names."""
        out = self.module(self.module.normalize(images))
        if isinstance(self.module, DetectorModule) and not self.raw:
            boxes, scores = self.module.decode(out)
            return boxes, scores
        return tuple(_flatten(out))


def output_names(module: ZooModule, *, raw: bool) -> list[str]:
    """What the outputs of a module are called in a graph, in order."""
    if isinstance(module, Backbone):
        return [info.name for info in module.feature_info]
    if not isinstance(module, DetectorModule):
        raise ExportError(f"{module.config.name} is neither a backbone nor a detector.")
    if raw:
        return list(module.raw_names)
    return ["boxes", "scores"]


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
