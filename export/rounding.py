"""Whole numbers for weights, chosen so that what a convolution answers on a user's images changes least.

Rounding every weight to the nearest whole number is not the best for the answers: errors of weights whose inputs go
together add up. So weights are rounded one after the other, and what each was moved by is made up for by those that
still are to come, as far as their inputs go together (E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: GPTQ, ICLR
2023, algorithm 1, with the inputs that vary most first). The shift that is left on average goes into the bias
(M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019, section 4.2), so only how inputs vary around their means has to be made up for. The file computes
nothing more than without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .graph import makers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .calibration import Progress

Array = NDArray[Any]

BLOCK = 576
"""Weights of a filter that make up for one another: 64 channels of a kernel of 3x3."""
PLACES = 512
"""Of an image that are looked at, drawn anew for each layer and image."""
DAMPING = 0.01
"""Part of the mean variance that every input's is larger by, so that few images do not fool the fit."""
SEED = 0


@dataclass(frozen=True)
class Rounding:
    """What the convolutions of a graph get in place of their weights and biases.

    Attributes:
        weights: name of a convolution -> its weights as whole numbers (O, C, K, K), int8.
        shifts: name of a convolution -> what its answers would move by on average, (O,).
    """

    weights: dict[str, NDArray[np.int8]]
    shifts: dict[str, NDArray[np.float32]]


