"""The parts of the comparison: who takes part in each, with which model, on which images."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, model_folder, other_python, python_with, run_python
from benchmarks.peers_turns import Contender, Part, show_round, take_turns

CLASSES = 6
"""As many as NEU-DET has; 80 would favour nobody."""
OURS = "agssp-zoo"
SQUARE, STRIP, WIDE = (640, 640), (256, 1600), (1024, 4096)
"""Images, (height, width)."""
BOXES = {"conf": 0.25, "iou": 0.7}
CENTRE = -3.15
"""Mean of the classes' logits, whose deviation is 1: about 1,000 of 8400 x 6 scores are then above 0.25."""
FASTER = ("fasterrcnn_mobilenet_v3_large_fpn", {"min_size": 640, "max_size": 640, "box_score_thresh": 0.25})
RETINA = ("retinanet_resnet50_fpn", {"min_size": 640, "max_size": 640, "score_thresh": 0.25})
NO_WEIGHTS = {"weights": None, "weights_backbone": None}


def _here() -> Path:
    return Path(sys.executable)


def _anomalib() -> Path:
    # The versions of open_clip that this anomalib states for its WinCLIP.
    return python_with("anomalib", ["anomalib", "open_clip_torch>=2.23,<2.26.1"])


def _ours(architecture: str) -> Path:
    return model_folder(architecture, CLASSES)


def _theirs(scale: str, kind: str) -> Path:
    """The other model of the same architecture: ``.pt``, ``.onnx``, ``_any.onnx`` (any size), ``_wide.onnx``."""
    target = WORK / "ultralytics" / f"yolov8{scale}_{CLASSES}{kind}"
    if not target.is_file():
        exports = {".onnx": "imgsz=640", "_any.onnx": "imgsz=640, dynamic=True", "_wide.onnx": f"imgsz={WIDE}"}
        source, stem = target.with_name(f"yolov8{scale}_{CLASSES}.pt"), f"yolov8{scale}_{CLASSES}"
        if kind == ".pt":
            code = (
                "import pathlib, ultralytics, yaml; folder = pathlib.Path(ultralytics.__file__).parent\n"
                "text = (folder / 'cfg/models/v8/yolov8.yaml').read_text()\n"
                f"values = yaml.safe_load(text) | {{'nc': {CLASSES}}}\n"
                f"pathlib.Path('{stem}.yaml').write_text(yaml.safe_dump(values))\n"
                f"ultralytics.YOLO('{stem}.yaml').save('{stem}.pt')"
            )
        else:
            _theirs(scale, ".pt")
            temporary = f"export{scale}_{CLASSES}"  # all exports have the name of their source
            code = (
                f"import shutil, ultralytics; shutil.copy('{source.name}', '{temporary}.pt')\n"
                f"ultralytics.YOLO('{temporary}.pt').export(format='onnx', device='cpu', {exports[kind]})\n"
                f"shutil.move('{temporary}.onnx', '{target.name}')"
            )
        done = subprocess.run([other_python(), "-c", code], cwd=target.parent, capture_output=True, text=True)
        if not target.is_file():
            raise RuntimeError(f"ultralytics does not make {target.name}: {done.stderr[-500:]}")
    return target


def _jobs(**images: tuple[tuple[int, int], int | None]) -> dict[str, Any]:
    return {name: {"image": shape, "size": size} for name, (shape, size) in images.items()}


def _our_contenders(architecture: str, jobs: Mapping[str, Any], also: Mapping[str, str]) -> list[Contender]:
    """Our file in ONNX Runtime, in OpenVINO where that is an engine and installed, and other files of ours."""
    from agssp_zoo.engines import base

    folder = _ours(architecture)
    files = {OURS: folder} | {f"{OURS}, {name}": Path(file).absolute() for name, file in also.items()}
    found = [
        Contender(name, _here, functools.partial(dict, tool="ours", model=file, jobs=jobs))
        for name, file in files.items()
    ]
    if "openvino" in getattr(base, "_PACKAGES", ()) and importlib.util.find_spec("openvino"):
        task = functools.partial(dict, tool="ours", engine="openvino", model=folder, jobs=jobs)
        found.append(Contender(f"{OURS}, OpenVINO", _here, task))
    return found


def _their_contenders(scale: str, jobs: Mapping[str, Any], kinds: Mapping[str, str]) -> list[Contender]:
    def task(kind: str) -> dict[str, Any]:
        return {"tool": "ultralytics", "model": _theirs(scale, kind), "jobs": jobs}

    return [
        Contender(f"ultralytics, {name}", other_python, functools.partial(task, kind)) for name, kind in kinds.items()
    ]


