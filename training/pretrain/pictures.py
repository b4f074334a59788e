"""Pictures of a few images: their anomaly maps, and where the backbone responded before and after the pretraining."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agssp_zoo.models import Backbone

from .activation import squared_activation
from .pool import ImageCache, Pool
from .settings import PretrainSettings
from .views import Window, crop_image

BEFORE = "activations.npz"
PICTURE = "activations.png"
STEP = 32
"""Sides of the images that are measured are multiples of this: the largest stride of a backbone."""


def choose_images(pool: Pool, count: int) -> list[int]:
    """Indices of the images to draw: of every data set in turn the one with the highest image score left."""
    scores = np.array([pool.maps.score(record.key) for record in pool.images])
    names = np.array(pool.sources)
    members = [np.flatnonzero(names == name) for name in pool.counts]
    ranked = [rows[np.argsort(-scores[rows], kind="stable")] for rows in members]
    return [int(rows[turn]) for turn in range(max(map(len, ranked))) for rows in ranked if turn < len(rows)][:count]


class ActivationPictures:
    """Draws ``activations.png`` of a run: image, anomaly map, activations before and after.

    Args:
        folder: the run's.
        pool: images and maps.
        cache: the decoded images.
        settings: of the run.
    """

    def __init__(self, folder: Path, pool: Pool, cache: ImageCache, settings: PretrainSettings) -> None:
        self.folder = folder
        self.pool = pool
        self.settings = settings
        self.images: list[NDArray[np.uint8]] = []
        self.keys: list[str] = []
        for index in choose_images(pool, settings.pictures) if settings.pictures else ():
            stored = cache.load(index)
            image = crop_image(stored, Window(), self._shape(stored.shape[0], stored.shape[1]))
            self.images.append(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image)
            self.keys.append(pool.images[index].key)

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is shown with: about ``size`` squared pixels, multiples of the strides."""
        if self.settings.aspect == "square":
            return self.settings.size, self.settings.size
        ratio = math.sqrt(height / width)
        down, across = (
            max(round(side / STEP), 1) * STEP for side in (self.settings.size * ratio, self.settings.size / ratio)
        )
        return down, across

    def keep_before(self, backbone: Backbone, *, goes_on: bool = False) -> None:
        """Keeps the activations of the backbone that the run starts from.

        Args:
            backbone: as the run starts from it.
            goes_on: the run has a state, so what an earlier sitting has kept of these images serves again. What a run
                has left that never saved one may be of other images or weights.
        """
        if not self.images or (goes_on and self._has_before(backbone)):
            return
        temporary = self.folder / f".{BEFORE}.tmp"
        maps: dict[str, Any] = {
            f"{name}.{row}": values for name, rows in self._measure(backbone).items() for row, values in enumerate(rows)
        }
        with temporary.open("wb") as file:
            np.savez_compressed(file, **maps)
        temporary.replace(self.folder / BEFORE)

    def _has_before(self, backbone: Backbone) -> bool:
        """Whether activations of all the images are kept; --pictures may be another number when a run goes on."""
        try:
            with np.load(self.folder / BEFORE) as stored:
                known = set(stored.files)
        except (OSError, ValueError, zipfile.BadZipFile):
            return False
        names = [backbone.stage_info[number - 1].name for number in self.settings.taps]
        return all(f"{name}.{row}" in known for name in names for row in range(len(self.images)))

    def draw(self, backbone: Backbone) -> Path | None:
        """Draws the picture; ``None`` without images or without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return None
        if not self.images or not (self.folder / BEFORE).is_file():
            return None
        after = self._measure(backbone)
        with np.load(self.folder / BEFORE) as stored:
            before = {name: [stored[f"{name}.{row}"] for row in range(len(self.images))] for name in after}
        columns = ["image", "anomaly map", *(f"{name} {when}" for name in after for when in ("before", "after"))]
        rows = len(self.images)
        figure = Figure(figsize=(1.7 * len(columns), 1.75 * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, len(columns), squeeze=False)
        for row, (image, key) in enumerate(zip(self.images, self.keys, strict=True)):
            maps: list[Any] = [self.pool.maps.probability(key)]
            maps += [source[name][row] for name in after for source in (before, after)]
            axes[row][0].imshow(image)
            axes[row][0].set_ylabel(key[-24:], fontsize=6, parse_math=False)  # "$" is a letter of a file's name
            height, width = image.shape[:2]
            for axis, values in zip(axes[row][1:], maps, strict=True):
                axis.imshow(values, cmap="inferno", extent=(0, width, height, 0))
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title, fontsize=8)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        temporary = self.folder / f".{PICTURE}.tmp"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph ")  # of letters that matplotlib's font has not: boxes stand there
            FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]
        temporary.replace(self.folder / PICTURE)
        return self.folder / PICTURE

    @torch.no_grad()
    def _measure(self, backbone: Backbone) -> dict[str, list[NDArray[np.float32]]]:
        """Squared activations of the tapped stages, (H, W) of each image, the backbone running as it will be used."""
        training, indices = backbone.training, backbone.out_indices
        backbone.eval()
        backbone.set_out_indices([number - 1 for number in self.settings.taps])
        found = []
        for image in self.images:
            x = backbone.normalize(torch.tensor(image[None]).to(backbone.pixel_mean.device))
            found.append([squared_activation(feature)[0, 0].cpu().numpy() for feature in backbone(x)])
        names = [info.name for info in backbone.feature_info]
        backbone.set_out_indices(indices)
        backbone.train(training)
        return {name: [maps[number] for maps in found] for number, name in enumerate(names)}
