"""What running costs: the network against another package's export, strips, and choosing the detections."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from benchmarks.common import CLASSES, Figure, model_folder, other_export, time_in_turns


def network(rounds: int) -> list[Figure]:
    """yolov8_s at 640x640, uint8 in and detections out, against another export: float in, undecided boxes out."""
    import numpy as np

    ours = open_session(str(model_folder("yolov8_s") / "model.onnx"))
    other = open_session(str(other_export()))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 640, 640, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255
    taken = time_in_turns(
        {
            "ours": lambda: ours.run(None, {"images": pixels}),
            "other": lambda: other.run(None, {"images": planes}),
        },
        max(rounds, 15),
    )
    note = (
        f"{taken['ours'] * 1e3:.0f} ms with normalising and NMS, against {taken['other'] * 1e3:.0f} ms without; "
        f"both {CLASSES} classes"
    )
    return [
        Figure("speed of yolov8_s against ultralytics' export", taken["other"] / taken["ours"], "x", 0.95, True, note)
    ]


def strip(rounds: int) -> list[Figure]:
    """``predict()`` on a 1600x256 image against a run at 640x640."""
    import numpy as np

    import agssp_zoo

    folder = model_folder("yolov8_s")
    detector = agssp_zoo.load_detector(folder, engine="onnx")
    session = open_session(str(folder / "model.onnx"))
    image = np.random.default_rng(0).integers(0, 256, (256, 1600, 3), dtype=np.uint8)
    square = np.zeros((1, 640, 640, 3), np.uint8)
    taken = time_in_turns(
        {"strip": lambda: detector.predict(image), "square": lambda: session.run(None, {"images": square})},
        max(rounds, 9),
    )
    note = f"{taken['strip'] * 1e3:.0f} ms against {taken['square'] * 1e3:.0f} ms"
    return [Figure("`predict()` on 1600x256 against 640x640", taken["strip"] / taken["square"], "x", 0.35, note=note)]


def postprocess(rounds: int) -> list[Figure]:
    """Decoding and choosing 300 of 8400 x 6 at the threshold 0.001, from the head's outputs on."""
    import numpy as np
    import onnx

    classes = 6
    session = open_session(after_the_head(onnx.load(_six_classes(classes))).SerializeToString())
    generator = np.random.default_rng(0)
    figures = []
    for centre, iou in ((-9.4, 0.7), (-8, 0.7), (-2, 0.7), (-8, 0.2)):
        feed, above = drawn_logits(session, classes, centre, 0.001, iou, generator)
        taken = time_in_turns({"run": functools.partial(session.run, None, feed)}, max(rounds, 25))["run"]
        count = int(session.run(["count"], feed)[0][0])
        note = f"{count} chosen of 8400 x {classes} at 0.001, IoU {iou}"
        figures.append(Figure(f"decoding and NMS, {above} candidates", taken * 1e3, "ms", 5, note=note))
    return figures


def drawn_logits(
    session: Any, classes: int, centre: float, conf: float, iou: float, generator: Any
) -> tuple[dict[str, Any], int]:
    """What the head might have answered at 640x640: normally distributed logits.

    Args:
        session: of :func:`after_the_head`.
        classes: the detector's.
        centre: mean of the classes' logits.
        conf: score threshold.
        iou: of the suppression.
        generator: numpy's.

    Returns:
        The session's inputs, and how many scores are above the threshold.
    """
    import numpy as np

    there = [entry.name for entry in session.get_inputs()]
    heads = [name for name in there if name not in ("images", "conf_threshold", "iou_threshold")]
    feed: dict[str, Any] = {
        "conf_threshold": np.array([conf], np.float32),
        "iou_threshold": np.array([iou], np.float32),
    }
    if "images" in there:
        feed["images"] = np.zeros((1, 640, 640, 3), np.uint8)
    above = 0
    for index, name in enumerate(heads):
        side = 80 >> index // 2
        channels, mean = ((classes, centre), (64, 0.0))[index % 2]
        feed[name] = generator.normal(mean, 1, (1, channels, side, side)).astype(np.float32)
        if channels == classes:
            above += int((feed[name] > np.log(conf / (1 - conf))).sum())
    return feed, above


def open_session(model: str | bytes) -> Any:
    """One thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _six_classes(classes: int) -> Path:
    """A small detector of so many classes; what follows the head is the same for all."""
    import torch

    from agssp_zoo import models
    from agssp_zoo.export import export_onnx
    from benchmarks.common import WORK

    path = WORK / f"yolov8_n_{classes}.onnx"
    if not path.is_file():
        torch.manual_seed(0)
        config = models.default_config("yolov8_n", class_names=[f"class_{i}" for i in range(classes)])
        export_onnx(models.build(config), path, verify=False)
    return path


def after_the_head(model: Any) -> Any:
    """The part of a detector's graph behind its last convolutions, whose outputs become inputs."""
    import onnx

    # Activated, or in the neck enlarged and added.
    inner = {name for node in model.graph.node if node.op_type in ("Sigmoid", "Resize", "Add") for name in node.input}
    heads = [n.output[0] for n in model.graph.node if n.op_type == "Conv" and n.output[0] not in inner]
    heads = [name for name in heads if "/dfl/" not in name]  # another package decodes by a convolution
    wanted = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output) and not set(node.output) & set(heads):
            kept.append(node)
            wanted |= set(node.input)
            for attribute in node.attribute:  # what a loop's body takes from outside
                wanted |= {name for inner in attribute.g.node for name in inner.input}
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for name in heads:
        shape = ["batch", None, None, None]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in wanted]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    return model
