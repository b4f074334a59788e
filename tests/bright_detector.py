"""A small hand-made ONNX detector: bright images hold one detection, dark ones none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agssp_zoo.config import ModelConfig, Postprocess
from agssp_zoo.folder import write_folder


def write_detector(path: Path, config: ModelConfig) -> None:
    """A detector by the ONNX contract: its score is the mean of the image, its box has the corners 8, 8 and 40, 24."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: Any, dtype: Any) -> Any:
        return numpy_helper.from_array(np.array(value, dtype), name)

    box = [[8, 8, 40, 24], [0, 0, 0, 0]]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["shares"]),
        helper.make_node("ReduceMean", ["shares", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["score"]),
        helper.make_node("Mul", ["score", "zero"], ["nothing"]),
        helper.make_node("Concat", ["score", "nothing"], ["scores"], axis=1),
        helper.make_node("Greater", ["score", "conf_threshold"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["counts"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["counts", "one"], ["count"]),
        helper.make_node("Cast", ["scores"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "none"], ["zeros"]),
        helper.make_node("Add", ["zeros", "label"], ["labels"]),
        helper.make_node("Unsqueeze", ["nothing", "one"], ["places"]),
        helper.make_node("Add", ["places", "box"], ["boxes"]),
    ]
    initializers = [
        constant("white", 255, np.float32),
        constant("axes", [1, 2, 3], np.int64),
        constant("column", [-1, 1], np.int64),
        constant("zero", 0, np.float32),
        constant("none", 0, np.int64),
        constant("one", [1], np.int64),
        constant("label", 1, np.int64),
        constant("box", [box], np.float32),
        constant("conf_threshold", [0.25], np.float32),
        constant("iou_threshold", [0.7], np.float32),
    ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3]),
        helper.make_tensor_value_info("conf_threshold", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("iou_threshold", TensorProto.FLOAT, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 2, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", 2]),
        helper.make_tensor_value_info("count", TensorProto.INT64, ["batch"]),
    ]
    graph = helper.make_graph(nodes, "bright", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"config": config.to_json(), "contract_version": "1", "outputs": "detections"})
    onnx.save(model, path)


def write_model(folder: Path) -> Path:
    """The detector as a model folder."""
    post = Postprocess(max_det=2)
    config = ModelConfig("yolov8_n.bright", "yolov8_n", "detector", class_names=("pit", "scratch"), postprocess=post)
    return write_folder(folder, config, {"model.onnx": lambda path: write_detector(path, config)})