def latency(scale: str, rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """``predict()`` on an array, as it comes: 640x640, a strip, and a large image, which is fitted into 640."""
    jobs = _jobs(square=(SQUARE, None), strip=(STRIP, None), wide=(WIDE, None))
    kinds = {"PyTorch": ".pt", "ONNX": ".onnx", "ONNX dynamic": "_any.onnx"}
    ours = _our_contenders(f"yolov8_{scale}", jobs, also if scale == "s" else {})
    return take_turns([*ours, *_their_contenders(scale, jobs, kinds)], rounds)


def full(rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """yolov8_n on all pixels of the large image."""
    jobs = _jobs(full=(WIDE, WIDE[1]))
    ours = _our_contenders("yolov8_n", jobs, {})
    kinds = {"PyTorch": ".pt", "ONNX dynamic": "_any.onnx"}
    theirs = _their_contenders("n", jobs, kinds)
    theirs += _their_contenders("n", _jobs(full=(WIDE, list(WIDE))), {"ONNX": "_wide.onnx"})
    return take_turns([*ours, *theirs], min(rounds, 5))


def others(rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """Other architectures and another task, as these tools bring them: not the same work."""
    jobs = _jobs(square=(SQUARE, None), strip=(STRIP, None), wide=(WIDE, None))
    detectors = [
        Contender(f"torchvision {name}", _here, functools.partial(dict, tool="torchvision", model=name, jobs=jobs,
                  options={**NO_WEIGHTS, "num_classes": CLASSES + 1, **options}))
        for name, options in (FASTER, RETINA)
    ]  # fmt: skip
    anomaly = Contender(
        "anomalib EfficientAd", _anomalib, functools.partial(dict, tool="anomalib", model="", jobs=jobs)
    )
    ours = _our_contenders("yolov8_s", jobs, {})[:1]
    return take_turns([*ours, *detectors, anomaly], min(rounds, 5))


def boxes(rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """From the head's outputs to 300 detections."""
    from benchmarks.peers_boxes import box_files

    whole = _theirs("s", ".onnx")
    files = box_files(_ours("yolov8_s") / "model.onnx", whole, CLASSES, CENTRE, WORK / "peers", **BOXES)
    shared = {"data": files.data, "jobs": ["boxes"], **BOXES}
    task = {"tool": "ultralytics_boxes", "whole": whole, **shared}
    contenders = [
        Contender(OURS, _here, lambda: {"tool": "our_boxes", "model": files.ours, **shared}),
        Contender("ultralytics, ONNX", other_python, lambda: {**task, "model": files.theirs}),
        Contender("ultralytics, ONNX, boxes decoded before", other_python, lambda: {**task, "model": None}),
    ]
    return take_turns(contenders, rounds, times=10)


def cold(rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """A fresh process from its start to the detections in a 640x640 JPEG: CPU seconds and the most memory held."""
    from benchmarks import peers_cold

    part, image = Part(), peers_cold.image_file(WORK / "peers")
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: run_python(peers_cold.OURS, _ours("yolov8_s"), image),
        "ultralytics, PyTorch": lambda: run_python(
            peers_cold.ULTRALYTICS, _theirs("s", ".pt"), image, python=str(other_python())
        ),
        "ultralytics, ONNX": lambda: run_python(
            peers_cold.ULTRALYTICS, _theirs("s", ".onnx"), image, python=str(other_python())
        ),
        f"torchvision {FASTER[0]}": lambda: run_python(peers_cold.TORCHVISION, FASTER[0], image),
        "anomalib EfficientAd": lambda: run_python(peers_cold.ANOMALIB, image, python=str(_anomalib())),
    }
    part.values["cold"] = {}
    for number in range(min(rounds, 5) + 1):
        show_round(number, min(rounds, 5))
        for name, run in runs.items():
            try:
                used = run()
            except RuntimeError as error:
                part.failed[name] = str(error).strip().splitlines()[-1][:300]
                continue
            if number:
                part.values["cold"].setdefault(name, []).append(used.cpu)
                part.memory.setdefault(name, []).append(used.memory)
    return vars(part)


def install(rounds: int, also: Mapping[str, str]) -> dict[str, Any]:
    """What each puts on the disk, with all that it requires."""
    from benchmarks.peers_install import attempt, closure

    sizes = {
        OURS: closure(sys.executable, "agssp-zoo"),
        f"{OURS}[torch]": closure(sys.executable, "agssp-zoo[torch]"),
        "ultralytics, PyTorch": closure(other_python(), "ultralytics"),
        "ultralytics, ONNX": closure(other_python(), "ultralytics", "onnxruntime"),
        "torchvision": closure(sys.executable, "torchvision"),
        "anomalib": closure(_anomalib(), "anomalib"),
    }
    return {"sizes": sizes, "mmdet": attempt("mmdet", "mmdet", "mmcv")}


PARTS: dict[str, Callable[[int, Mapping[str, str]], dict[str, Any]]] = {
    "install": install,
    "cold": cold,
    "boxes": boxes,
    "latency_n": functools.partial(latency, "n"),
    "latency_s": functools.partial(latency, "s"),
    "full": full,
    "others": others,
}
"""Name -> the function that measures it; each is kept in a file of its own."""
