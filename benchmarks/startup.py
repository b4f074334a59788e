"""What starting costs: importing, the command's help, the first prediction, loading a backbone. All fresh processes."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common import WORK, Figure, model_folder, run_command, run_python, take_turns

FIRST_PREDICTION = """
import sys, agssp_zoo
agssp_zoo.load_detector(sys.argv[1], engine="onnx").predict(sys.argv[2])
assert "torch" not in sys.modules
"""
BARE_RUNTIME = """
import sys, cv2, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
image = cv2.resize(cv2.imread(sys.argv[2]), (640, 640))[None, :, :, ::-1]
session.run(None, {"images": np.ascontiguousarray(image)})
"""


def import_package(rounds: int) -> list[Figure]:
    """``import agssp_zoo`` beyond what Python itself costs."""
    used = take_turns(
        {"python": lambda: run_python("pass"), "package": lambda: run_python("import agssp_zoo")}, max(rounds, 15)
    )
    return [
        Figure(
            "`import agssp_zoo`, time",
            (used["package"].cpu - used["python"].cpu) * 1e3,
            "ms",
            40,
            note=f"beyond Python's own {used['python'].cpu * 1e3:.0f} ms",
        ),
        Figure(
            "`import agssp_zoo`, memory",
            used["package"].memory,
            "MB",
            25,
            note=f"the whole process; Python alone {used['python'].memory:.0f} MB",
        ),
    ]


def command_help(rounds: int) -> list[Figure]:
    """``agssp-zoo --help``."""
    command = [str(Path(sys.executable).parent / "agssp-zoo"), "--help"]
    used = take_turns({"help": lambda: run_command(command)}, rounds)
    return [Figure("`agssp-zoo --help`", used["help"].cpu, "s", 0.3)]


def first_prediction(rounds: int) -> list[Figure]:
    """One prediction of yolov8_s in a fresh process, and a script that has nothing but onnxruntime and OpenCV."""
    folder, image = model_folder("yolov8_s"), _small_jpeg()
    used = take_turns(
        {
            "ours": lambda: run_python(FIRST_PREDICTION, folder, image),
            "bare": lambda: run_python(BARE_RUNTIME, folder, image),
        },
        rounds,
    )
    ours, bare = used["ours"], used["bare"]
    return [
        Figure("first prediction, time", ours.cpu, "s", 0.8, note="yolov8_s, ONNX, a 200x200 JPEG at 640x640"),
        Figure("first prediction, memory", ours.memory, "MB", 220, note="the most the process held at once"),
        Figure("a bare script, time", bare.cpu, "s", note="onnxruntime and OpenCV, the same file and image"),
        Figure("a bare script, memory", bare.memory, "MB"),
    ]


def load_backbone(rounds: int) -> list[Figure]:
    """``load_backbone("resnet50")`` from a folder against ``import torch`` alone."""
    folder = model_folder("resnet50")
    used = take_turns(
        {
            "torch": lambda: run_python("import torch"),
            "backbone": lambda: run_python("import sys, agssp_zoo\nagssp_zoo.load_backbone(sys.argv[1])", folder),
        },
        rounds,
    )
    note = f"{used['backbone'].cpu:.2f} s against {used['torch'].cpu:.2f} s of `import torch`"
    return [Figure("`load_backbone('resnet50')`", used["backbone"].cpu / used["torch"].cpu, "x", 1.3, note=note)]


def _small_jpeg() -> Path:
    """A 200x200 JPEG of noise."""
    path = WORK / "small.jpg"
    if not path.is_file():
        import numpy as np
        from PIL import Image

        coarse = np.random.default_rng(0).integers(0, 256, (25, 25, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((200, 200)).save(path)
    return path
