"""Small data and settings for training runs that take seconds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("dark", "bright")

SMALL: dict[str, Any] = {
    "weights": "none", "size": 64, "batch": 4, "epochs": 2, "warmup": 1.0, "close_mosaic": 1, "threads": 1,
    "device": "cpu", "precision": "no", "plots": False, "report": False, "workers": 0, "log_every": 1,
}  # fmt: skip
"""Settings of a run of a few seconds."""


def write_data(
    folder: Path, train: int = 12, val: int = 4, size: int = 64, names: Sequence[str] = NAMES, seed: int = 7
) -> Path:
    """Noise with a dark, a bright (or a striped, ...) rectangle an image, labelled in YOLO's format."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.normal(128, 10, (size, size, 3))
            label = i % len(names)
            w, h = rng.integers(size // 4, size // 2, 2)
            x, y = rng.integers(0, size - w), rng.integers(0, size - h)
            image[y : y + h, x : x + w] = (30, 225, 128)[label % 3]
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / split / f"{i}.png")
            line = f"{label} {(x + w / 2) / size} {(y + h / 2) / size} {w / size} {h / size}\n"
            (folder / "labels" / split / f"{i}.txt").write_text(line)
    write_yaml(folder, names)
    return folder


def write_yaml(folder: Path, names: Sequence[str]) -> None:
    lines = ["train: images/train", "val: images/val", "names:", *(f"  {i}: {n}" for i, n in enumerate(names))]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")


def command(**values: object) -> list[str]:
    """The command line of a run, after Python."""
    words = ["-m", "agssp_zoo.training.finetune"]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, str(value)]
    return words


def environment() -> dict[str, str]:
    """Of a run in a process of its own: one thread, no configuration of this machine's."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_CONFIG_FILE": os.devnull}


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "state" / "state.json").read_bytes())
    return found


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def step_losses(run: Path) -> list[float]:
    """The loss of every step, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return [entry.value for entry in events.Scalars("loss/total")]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> int:
    """Waits until the state of that step, or a later one, is on the disk."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            found = int(state(run)["step"])
            if found >= step:
                return found
        except (OSError, ValueError):
            pass
        if process.poll() is not None:
            raise AssertionError(f"the run ended early: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("no state was saved in two minutes")


def python(*words: str) -> list[str]:
    return [sys.executable, *words]
