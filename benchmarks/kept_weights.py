"""What PyTorch on a CPU gains, and pays in memory, by weights that are kept folded and in oneDNN's order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.common import ROOT, Figure, run_python, time_in_turns

SIZES = {"yolov8_n": (640, 64), "yolov8_s": (640,), "yolov8_resnet50": (640,), "swin_b": (640,)}
MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.kept_weights import runner
runner(sys.argv[2], 640, kept=sys.argv[3] == "kept")()
"""


def against_modules(rounds: int) -> list[Figure]:
    """Networks as they are against the same modules one by one, and the most memory that a process of each takes."""
    figures = []
    for name, sides in SIZES.items():
        for side in sides:
            runners = {way: runner(name, side, kept=way == "kept") for way in ("kept", "plain")}
            taken = time_in_turns(runners, rounds if side > 64 else 5 * rounds)
            note = f"{taken['kept'] * 1e3:.4g} ms against {taken['plain'] * 1e3:.4g} ms of the modules one by one"
            what = f"kept weights, {name} at {side}x{side}, PyTorch"
            figures.append(Figure(what, taken["kept"] / taken["plain"], "x", note=note))
        most = {way: run_python(MEMORY, ROOT, name, way).memory for way in ("kept", "plain")}
        note = f"{most['kept']:.0f} MB against {most['plain']:.0f} MB, the most a process held at once"
        figures.append(Figure(f"kept weights, {name}, memory", most["kept"] / most["plain"], "x", note=note))
    return figures


def runner(name: str, side: int, *, kept: bool) -> Callable[[], None]:
    """A function that runs a network with random weights on one thread."""
    import torch

    from agssp_zoo import models

    torch.set_num_threads(1)
    config = models.default_config(name)
    if models.get_architecture(name).task == "detector":
        config = models.default_config(name, class_names=tuple("abcdef"))
    network = models.build(config).eval()
    x = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with contextlib.nullcontext() if kept else _modules_only(), torch.inference_mode():
            network(x)

    return run


@contextlib.contextmanager
def _modules_only() -> Iterator[Any]:
    """Nothing is kept inside, as on processors where nothing can be."""
    with (
        mock.patch("agssp_zoo.models.cpu_conv.can_reorder", return_value=False),
        mock.patch("agssp_zoo.models.cpu_linear.can_reorder", return_value=False),
    ):
        yield
