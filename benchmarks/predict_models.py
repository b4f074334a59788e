"""One `predict()` at 640x640 with two threads, against what the authors' stack took.

    python -m benchmarks.predict_models            # measures, prints the table
    python -m benchmarks.predict_models --write    # puts it into docs/models.md

Models with random weights and six classes, PyTorch and ONNX Runtime in turns, from uint8 pixels to detections.
Wall-clock time says something only on a machine that does nothing else; CPU seconds, of both threads together, stand
beside it. Takes about two minutes, and once some more to make the model
folders, which ``benchmarks.models`` keeps too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, versions, write_between
from benchmarks.models import DOCS, SIDE, make_folder

BEGIN, END = "<!-- begin of the times of predict -->", "<!-- end of the times of predict -->"
THREADS = 2
RECORDED = {"yolov8_resnet50": 2.0, "yolov8_swin_b": 2.8, "faster_rcnn_swin_b": 4.1, "dino_swin_b": 6.7}
"""Wall-clock seconds of the authors' stack (OpenMMLab, torch 1.12), once, on two idle cores of the same kind."""
SHARE = 0.75
"""Of the recorded times, to be reached by PyTorch."""
ENGINES = ("pytorch", "onnx")


def main() -> int:
    """Measures and prints; 1 when a time is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WORK / "models", help="where the model folders are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.out / args.measure, args.rounds)))
        return 0
    found = {}
    for name in RECORDED:
        folder = args.out / name
        if not (folder / "model.onnx").is_file():
            print(f"{name}: making {folder}", file=sys.stderr, flush=True)
            make_folder(name, folder)
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.predict_models", "--measure", name, "--out", args.out.resolve()]
        done = subprocess.run(
            [*command, "--rounds", str(args.rounds)],
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
        )
        found[name] = json.loads(done.stdout)
    text = table(found)
    print(text)
    if args.write:
        write_between(DOCS, BEGIN, END, f"\n{text}")
    return int(any(times["pytorch"]["wall"] > SHARE * RECORDED[name] for name, times in found.items()))


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median wall-clock and CPU seconds of each engine, in turn; the first calls do not count."""
    import numpy as np
    import torch

    import agssp_zoo

    torch.set_num_threads(THREADS)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    detectors = {engine: agssp_zoo.load_detector(folder, engine=engine) for engine in ENGINES}
    taken: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for number in range(rounds + 1):
        for engine, detector in detectors.items():
            started = time.perf_counter(), time.process_time()
            detector.predict(pixels)
            if number:
                taken[engine].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return {
        engine: dict(zip(("wall", "cpu"), map(statistics.median, zip(*times, strict=True)), strict=True))
        for engine, times in taken.items()
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line for every model, and when and on what it was measured."""
    text = (
        f"| architecture | the authors' stack | to reach ({SHARE} x) | PyTorch | share | CPU "
        "| ONNX Runtime | share | CPU |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    for name, times in found.items():
        recorded = RECORDED[name]
        cells = [f"`{name}`", f"{recorded:.1f} s", f"{SHARE * recorded:.2f} s"]
        for engine in ENGINES:
            wall, cpu = times[engine]["wall"], times[engine]["cpu"]
            mark = "" if engine != "pytorch" else " ✓" if wall <= SHARE * recorded else " ✗"
            cells += [f"{wall:.2f} s", f"{wall / recorded:.2f} x{mark}", f"{cpu:.2f} s"]
        text += f"| {' | '.join(cells)} |\n"
    known = versions()
    on = ", ".join(f"{what} {known[what]}" for what in ("machine", "torch", "onnxruntime"))
    load = f"{os.getloadavg()[0]:.1f} processes waiting for it on average in the last minute"
    return f"{text}\nMeasured {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}: {on}, {load}.\n"


if __name__ == "__main__":
    sys.exit(main())
