"""Training runs: they learn, stop, resume, and say what is wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from agssp_zoo.training.finetune import finetune  # noqa: E402

NAMES = ("dark", "bright")


def write_data(folder: Path, train: int = 12, val: int = 4, size: int = 64) -> Path:
    """Gray noise with a dark or a bright rectangle an image, labelled in YOLO's format."""
    rng = np.random.default_rng(7)
    for split, count in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.normal(128, 10, (size, size, 3))
            label = i % 2
            w, h = rng.integers(size // 4, size // 2, 2)
            x, y = rng.integers(0, size - w), rng.integers(0, size - h)
            image[y : y + h, x : x + w] = 30 if label == 0 else 225
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / split / f"{i}.png")
            line = f"{label} {(x + w / 2) / size} {(y + h / 2) / size} {w / size} {h / size}\n"
            (folder / "labels" / split / f"{i}.txt").write_text(line)
    lines = ["train: images/train", "val: images/val", "names:", *(f"  {i}: {n}" for i, n in enumerate(NAMES))]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("drawn"))


SMALL = {
    "weights": "none", "size": 64, "batch": 4, "epochs": 3, "warmup": 1.0, "close_mosaic": 1, "threads": 1,
    "device": "cpu", "plots": False, "workers": 1, "log_every": 1,
}  # fmt: skip


def command(**values: object) -> list[str]:
    words = [sys.executable, "-m", "agssp_zoo.training.finetune"]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, str(value)]
    return words


def assert_same_weights(first: Path, second: Path, model: str = "last") -> None:
    one, two = (load_file(run / model / "model.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            found = json.loads((run / "state" / "state.json").read_bytes())["step"]
            if found >= step:
                return int(found)
        except (OSError, ValueError):
            pass
        if process.poll() is not None:
            raise AssertionError(f"the run ended early: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("no state was saved in two minutes")


@pytest.mark.slow
def test_killed_and_terminated_run_ends_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "data": str(data), "save_every": 1, "accumulate": 2, "epochs": 4}
    finetune(out=str(tmp_path / "whole"), **settings)
    broken = tmp_path / "broken"
    words = command(out=broken, **settings)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes, start_new_session=True) as process:
        wait_for_step(broken, 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    killed_at = json.loads((broken / "state" / "state.json").read_bytes())["step"]
    # SIGTERM to the whole group, as batch systems send it: the state is saved and the exit is clean.
    with subprocess.Popen([*words, "--resume"], **pipes, start_new_session=True) as process:
        wait_for_step(broken, killed_at + 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "SIGTERM" in out and "--resume" in out
    assert json.loads((broken / "state" / "state.json").read_bytes())["step"] < 12
    done = subprocess.run(command(out=broken, resume=True), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_same_weights(broken, tmp_path / "whole")
    assert_same_weights(broken, tmp_path / "whole", "best")
    rows = [
        list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (broken, tmp_path / "whole")
    ]
    timed = ("train_seconds", "data_wait_seconds", "val_seconds")
    assert [{k: v for k, v in r.items() if k not in timed} for r in rows[0]] == [
        {k: v for k, v in r.items() if k not in timed} for r in rows[1]
    ]
