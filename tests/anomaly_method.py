"""A method of anomaly maps that costs nothing: how far each cell's gray is from the image's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agssp_zoo.training.anomaly import AnomalyMethod
from agssp_zoo.training.anomaly.settings import MapSettings

SIZE, GRID = 32, 4


class Gray(AnomalyMethod):
    """Distance of a cell's gray to the mean of the image, plus what was learnt of the pool.

    ``object`` chooses a variant: ``pool`` looks at the pool, ``normal`` at normal images, ``slow`` takes its time,
    ``nan`` fails on dark images. What was looked at, by its folder, and made is noted in ``$AGSSP_TEST_LOG``;
    ``$AGSSP_TEST_SLOW`` says whether ``preparing`` or ``making`` takes its time.
    """

    name = "gray"

    def __init__(self, options: MapSettings) -> None:
        self.kind = options.object
        self.learnt = torch.zeros(())
        if self.kind == "pool":
            self.prepares_on = "images"
        if self.kind == "normal":
            self.prepares_on = "normal"

    def to(self, device: torch.device) -> None:
        self.learnt = self.learnt.to(device)

    def preprocess(self, image: np.ndarray) -> Tensor:
        large = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        return torch.nn.functional.interpolate(large, (SIZE, SIZE), mode="bilinear", antialias=True)[0]

    def settings(self) -> dict[str, Any]:
        return {"size": SIZE, "kind": self.kind if self.kind != "slow" else ""}

    def prepare(self, loader: Any, images: Any) -> None:
        folders = sorted({record.key.rpartition("/")[0].partition("/")[0] for record in images})
        note(" ".join(["prepare", *filter(None, folders)]))
        if os.environ.get("AGSSP_TEST_SLOW") == "preparing":
            time.sleep(0.5)
        batches = list(loader(range(len(images))))
        assert sum(len(batch) for batch in batches) == len(images)
        self.learnt = torch.cat(batches).mean()

    def state(self) -> dict[str, Tensor]:
        return {"learnt": self.learnt}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.learnt = state["learnt"]

    def notes(self) -> tuple[str, ...]:
        return (f"mean gray {float(self.learnt):.3f}",) if self.kind == "pool" else ()

    def maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "slow" or os.environ.get("AGSSP_TEST_SLOW") == "making":
            time.sleep(0.2)
        note(f"maps {len(batch)}")
        cells = torch.nn.functional.adaptive_avg_pool2d(batch.mean(1), GRID)
        maps = (cells - cells.mean((1, 2), keepdim=True)).abs() + self.learnt
        if self.kind == "nan":
            maps[batch.mean((1, 2, 3)) < 20] = torch.nan
        return maps, maps.amax((1, 2))


def note(text: str) -> None:
    log = os.environ.get("AGSSP_TEST_LOG")
    if log:
        with Path(log).open("a") as stream:
            stream.write(text + "\n")


def build(options: MapSettings) -> Gray:
    return Gray(options)


def register() -> None:
    """Makes the method known as ``gray``, and as ``gray2`` for stores of two parts."""
    from agssp_zoo.training.anomaly import methods

    methods.METHODS.update(gray="anomaly_method", gray2="anomaly_method")


if __name__ == "__main__":
    from agssp_zoo.training.anomaly import maps_cli

    register()
    raise SystemExit(maps_cli.main())
