"""What a step of stage 1 costs against a bare forward and backward pass of the same shapes, and what a view costs."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.common import WORK, Figure, time_in_turns

if TYPE_CHECKING:
    from agssp_zoo.training.pretrain.stage1 import Pretrainer

IMAGES = 192
BATCH = 32
SIZE = 224


def step(rounds: int) -> list[Figure]:
    """A whole step (normalising, losses, optimizer) against the backbone's forward and backward pass alone."""
    import torch

    from agssp_zoo.training.devices import cpu_has_bf16

    figures = []
    for precision in ("no", "bf16") if cpu_has_bf16() else ("no",):
        with _pretrainer(precision) as trainer:
            batch = next(iter(trainer.loader))
            trainer.network.train()
            backbone = trainer.module.backbone
            x = backbone.normalize(batch.images)

            def bare(trainer: Pretrainer = trainer, x: torch.Tensor = x) -> None:
                with trainer.accelerator.autocast():
                    maps = trainer.module.stages(x)
                # As many numbers come back as in training, through the stages that are tapped.
                torch.autograd.backward([maps[2].float().sum(), maps[3].float().sum()])
                trainer.optimizer.zero_grad(set_to_none=True)

            def whole(trainer: Pretrainer = trainer, batch: Any = batch) -> None:
                trainer.set_rates()
                trainer._step(batch, last=True)

            taken = time_in_turns({"bare": bare, "step": whole}, max(3, rounds))
        ratio = taken["step"] / taken["bare"]
        kind = "float32" if precision == "no" else precision
        note = (
            f"cspdarknet_n, {BATCH} images of {SIZE} px: {taken['step'] * 1e3:.0f} against {taken['bare'] * 1e3:.0f} "
            f"ms, {BATCH / taken['step']:.0f} images/s on one core"
        )
        figures.append(
            Figure(f"pretraining step against forward and backward, {kind}", ratio, "x", limit=1.1, note=note)
        )
    return figures


def loader(rounds: int) -> list[Figure]:
    """CPU time of drawing a view, in the process that prepares images."""
    with _pretrainer("no") as trainer:
        samples = trainer.loader.dataset

        def draw() -> None:
            for place in range(IMAGES):
                samples[0, place]

        taken = time_in_turns({"draw": draw}, max(3, rounds))
    milliseconds = taken["draw"] / IMAGES * 1e3
    return [Figure("preparing a view", milliseconds, "ms", note=f"{SIZE} px, gray images of 200x200 and their maps")]


@contextlib.contextmanager
def _pretrainer(precision: Literal["no", "bf16"]) -> Iterator[Pretrainer]:
    """A trainer of the CPU recipe on drawn surfaces."""
    import torch

    from agssp_zoo.training.devices import build_accelerator
    from agssp_zoo.training.pretrain.pool import read_pool
    from agssp_zoo.training.pretrain.recipes import with_recipe
    from agssp_zoo.training.pretrain.settings import PretrainSettings
    from agssp_zoo.training.pretrain.stage1 import Pretrainer
    from agssp_zoo.training.pretrain.start import build_backbone

    torch.set_num_threads(1)
    images, maps = _data()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        given: dict[str, Any] = {"recipe": "cspdarknet_cpu", "images": (str(images),), "maps": str(maps), "out": out}
        more: dict[str, Any] = {"batch": BATCH, "size": SIZE, "workers": 0, "device": "cpu", "pictures": 0}
        settings = PretrainSettings(**with_recipe({**given, **more, "precision": precision}))
        yield Pretrainer(settings, read_pool(settings), build_backbone(settings), build_accelerator(settings), {})


def _data() -> tuple[Path, Path]:
    """Drawn surfaces of two names, and the cells where their defects are as anomaly maps. Made once."""
    import numpy as np
    from PIL import Image

    from agssp_zoo.training.anomaly.writer import MapWriter
    from agssp_zoo.training.data.unlabelled import read_images
    from agssp_zoo.training.synthetic import draw_sample

    images, maps = WORK / "pool", WORK / "pool-maps"
    if not (maps / "store.json").is_file():
        grids = {}
        for number in range(IMAGES):
            sample = draw_sample(number, seed=0, size=(200, 200), style="neu")
            key = f"{'first' if number % 2 else 'second'}/{number:04d}"
            (images / key).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(images / f"{key}.jpg", quality=95)
            grid = np.zeros((16, 16), np.float32)
            for x1, y1, x2, y2 in (sample.boxes * (16 / 200)).astype(int).tolist():
                grid[y1 : y2 + 1, x1 : x2 + 1] = 1
            grids[key] = grid
        pool = read_images(images)
        writer = MapWriter(maps, pool, {"method": "boxes"}, True)
        stacked = np.stack([grids[record.key] for record in pool])
        writer.write(list(range(len(pool))), stacked, stacked.max((1, 2)))
        writer.finish()
    return images, maps


if __name__ == "__main__":
    started = time.monotonic()
    for figure in (*step(5), *loader(3)):
        print(figure)
    print(f"{time.monotonic() - started:.0f} s")
