"""What 8 bits and OpenVINO gain: a run of the whole file at 640x640 against the float32 file in ONNX Runtime.

Random pixels and, for yolov8_s, random weights: neither changes how long a network takes. What 8 bits cost in accuracy
is measured by ``agssp-zoo export --int8`` itself; docs/deployment.md has those figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, Figure, model_folder, time_in_turns

SIDE = 640
MODELS = {"yolov8_n": ROOT / "model_cards" / "yolov8_n.agssp_neu_det", "yolov8_s": None}
"""Architecture -> a folder with its ONNX file; ``None``: one with random weights."""


def int8(rounds: int) -> list[Figure]:
    """The quantised file in ONNX Runtime."""
    return [_against_float(name, "int8", "onnx", "int8 of", 0.40, rounds) for name in MODELS]


def openvino(rounds: int) -> list[Figure]:
    """The float32 file in OpenVINO, in bfloat16 where the CPU has it, then in float32, and the quantised file."""
    figures = []
    for name in MODELS:
        figures.append(_against_float(name, None, "openvino", "OpenVINO's own precision,", 0.55, rounds))
        figures.append(_against_float(name, "float32", "openvino", "OpenVINO, float32,", None, rounds))
        figures.append(_against_float(name, "int8", "openvino", "OpenVINO, int8 of", None, rounds))
    return figures


def _against_float(
    name: str, precision: str | None, engine: str, what: str, limit: float | None, rounds: int
) -> Figure:
    """One engine and precision against the float32 file in ONNX Runtime, in turns."""
    import numpy as np

    from agssp_zoo import load_detector

    folder = MODELS[name] or model_folder(name)
    float_engine: Any = load_detector(folder, engine="onnx").engine
    if precision == "int8":
        other = load_detector(_quantized(name, folder), engine=engine).engine
    else:
        other = load_detector(folder, engine=engine, precision=precision).engine
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    taken = time_in_turns(
        {"float": lambda: float_engine.run(pixels), "other": lambda: other.run(pixels)}, max(rounds, 15)
    )
    note = f"{taken['other'] * 1e3:.1f} ms against {taken['float'] * 1e3:.1f} ms in ONNX Runtime, float32"
    if engine == "openvino":
        note += f"; computed in {getattr(other, 'precision', '')}" + (" and int8" if precision == "int8" else "")
    return Figure(f"{what} {name} at 640x640", taken["other"] / taken["float"], "x", limit, note=note)


def _quantized(name: str, folder: Path) -> Path:
    """The file in 8 bits, calibrated on drawn surfaces. Made once."""
    import onnx

    from agssp_zoo.export.calibration import choose_ranges, collect
    from agssp_zoo.export.int8_graph import plan, prepare
    from agssp_zoo.export.quantize import no_progress, quantize
    from agssp_zoo.export.verification import example_inputs

    path = WORK / f"{name}.int8.onnx"
    if not path.is_file():
        prepared = prepare(onnx.load(folder / "model.onnx"))
        todo = plan(prepared)
        images = list(dict(example_inputs((4, 320, 320)))["drawn surfaces"])
        histograms = collect(prepared, todo, images, [len(images)], no_progress)[len(images)]
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(quantize(prepared, todo, choose_ranges(histograms, todo, "minmax"), full_range=False), path)
    return path
