"""Images a second of `Detector.stream` against the bare session, which is handed finished canvases."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, Figure

MODEL = ROOT / "model_cards" / "yolov8_n.agssp_neu_det"
"""Trained, so that there are boxes to answer."""
NEU = ROOT.parent / "shared" / "data" / "neu_det" / "images"
SMALL = 240
"""Images of 200x200 that are run at 640x640; in turns of 30."""
TURN = 30
LINES = 4
"""Line images of 4096x1024 and 16 bits, in tiles of 640."""


def stream(rounds: int) -> list[Figure]:
    """Wall-clock and CPU time, on as many cores as there are, the network on one."""
    import agssp_zoo

    if hasattr(os, "sched_setaffinity"):  # reading has a core of its own
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    detector = agssp_zoo.load_detector(MODEL, engine="onnx")
    files, where = _small_images()
    turns = [files[start : start + TURN] for start in range(0, len(files), TURN)]
    lines = _line_images()
    return [
        *_compare(detector, turns, 1, f"{len(files)} images of 200x200 ({where}) at 640x640", {"size": 640}),
        *_compare(detector, [[file] for file in lines], max(2, rounds // 2), f"{len(lines)} line images of 4096x1024, "
                  "16-bit PNG, in tiles of 640", {"size": 640, "tile": 640}),
    ]  # fmt: skip


def _compare(
    detector: Any, turns: Sequence[Sequence[Path]], rounds: int, what: str, options: dict[str, Any]
) -> list[Figure]:
    """The session, the stream, and the stream with its files written take turns; medians of the ratios."""
    from agssp_zoo.commands.predict import _json_list, _Pictures
    from agssp_zoo.prefetch import WriteBehind

    walls: dict[str, list[float]] = {"stream": [], "written": []}
    cpus: dict[str, list[float]] = {"stream": [], "written": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pictures = _Pictures(out / "annotated")

        def written(names: Sequence[Path]) -> None:
            with _json_list(out / "predictions.json") as add, WriteBehind(pictures.save) as drawing:
                for answer in detector.stream(list(names), keep_images=True, **options):
                    add(answer.to_dict())
                    drawing.put(answer)

        for number in range(rounds + 1):
            for turn in turns if number else turns[:1]:  # the first one warms up
                canvases = list(_canvases(turn, options))
                bare = _time(lambda canvases=canvases: _run_bare(detector, canvases))
                streamed = _time(lambda turn=turn: sum(1 for _ in detector.stream(list(turn), **options)))
                both = _time(lambda turn=turn: written(turn))
                again = _time(lambda canvases=canvases: _run_bare(detector, canvases))
                if not number:
                    continue
                wall, cpu = (bare[0] + again[0]) / 2, (bare[1] + again[1]) / 2
                for name, taken in (("stream", streamed), ("written", both)):
                    walls[name].append(wall / taken[0])
                    cpus[name].append(cpu / taken[1])
    figures = []
    for name, how in (("stream", "`stream()`"), ("written", "`stream()`, JSON and pictures written")):
        spread = statistics.quantiles(walls[name], n=4)
        note = (
            f"{what}; quartiles {spread[0]:.2f}-{spread[2]:.2f}; of the CPU seconds of both the ratio is "
            f"{statistics.median(cpus[name]):.2f}"
        )
        figures.append(
            Figure(f"{how} against the bare session", statistics.median(walls[name]), "x", 0.9, True, note=note)
        )
    return figures


def _time(job: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def _run_bare(detector: Any, canvases: Sequence[Any]) -> None:
    """The same session, with the same thresholds, on what is already decoded, resized and cut."""
    for canvas in canvases:
        detector.engine.run(canvas)


def _canvases(files: Sequence[Path], options: dict[str, Any]) -> Iterator[Any]:
    """What the network is given of these files."""
    import numpy as np

    from agssp_zoo import load_detector
    from agssp_zoo.geometry import prepare
    from agssp_zoo.images import read_image
    from agssp_zoo.tiling import tiles

    preprocess = load_detector(MODEL, engine="onnx").config.preprocess
    for file in files:
        image = read_image(file)
        windows = tiles(image.shape[:2], options["tile"]) if "tile" in options else [(0, 0, *image.shape[:2])]
        for top, left, bottom, right in windows:
            part = np.ascontiguousarray(image[top:bottom, left:right])
            yield prepare(part, preprocess, options["size"])[0][None]


def _small_images() -> tuple[list[Path], str]:
    """Photographs of steel where they are at hand, else drawn ones; and which."""
    from PIL import Image

    found = sorted(NEU.rglob("*.jpg"))
    if len(found) >= SMALL:
        return found[:: len(found) // SMALL][:SMALL], "NEU-DET"
    from agssp_zoo.training.synthetic import draw_sample

    folder = WORK / "throughput"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SMALL):
        file = folder / f"{index}.jpg"
        if not file.is_file():
            Image.fromarray(draw_sample(index, size=(200, 200), style="neu").image).save(file)
    return sorted(folder.glob("*.jpg")), "drawn"


def _line_images() -> list[Path]:
    """Drawn strips of 16 bits. Made once."""
    import numpy as np
    from PIL import Image

    from agssp_zoo.training.synthetic import draw_sample

    folder = WORK / "throughput"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"line{index}.png" for index in range(LINES)]
    for index, file in enumerate(files):
        if not file.is_file():
            gray = draw_sample(index, size=(1024, 4096)).image[..., 0].astype(np.uint16) * 256
            noise = np.random.default_rng(index).integers(0, 256, gray.shape, np.uint16)
            Image.fromarray(gray + noise).save(file)
    return files
