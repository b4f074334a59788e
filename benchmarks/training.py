"""What training costs: preparing the images, the loss, and an epoch against another package's."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.common import ROOT, WORK, Figure, other_python, other_settings, single_threaded, time_in_turns

if TYPE_CHECKING:
    from agssp_zoo.training.loader import Batch
    from agssp_zoo.training.trainer import Trainer

IMAGES = 160
BATCH = 16
SIZE = 256
STEPS = IMAGES // BATCH
OTHER = """
import sys, time
from ultralytics import YOLO
data, steps, size, batch, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
ends = []
def note(trainer):
    ends.append(time.process_time())
    if len(ends) > steps:
        print("\\ntimes", *[b - a for a, b in zip(ends, ends[1:])], flush=True)
        import os
        os._exit(0)
model = YOLO("yolov8n.yaml")
model.add_callback("on_train_batch_end", note)
model.train(data=data, imgsz=size, batch=batch, epochs=100, device="cpu", workers=1, optimizer="AdamW", lr0=0.001,
            amp=False, deterministic=False, plots=False, val=False, save=False, verbose=False, project=out)
"""


def loader(rounds: int) -> list[Figure]:
    """The training loop with images prepared by one process, against the same loop on batches that lie ready."""
    with _trainer(workers=1) as trainer:
        through_loader = trainer.loader
        trainer.plan.start(0)
        ready: list[Batch] = list(through_loader)

        def run(batches: Any) -> None:
            trainer.loader = batches
            trainer.train_epoch()
            trainer.position.epoch = 0  # the same samples again

        taken = time_in_turns({"ready": lambda: run(ready), "loader": lambda: run(through_loader)}, max(3, rounds // 2))
        drawn = _draw_seconds(trainer)
    # Were every process alone on its core, the loop would wait for whichever takes longer.
    per_step = max(taken["loader"] / STEPS, drawn)
    ready_ms, loader_ms = (taken[name] / STEPS * 1e3 for name in ("ready", "loader"))
    note = (
        f"a step of {BATCH} images of {SIZE} px takes {ready_ms:.0f} ms, {loader_ms:.0f} ms with the loader, whose "
        f"process draws them in {drawn * 1e3:.0f} ms"
    )
    return [
        Figure("training loop against batches that lie ready", per_step * STEPS / taken["ready"], "x", 1.15, note=note)
    ]


def loss(rounds: int) -> list[Figure]:
    """Assigner and loss, forward and backward, as a part of a training step; and what bfloat16 saves."""
    import torch

    from agssp_zoo.training.devices import cpu_has_bf16

    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(_trainer(workers=0))
        trainer.plan.start(0)
        batch = next(iter(trainer.loader))
        trainer.network.train()
        with torch.no_grad():
            raw = trainer.network(trainer.module.normalize(batch.images))
        leaves = [tuple(part.detach().requires_grad_() for part in level) for level in raw]

        def only_loss() -> None:
            trainer.loss(leaves, batch.targets).total.backward()

        jobs: dict[str, Any] = {"step": lambda: trainer._step(batch, last=True), "loss": only_loss}
        if cpu_has_bf16():
            half = stack.enter_context(_trainer(workers=0, precision="bf16"))
            half.network.train()
            jobs["half"] = lambda: half._step(batch, last=True)
        taken = time_in_turns(jobs, max(rounds, 9))
    boxes = int(batch.targets.mask.sum())
    figures = [
        Figure(
            "assigner and loss in a training step",
            100 * taken["loss"] / taken["step"],
            "%",
            note=f"{taken['loss'] * 1e3:.0f} of {taken['step'] * 1e3:.0f} ms, {boxes} boxes on {BATCH} images",
        )
    ]
    if "half" in taken:
        note = f"{taken['half'] * 1e3:.0f} ms a step against {taken['step'] * 1e3:.0f} ms in float32"
        figures.append(Figure("training step in bf16 against float32", taken["half"] / taken["step"], "x", note=note))
    return figures


def epoch(rounds: int) -> list[Figure]:
    """A training step against ultralytics', on the same images with the same sizes; both draw them in one process."""
    python = other_python()
    ours, other = [], []
    for _ in range(max(2, rounds // 2)):
        with _trainer(workers=1) as trainer:
            for _ in range(2):  # the first warms up
                started = time.process_time()
                trainer.train_epoch()
                taken = time.process_time() - started
            ours.append(taken / STEPS)
        other += _other_steps(python)[2:]
    mine, theirs = statistics.median(ours), statistics.median(other)
    what = f"a step of {BATCH} images of {SIZE} px, CPU time of the training process"
    note = f"{what}: {mine * 1e3:.0f} against {theirs * 1e3:.0f} ms"
    return [Figure("training epoch against ultralytics", mine / theirs, "x", 1.1, note=note)]


@contextlib.contextmanager
def _trainer(workers: int, precision: Literal["no", "bf16"] = "no") -> Iterator[Trainer]:
    """A trainer of yolov8_n on drawn surfaces, with default settings but for the size."""
    import torch

    from agssp_zoo.training.devices import build_accelerator
    from agssp_zoo.training.finetune import read_splits
    from agssp_zoo.training.settings import TrainSettings
    from agssp_zoo.training.trainer import Trainer
    from agssp_zoo.training.transfer import build_start

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        settings = TrainSettings(
            data=str(_data()),
            out=out,
            weights="none",
            size=SIZE,
            batch=BATCH,
            workers=workers,
            device="cpu",
            warmup=0.0,
            precision=precision,
        )
        train, val = read_splits(settings)
        yield Trainer(settings, train, val, build_start(settings, train.class_names), build_accelerator(settings), {})


def _draw_seconds(trainer: Trainer) -> float:
    """CPU seconds that drawing and stacking a batch takes."""
    from agssp_zoo.training.loader import build_loader

    samples = trainer.loader.dataset
    trainer.plan.start(0)
    started = time.process_time()
    for _ in build_loader(samples, trainer.plan, 0):
        pass
    return (time.process_time() - started) / STEPS


def _other_steps(python: Path) -> list[float]:
    """CPU seconds of the other package's training steps."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [python, "-c", OTHER, str(_data() / "data.yaml"), str(STEPS), str(SIZE), str(BATCH), out],
            env={**single_threaded(), **other_settings()}, cwd=out, capture_output=True, text=True,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("times ")]
    if not lines:
        raise RuntimeError(f"ultralytics does not train: {(done.stderr or done.stdout)[-500:]}")
    return [float(word) for word in lines[-1].split()[1:]]


def _data() -> Path:
    """Drawn surfaces of 200x200 pixels with labels in YOLO's format. Made once."""
    folder = WORK / "surfaces"
    if not (folder / "data.yaml").is_file():
        code = f"from benchmarks.training import write_data; write_data({str(folder)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=dict(os.environ))
    return folder


def write_data(out: str) -> None:
    """Draws the images; data.yaml comes last."""
    from PIL import Image

    from agssp_zoo.training.synthetic import NEU_CLASSES, draw_sample

    folder = Path(out)
    for split, numbers in (("train", range(IMAGES)), ("val", range(IMAGES, IMAGES + BATCH))):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            sample = draw_sample(number, seed=0, size=(200, 200), style="neu")
            Image.fromarray(sample.image).save(folder / "images" / split / f"{number:04d}.jpg", quality=95)
            rows = [
                f"{label} {(x1 + x2) / 400} {(y1 + y2) / 400} {(x2 - x1) / 200} {(y2 - y1) / 200}\n"
                for label, (x1, y1, x2, y2) in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)
            ]
            (folder / "labels" / split / f"{number:04d}.txt").write_text("".join(rows))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NEU_CLASSES))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}")