class InputMoments:
    """How the inputs of a filter's weights vary together, over places of images.

    Attributes:
        count: places so far.
    """

    def __init__(self, node: onnx.NodeProto, weight: Array) -> None:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._kernel = weight.shape[2:]
        self._strides = settings.get("strides", [1, 1])
        self._pads = settings.get("pads", [0] * 4)
        size = int(np.prod(weight.shape[1:]))
        self.count = 0
        self._sums = np.zeros(size)
        self._products = [np.zeros((min(BLOCK, size - start),) * 2, np.float64) for start in range(0, size, BLOCK)]

    def add(self, values: Array, generator: np.random.Generator) -> None:
        """Looks at some places of a convolution's input (1, C, H, W)."""
        top, left, bottom, right = self._pads
        padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
        windows = sliding_window_view(padded, self._kernel, axis=(1, 2))[:, :: self._strides[0], :: self._strides[1]]
        rows, columns = windows.shape[1:3]
        places = generator.permutation(rows * columns)[:PLACES]
        seen = windows[:, places // columns, places % columns].swapaxes(0, 1).reshape(len(places), -1)
        self.count += len(seen)
        self._sums += seen.sum(0, dtype=np.float64)
        for number, product in enumerate(self._products):
            part = seen[:, number * BLOCK : (number + 1) * BLOCK]
            product += part.T @ part

    @property
    def means(self) -> Array:
        """(N,) of every weight's input, in the order of a filter's weights."""
        return self._sums / max(self.count, 1)

    def covariances(self) -> Iterator[Array]:
        """Those of every block of weights, (n, n)."""
        for number, product in enumerate(self._products):
            mean = self.means[number * BLOCK : (number + 1) * BLOCK]
            yield product / max(self.count, 1) - np.outer(mean, mean)


class Inputs:
    """The moments of all convolutions that are quantised, gathered while a float graph runs.

    Args:
        prepared: the float graph, of :func:`agssp_zoo.export.int8_graph.prepare`.
        nodes: names of what is quantised; convolutions in groups or with dilation are left to the nearest numbers.
    """

    def __init__(self, prepared: onnx.ModelProto, nodes: Iterable[str]) -> None:
        chosen = set(nodes)
        constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
        self.moments: dict[str, InputMoments] = {}
        self._sources: dict[str, str] = {}
        self._generator = np.random.default_rng(SEED)
        for node in prepared.graph.node:
            if node.op_type == "Conv" and node.name in chosen and node.input[1] in constants and _is_plain(node):
                weight = numpy_helper.to_array(constants[node.input[1]])
                self.moments[node.name] = InputMoments(node, weight)
                self._sources[node.name] = node.input[0]

    def add(self, values: Mapping[str, Array]) -> None:
        """Looks at the activations of one image, by name."""
        for name, moments in self.moments.items():
            moments.add(values[self._sources[name]], self._generator)


def fit_rounding(prepared: onnx.ModelProto, quantized: onnx.ModelProto, inputs: Inputs, progress: Progress) -> Rounding:
    """Chooses the whole numbers.

    Args:
        prepared: the float graph.
        quantized: the same quantised, by whatever ranges of activations: it tells the scale of every filter, and how
            many bits weights have.
        inputs: what the convolutions have seen.
        progress: shows how far the work is.
    """
    constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
    nodes = {node.name: node for node in prepared.graph.node}
    weights, shifts = {}, {}
    layers = list(_quantized_weights(quantized))
    for name, nearest, scale in progress(layers, len(layers), "rounding weights (layers)"):
        moments = inputs.moments.get(name)
        if moments is None or not moments.count:
            continue
        exact = numpy_helper.to_array(constants[nodes[name].input[1]])
        wanted = exact.reshape(len(exact), -1).astype(np.float64) / scale[:, None]
        limit = int(np.abs(nearest.astype(np.int16)).max())
        starts = range(0, wanted.shape[1], BLOCK)
        parts = zip(starts, moments.covariances(), strict=True)
        whole = np.concatenate(
            [round_together(wanted[:, start : start + BLOCK], covariance, limit) for start, covariance in parts], axis=1
        )
        weights[name] = whole.reshape(exact.shape).astype(np.int8)
        shifts[name] = (((whole - wanted) @ moments.means) * scale).astype(np.float32)
    return Rounding(weights, shifts)


def round_together(wanted: Array, covariance: Array, limit: int) -> Array:
    """Rounds the weights of filters so that answers change least.

    Args:
        wanted: (O, N), in units of one step.
        covariance: (N, N), of their inputs.
        limit: the largest whole number.

    Returns:
        Whole numbers (O, N), float64, from ``-limit`` to ``limit``; the nearest ones where inputs hardly vary, so
        that the covariance is no more than the errors of its own computation.
    """
    number = wanted.shape[1]
    variance = np.diag(covariance)
    order = np.argsort(-variance, kind="stable")
    damped = covariance + np.diag(np.where(variance > 0, DAMPING * variance.mean(), 1.0))
    # Row i of the upper factor says how the weights behind i make up for what i was moved by.
    try:
        factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    except np.linalg.LinAlgError:
        return np.clip(np.rint(wanted), -limit, limit)
    left = wanted[:, order].copy()
    whole = np.empty_like(left)
    for index in range(number):
        whole[:, index] = np.clip(np.rint(left[:, index]), -limit, limit)
        moved = (left[:, index] - whole[:, index]) / factor[index, index]
        left[:, index + 1 :] -= np.outer(moved, factor[index, index + 1 :])
    result = np.empty_like(whole)
    result[:, order] = whole
    return result


def shift_biases(prepared: onnx.ModelProto, rounding: Rounding) -> onnx.ModelProto:
    """A copy of the float graph whose biases make up for the shifts."""
    shifted = onnx.ModelProto()
    shifted.CopyFrom(prepared)
    constants = {tensor.name: tensor for tensor in shifted.graph.initializer}
    for node in shifted.graph.node:
        shift = rounding.shifts.get(node.name)
        if shift is None:
            continue
        if len(node.input) > 2:
            bias = constants[node.input[2]]
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - shift, bias.name))
        else:
            name = node.name + "/correction"
            shifted.graph.initializer.append(numpy_helper.from_array(-shift, name))
            node.input.append(name)
    return shifted


def set_weights(quantized: onnx.ModelProto, rounding: Rounding) -> None:
    """Gives a quantised graph the whole numbers that were chosen."""
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for name, tensor, _ in _weight_tensors(quantized):
        if name in rounding.weights:
            constants[tensor].CopyFrom(numpy_helper.from_array(rounding.weights[name], tensor))


def _quantized_weights(quantized: onnx.ModelProto) -> Iterator[tuple[str, NDArray[np.int8], Array]]:
    """The name of every convolution whose weights are whole numbers, these, and the step of every filter, (O,)."""
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for name, weight, scale in _weight_tensors(quantized):
        steps = numpy_helper.to_array(constants[scale]).astype(np.float64).reshape(-1)
        yield name, numpy_helper.to_array(constants[weight]), steps


def _weight_tensors(quantized: onnx.ModelProto) -> Iterator[tuple[str, str, str]]:
    """The name of every convolution whose weights are whole numbers, and those of its weights and their scales."""
    makers = makers_of(quantized.graph)
    for node in quantized.graph.node:
        source = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if source is not None and source.op_type == "DequantizeLinear":
            yield node.name, source.input[0], source.input[1]


def _is_plain(node: onnx.NodeProto) -> bool:
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        settings.get("group", 1) == 1
        and set(settings.get("dilations", [1])) == {1}
        and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
