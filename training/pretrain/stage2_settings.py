"""Every setting of stage 2: those of fine-tuning, with images, their maps and a rule for boxes in place of labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agssp_zoo.errors import SettingError

from ..anomaly.boxes import BoxSettings
from ..settings import TrainSettings, setting

HIDDEN = ("data", "train_split", "val_split", "freeze", "tile", "overlap", "tile_empty", "turn_classes")
"""Settings of fine-tuning that stage 2 sets itself, or has no use for."""
BOXES_FOLDER = "boxes"
"""Where a run keeps its pseudo-boxes."""
RATES = {"cspdarknet": 0.01}
"""The authors' learning rates of sgd, by the beginning of the backbone's name; 0.0025 for the others."""


@dataclass(frozen=True)
class DetectorSettings(TrainSettings):
    """What the pretraining of a detector is made of; see :class:`TrainSettings` for units.

    Raises:
        SettingError: a value out of range.
        InvalidArgumentError: a value out of range in the rule for boxes.
    """

    images: tuple[str, ...] = setting((), "folders of images, or of shards; labels are not looked at")
    exclude: str = setting("", "text file of the names of images to leave out, one a line")
    split: str = setting("all", "images to learn from: all below the folders, or one split of labelled data")
    maps: str = setting("", "folder of the images' anomaly maps, as `agssp-zoo anomaly-maps` writes it")
    quantile: float | None = setting(
        None, "boxes: a threshold for each image, this quantile of its pixels, instead of one for each data set"
    )
    margin: float = setting(
        0.1, "boxes: a data set's threshold is the mean over its images of the map's maximum, minus this"
    )
    most: int = setting(10, "boxes: an image has at most so many, the best")
    iou: float = setting(0.8, "boxes: of two that overlap by more than this the worse is dropped")
    empty: Literal["drop", "keep"] = setting(
        "drop",
        "images without a box: drop: they are left out, as a map below its data set's threshold is no proof of a sound "
        "image; keep: they show what is no anomaly",
    )
    thaw: int = setting(0, "last stages of the backbone that learn, too; 0: the whole backbone is frozen")

    size: int = setting(640, "longer side of the network's input")
    format: str = setting("auto", "format of the data; auto recognises it")
    out: str = setting("runs/detector", "folder of this run: settings, boxes, metrics, state, last and best model")
    weights: Literal["auto", "none"] = setting("none", "weights of the detector: none: random; auto: the model's")
    backbone_weights: str = setting("", "model folder or name of the backbone, as `pretrain-backbone` leaves it")
    val_fraction: float = setting(
        0.05, "share of the images, drawn by the seed, that is held out; scores are measured on its pseudo-boxes"
    )
    epochs: int = setting(10, "passes over the training images")
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "sgd with Nesterov momentum, as the authors; or adamw")
    lr: float | None = setting(
        None, "learning rate after warm-up; left out: for sgd 0.01 (cspdarknet) or 0.0025, for adamw 0.001"
    )
    warmup: float = setting(1.0, "epochs over which the learning rate rises from 0")
    close_mosaic: int = setting(2, "last epochs without mosaic")
    nms_iou: float | None = setting(
        None,
        "of two found boxes that overlap by more than this IoU the better one stays, in validation and in the finished "
        "model; left out: the model's own",
    )
    report: bool = setting(
        False, "measure the best model on the held-out images at the end and write val/report.html", runtime=True
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.val_fraction < 1.0:  # before fine-tuning's rule, which allows 0
            raise SettingError(f"--val-fraction is {self.val_fraction}; it must lie between 0 and 1.")
        super().__post_init__()
        if not self.size:
            raise SettingError("--size is 0; it must be at least 32.")
        _ = self.rule
        if self.thaw < 0:
            raise SettingError(f"--thaw is {self.thaw}; it must not be negative.")

    @property
    def rule(self) -> BoxSettings:
        """How boxes are made of maps."""
        return BoxSettings(quantile=self.quantile, margin=self.margin, most=self.most, iou=self.iou)

    def settled_for(
        self,
        precision: Literal["no", "bf16", "fp16"],
        backbone: str,
        stages: tuple[str, ...],
        suits: Mapping[str, Mapping[str, float]] | None = None,
    ) -> DetectorSettings:
        """The same settings without anything left to be chosen, and with what fine-tuning calls things.

        Args:
            precision: what ``auto`` stands for.
            backbone: architecture of the backbone.
            stages: names of its stages.
            suits: what suits the detector, by optimizer; see :meth:`TrainSettings.settled`.

        Raises:
            SettingError: more stages are to learn than there are.
        """
        if self.thaw > len(stages):
            raise SettingError(f"--thaw {self.thaw}: {backbone} has {len(stages)} stages ({', '.join(stages)}).")
        chosen: dict[str, Any] = {name: self.chosen(name) for name in ("lr", "momentum", "weight_decay")}
        if self.lr is None and self.optimizer == "sgd":
            chosen["lr"] = next((rate for name, rate in RATES.items() if backbone.startswith(name)), 0.0025)
        for name, value in (suits or {}).get(self.optimizer, {}).items():
            if getattr(self, name) is None:
                chosen[name] = value
        return dataclasses.replace(
            self,
            precision=precision,
            freeze=len(stages) - self.thaw,
            data=str(Path(self.out) / BOXES_FOLDER),
            **chosen,
        )
