"""float16 for GPUs: weights and arithmetic of the network in half precision, everything around it as it was.

What lies before the first layer (the image, its normalising) and behind the last convolutions (decoding, suppression)
stays in float32, for a coordinate of 4096 pixels has a step of 4 in float16. Inputs, outputs and metadata are those of
the float32 file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agssp_zoo.engines.base import PRECISION_FILES
from agssp_zoo.errors import ExportError

from .exporter import building, enter, need_packages, target_file
from .sources import FloatFile, float_file

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from agssp_zoo.folder import ModelFolder

    Array = NDArray[Any]

SCORE_TOLERANCE = 0.01
"""Largest difference of a score, before anything is chosen."""
BOX_TOLERANCE = 2.0
"""Largest difference of a box's side in pixels, of boxes whose score is above :data:`SURE`."""
MAP_TOLERANCE = 0.05
"""Largest difference of a backbone's map relative to its largest value."""
MEAN_SHARE = 0.25
"""Of the largest difference allowed, how much the mean may reach."""
SURE = 0.01


def export_half(model: ModelFolder | str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes a model in float16 and compares it with its float32 file.

    Args:
        model: a YOLOv8 detector or a backbone: a model folder, a model's name, or an ONNX file of ``agssp-zoo export``.
        out: the file; ``None`` takes ``model.fp16.onnx`` in the model's own folder; its card and checksums follow.

    Raises:
        ExportError: no such model, or the file answers otherwise than the tolerances allow; then nothing is written.
        InvalidArgumentError: no place for the file, or what it is made of lies there.
        MissingDependencyError: the ``export`` extra is not installed.
        ModelNotFoundError, HubError, IntegrityError, CheckpointError, EngineError: the model cannot be loaded.
    """
    need_packages()
    source = float_file(model)
    if source.config.preprocess.pad_after_normalize:
        raise ExportError(
            f"{source.config.name} is a {source.config.architecture}, which chooses boxes inside its network; only "
            "YOLOv8 detectors and backbones are written in float16."
        )
    target = target_file(out, source.folder, PRECISION_FILES["float16"], source.path)
    import onnx

    with source.opened() as path, building(target) as temporary:
        model_float = onnx.load(path)
        onnx.save(to_half(model_float), temporary)
        onnx.checker.check_model(os.fspath(temporary))
        _compare(source, model_float, onnx.load(temporary))
    enter(target, source.config.task)
    return target


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph whose network is in float16.

    Raises:
        ExportError: a weight is too large for float16.
    """
    import onnx

    from .graph import drop_unused, float_tensors, network_nodes, reads, sort_nodes, unify_opset

    half = onnx.ModelProto()
    half.CopyFrom(model)
    unify_opset(half)
    graph = half.graph
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
    names = network_nodes(half)
    network = [node for node in graph.node if node.name in names]
    inside = {name for node in network for name in node.output}
    wanted = {output.name for output in graph.output} | {
        name for node in graph.node if node.name not in names for name in reads(node)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    floats = float_tensors(half) | {entry.name for entry in graph.input if _is_float(entry)}
    casts: list[onnx.NodeProto] = []
    made: set[str] = set()

    def half_of(name: str) -> str:
        """The name of a tensor in float16, which is made when it is first asked for."""
        if name in inside:
            return name + _HALF if name in wanted else name
        if name not in weights and name not in floats:
            return name
        if name + _HALF not in made:
            made.add(name + _HALF)
            if name in weights:
                graph.initializer.append(_in_half(weights[name], name + _HALF))
            else:
                casts.append(_cast(name, name + _HALF, onnx.TensorProto.FLOAT16))
        return name + _HALF

    for node in network:
        kept = _FLOAT_INPUTS.get(node.op_type, ())
        node.input[:] = [name if index in kept else half_of(name) for index, name in enumerate(node.input)]
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.FLOAT:
                attribute.t.CopyFrom(_in_half(attribute.t, attribute.t.name))
            elif node.op_type == "Cast" and attribute.name == "to":
                attribute.i = onnx.TensorProto.FLOAT16
        for index, name in enumerate(node.output):
            if name in wanted:
                node.output[index] = name + _HALF
                casts.append(_cast(name + _HALF, name, onnx.TensorProto.FLOAT))
    graph.node.extend(casts)
    sort_nodes(graph)
    drop_unused(graph)
    entries = {entry.key: entry.value for entry in model.metadata_props} | {"precision": "float16"}
    onnx.helper.set_model_props(half, entries)
    return half


_HALF = "/float16"
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX wants in float32 whatever the others are in."""


def _in_half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise ExportError(f"{tensor.name} has values up to {np.abs(values).max():.3g}; float16 ends at 65504.")
    return numpy_helper.from_array(halves, name)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind)


def _is_float(entry: onnx.ValueInfoProto) -> bool:
    return bool(entry.type.tensor_type.elem_type == 1)


def _compare(source: FloatFile, model: onnx.ModelProto, half: onnx.ModelProto) -> None:
    """The network's outputs in both precisions, on noise and drawn surfaces.

    Raises:
        ExportError: they differ by more than is allowed.
    """
    import onnxruntime

    from agssp_zoo.engines.onnx import session_options

    from .candidates import add_outputs
    from .verification import SIZES, example_inputs

    backbone = source.config.task == "backbone"
    names = [output.name for output in model.graph.output] if backbone else ["network/boxes", "network/scores"]
    sessions = []
    for graph in (model, half):
        if not backbone:
            add_outputs(graph, names)
        sessions.append(
            onnxruntime.InferenceSession(
                graph.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
            )
        )
    for size in SIZES:
        for kind, images in example_inputs(size):
            one, other = (session.run(names, {"images": images}) for session in sessions)
            pairs = dict(zip(names, zip(one, other, strict=True), strict=True))
            if backbone:
                rows = [(n, a, b, MAP_TOLERANCE * float(np.abs(a).max())) for n, (a, b) in pairs.items()]
            else:
                (boxes, boxes_half), (scores, scores_half) = pairs["network/boxes"], pairs["network/scores"]
                sure = scores.max(-1) > SURE
                rows = [("scores", scores, scores_half, SCORE_TOLERANCE)]
                if boxes.ndim == 3 and sure.any():
                    rows.append(("boxes", boxes[sure], boxes_half[sure], BOX_TOLERANCE))
            for name, expected, found, allowed in rows:
                difference = np.abs(expected - found)
                worst, mean = float(difference.max()), float(difference.mean())
                if not (worst <= allowed and mean <= MEAN_SHARE * allowed):  # so that NaN fails too
                    raise ExportError(
                        f"{source.config.name} in float16: {name} on {kind} of {'x'.join(map(str, size))} differ from "
                        f"float32 by up to {worst:.3g}, {mean:.3g} on average; {allowed:.3g} and "
                        f"{MEAN_SHARE * allowed:.3g} are allowed. Nothing was written."
                    )
