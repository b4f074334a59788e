"""One tool in a process of its own, in whichever Python it is installed in; ``benchmarks.peers`` asks it for rounds.

    python -P benchmarks/peers_worker.py TASK

The task is JSON: ``tool``, ``model`` (a file or folder), ``jobs`` (name -> ``image`` (height, width), ``size`` or null)
and what the tool needs else. It says ``ready``; for a line ``JOB TIMES`` it does the job so often and answers the CPU
seconds of one and how many boxes came out. Nothing of this project is imported but by the tool ``ours``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

Jobs = dict[str, Callable[[], int]]


def main() -> int:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print goes elsewhere
    task = json.loads(sys.argv[1])
    one_thread_for_onnxruntime()
    jobs = TOOLS[task["tool"]](task)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, times = line.split()
        started = process_time()
        for _ in range(int(times)):
            found = jobs[name]()
        print((process_time() - started) / int(times), found, file=answers, flush=True)
    return 0


def one_thread_for_onnxruntime() -> None:
    """Gives sessions one thread unless they say otherwise.

    ONNX Runtime heeds neither OMP_NUM_THREADS nor the cores that a process is bound to; its second thread would spin.
    """
    import onnxruntime

    usual = onnxruntime.InferenceSession

    def session(model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> Any:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return usual(model, options, *args, **kwargs)

    onnxruntime.InferenceSession = session


def drawn_image(shape: tuple[int, int]) -> Any:
    """An array as a camera gives it: (height, width, 3) uint8."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def each_job(task: dict[str, Any], predict: Callable[[Any, Any], int]) -> Jobs:
    """The task's jobs; ``predict`` takes an image and a size, and answers the number of boxes."""
    return {
        name: functools.partial(predict, drawn_image(tuple(job["image"])), job["size"])
        for name, job in task["jobs"].items()
    }


def ours(task: dict[str, Any]) -> Jobs:
    """``Detector.predict``."""
    import agssp_zoo

    detector = agssp_zoo.load_detector(task["model"], engine=task.get("engine", "onnx"))
    return each_job(task, lambda image, size: len(detector.predict(image, size=size)[0]))


def ultralytics(task: dict[str, Any]) -> Jobs:
    """``YOLO.predict``, of a .pt file or of the ONNX file that it exports."""
    import torch
    from ultralytics import YOLO

    model = YOLO(task["model"], task="detect")

    def predict(image: Any, size: Any) -> int:
        options = {} if size is None else {"imgsz": size}
        return len(model.predict(image, verbose=False, device="cpu", **options)[0].boxes)

    predict(drawn_image((64, 64)), next(iter(task["jobs"].values()))["size"])
    torch.set_num_threads(1)  # choosing the device has set them
    return each_job(task, predict)


def torchvision(task: dict[str, Any]) -> Jobs:
    """A detector of torchvision, from an array to its boxes."""
    import torch
    from torchvision.models import detection

    model = getattr(detection, task["model"])(**task["options"]).eval()

    def predict(image: Any, size: Any) -> int:
        with torch.inference_mode():
            pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
            return len(model([pixels])[0]["boxes"])

    return each_job(task, predict)


def anomalib(task: dict[str, Any]) -> Jobs:
    """EfficientAD as anomalib runs it: preparing the image (256x256 by default), the maps, the scores."""
    import torch
    from anomalib.models import EfficientAd

    model = EfficientAd(visualizer=False, evaluator=False).eval()

    def predict(image: Any, size: Any) -> int:
        with torch.inference_mode():
            model(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
        return 0

    return each_job(task, predict)


def our_boxes(task: dict[str, Any]) -> Jobs:
    """From the head's outputs to detections: our file behind the last convolutions, and what the detector does then."""
    import onnxruntime

    from agssp_zoo.config import Preprocess
    from agssp_zoo.detections import Detections
    from agssp_zoo.geometry import Letterbox

    session = onnxruntime.InferenceSession(task["model"], providers=["CPUExecutionProvider"])
    feed = inputs(task["data"], "ours/")
    placement = Letterbox(Preprocess()).place((640, 640))
    names = tuple(f"class_{number}" for number in range(6))

    def run() -> int:
        boxes, scores, labels, count = session.run(["boxes", "scores", "labels", "count"], feed)
        found = slice(int(count[0]))
        boxes = placement.to_original(boxes[0, found].copy())
        return len(Detections(boxes, scores[0, found].copy(), labels[0, found].copy(), names, (640, 640)))

    return {"boxes": run}


def ultralytics_boxes(task: dict[str, Any]) -> Jobs:
    """To results by its predictor's own step: from what its ONNX file answers, with ``model`` from the head's outputs.

    Its file decodes the boxes; the part of it that does so is run first then.
    """
    import numpy as np
    import onnxruntime
    import torch
    from ultralytics import YOLO

    model = YOLO(task["whole"], task="detect")
    image = drawn_image((640, 640))
    model.predict(image, verbose=False, device="cpu", conf=task["conf"], iou=task["iou"], max_det=300)
    torch.set_num_threads(1)
    canvas = torch.zeros(1, 3, 640, 640)

    def choose(answer: Any) -> int:
        return len(model.predictor.postprocess(torch.from_numpy(answer), canvas, [image])[0].boxes)

    decoded = np.load(task["data"])["decoded"]
    if not task["model"]:
        return {"boxes": lambda: choose(decoded)}
    session = onnxruntime.InferenceSession(task["model"], providers=["CPUExecutionProvider"])
    feed = inputs(task["data"], "theirs/")
    return {"boxes": lambda: choose(session.run(None, feed)[0])}


def inputs(file: str, prefix: str) -> dict[str, Any]:
    """The arrays of an ``.npz`` whose names begin so, without that beginning."""
    import numpy as np

    arrays = np.load(file)
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


TOOLS: dict[str, Callable[[dict[str, Any]], Jobs]] = {
    "ours": ours,
    "ultralytics": ultralytics,
    "torchvision": torchvision,
    "anomalib": anomalib,
    "our_boxes": our_boxes,
    "ultralytics_boxes": ultralytics_boxes,
}

if __name__ == "__main__":
    sys.exit(main())
