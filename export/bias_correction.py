"""Rounding weights shifts what a convolution answers on average; its bias can take that shift back.

A weight w becomes w + e, so a channel's answers move by the sum of e * x, and on average by the sum of e * E[x] over
the kernel (M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: Data-Free Quantization Through Weight Equalization and
Bias Correction, ICCV 2019, section 4.2). E[x], the mean of each input channel, is measured on the calibration images;
that padding is zero is not looked at. The file computes nothing more than without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .graph import makers_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def correct_biases(
    prepared: onnx.ModelProto, quantized: onnx.ModelProto, means: Mapping[str, NDArray[Any]]
) -> onnx.ModelProto:
    """A copy of the float graph whose biases make up for the rounding of the weights.

    Args:
        prepared: the float graph, of :func:`agssp_zoo.export.int8_graph.prepare`.
        quantized: the same quantised, by whatever ranges: weights are rounded alike. Convolutions that it computes in
            float keep their bias.
        means: name of a convolution's input -> the mean of each of its channels, (C,).
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(prepared)
    constants = {tensor.name: tensor for tensor in corrected.graph.initializer}
    rounded = dict(_rounded_weights(quantized))
    for node in corrected.graph.node:
        if node.name not in rounded:
            continue
        error = rounded[node.name] - numpy_helper.to_array(constants[node.input[1]])
        shift = (error.sum((2, 3)) @ means[node.input[0]]).astype(np.float32)
        if len(node.input) > 2:
            bias = constants[node.input[2]]
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - shift, bias.name))
        else:
            name = node.name + "/correction"
            corrected.graph.initializer.append(numpy_helper.from_array(-shift, name))
            node.input.append(name)
    return corrected


def _rounded_weights(quantized: onnx.ModelProto) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The name of every convolution whose weights are whole numbers, and what these stand for."""
    makers = makers_of(quantized.graph)
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for node in quantized.graph.node:
        source = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if source is not None and source.op_type == "DequantizeLinear":
            weight, scale = (numpy_helper.to_array(constants[name]) for name in source.input[:2])
            yield node.name, weight.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
