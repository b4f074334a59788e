"""Every model of the zoo in one table: parameters, operations, speed, file sizes, and the paper's figures.

    python -m benchmarks.models            # measures what is missing, prints the table
    python -m benchmarks.models --write    # puts it into docs/models.md

Weights are random, detectors have six classes. Speed is the CPU time of one image on one thread, 640x640 for detectors,
the size that their config names for backbones: for PyTorch and ONNX Runtime of the same model in turns, from uint8
pixels to detections or maps. Measured models are kept in ``--out``; ``--again`` measures them anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT, WORK, single_threaded, time_in_turns, use_one_core, write_between
from benchmarks.reproduce import ROWS

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig
    from agssp_zoo.models import ZooModule

DOCS = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"
SIDE = 640
PAPER = {
    "yolov8_s": ("cspdarknet", "yolo", "agssp"),
    "yolov8_resnet50": ("resnet50", "yolo", "agssp"),
    "yolov8_swin_b": ("swin_b", "yolo", "agssp"),
    "yolov8_swin_b_simmim": ("swin_b", "yolo", "simmim+agssp"),
    "faster_rcnn_swin_b": ("swin_b", "faster_rcnn", "simmim+agssp"),
    "dino_swin_b": ("swin_b", "dino", "simmim+agssp"),
}
"""Architecture -> the row of the paper's table that the authors' weights belong to: backbone, detector, method."""
BACKBONES = ("resnet50", "cspdarknet_s", "swin_b", "swin_b_simmim")
"""The authors have put out weights after stage 1 of these, too."""


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WORK / "models")
    parser.add_argument("--only", nargs="*", help="architectures to measure")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.out / args.measure, args.rounds)))
        return 0
    from agssp_zoo.registry import architectures

    found = {}
    for name in architectures():
        result = args.out / f"{name}.json"
        if (args.again or not result.is_file()) and (not args.only or name in args.only):
            print(name, file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.models", "--measure", name, "--out", str(args.out.resolve())]
            command += ["--rounds", str(args.rounds)]
            done = subprocess.run(command, env=single_threaded(), cwd=ROOT, check=True, stdout=subprocess.PIPE)
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_bytes(done.stdout)
        if result.is_file():
            found[name] = json.loads(result.read_text())
    text = table(found)
    print(text)
    if args.write:
        write_between(DOCS, BEGIN, END, f"\n{text}")
    return 0


def make_folder(name: str, folder: Path) -> ZooModule:
    """Writes a model folder with random weights, for detectors six classes, and its ONNX file; the model."""
    import torch

    from agssp_zoo import models
    from agssp_zoo.export import export_onnx
    from agssp_zoo.folder import ModelFolder, write_folder

    torch.manual_seed(0)
    detects = models.get_architecture(name).task == "detector"
    names = tuple(f"class_{number}" for number in range(6)) if detects else ()
    config = models.default_config(name, class_names=names)
    module = models.build(config).eval()
    write_folder(
        folder,
        config,
        {"model.safetensors": lambda path: models.save_weights(module, path, config)},
        overwrite=True,
    )
    export_onnx(ModelFolder.open(folder), verify=False)
    return module


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The figures of one architecture."""
    import numpy as np
    import torch

    use_one_core()
    torch.set_num_threads(1)
    module = make_folder(name, folder)
    config = module.config
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    taken = time_in_turns(
        {engine: _runner(config.task, folder, engine, pixels) for engine in ("pytorch", "onnx")}, rounds
    )
    return {
        "task": config.task,
        "parameters": sum(one.numel() for one in module.parameters()),
        "operations": operations(config),
        "seconds": taken,
        "bytes": {file.name: file.stat().st_size for file in (*folder.glob("*.safetensors"), *folder.glob("*.onnx"))},
    }


def _runner(task: str, folder: Path, engine: str, pixels: Any) -> Any:
    """A function that runs the model on the image."""
    import agssp_zoo

    if task == "detector":
        detector = agssp_zoo.load_detector(folder, engine=engine)
        return lambda: detector.predict(pixels, size=(SIDE, SIDE))
    if engine == "onnx":
        extractor = agssp_zoo.load_backbone(folder, engine="onnx")
        return lambda: extractor.extract(pixels)
    import torch

    backbone = agssp_zoo.load_backbone(folder).eval()

    def run() -> None:
        with torch.inference_mode():
            backbone(backbone.preprocess(pixels))

    return run


def operations(config: ModelConfig) -> float:
    """Operations of the forward pass at 640x640 by torch's counter; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from agssp_zoo import models

    # Without storage: products are then torch's own, which the counter knows, whatever the processor has.
    module = models.build(config, init=False).eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            module(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    except NotImplementedError:  # what is computed depends on values; with gradients, products are torch's own too
        counter = FlopCounterMode(display=False)
        with counter:
            models.build(config).eval()(torch.zeros(1, 3, SIDE, SIDE))
    return float(counter.get_total_flops())


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line for every model."""
    text = (
        "| architecture | parameters | GFLOP | PyTorch | ONNX Runtime | model.safetensors | model.onnx | the paper's "
        "map50 / map50_95 | licence: code; the authors' weights |\n|---|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    scores = {(row.backbone, row.detector, row.method): f"{row.map50} / {row.map50_95}" for row in ROWS}
    for name, values in found.items():
        cells = [
            f"`{name}`",
            f"{values['parameters'] / 1e6:.1f} M",
            f"{values['operations'] / 1e9:.1f}",
            *(_cell(values["seconds"].get(engine), 1.0, ".2f", "s") for engine in ("pytorch", "onnx")),
            *(_cell(values["bytes"].get(file), 1e6, ".0f", "MB") for file in ("model.safetensors", "model.onnx")),
            scores.get(PAPER.get(name, ("", "", "")), ""),
            licences(name),
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text


def licences(name: str) -> str:
    """The licence of an architecture's code, and of the weights that the authors have put out, if they have."""
    return "Apache-2.0" + ("; not stated" if name in PAPER or name in BACKBONES else "")


def _cell(value: float | None, scale: float, form: str, unit: str) -> str:
    return "" if value is None else f"{value / scale:{form}} {unit}"


if __name__ == "__main__":
    sys.exit(main())
