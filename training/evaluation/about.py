"""What an evaluation was made of: command, data, model, machine and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agssp_zoo.machine import machine
from agssp_zoo.machine import versions as installed

__all__ = ["PACKAGES", "About", "machine", "versions"]

PACKAGES = ("agssp-zoo", "numpy", "onnxruntime", "torch", "torchvision", "faster-coco-eval")


@dataclass(frozen=True)
class About:
    """Everything needed to repeat an evaluation; empty where unknown.

    Attributes:
        command: the command line.
        created: date and time, ISO 8601 with time zone.
        data: path of the data set.
        data_fingerprint: of all its records.
        split: which part was evaluated.
        unreadable: keys of the images of that part that cannot be read and were left out.
        model: the model's name.
        model_path: where it was loaded from.
        model_file: the file with the weights.
        model_sha256: SHA-256 of that file.
        engine: the engine that ran it.
        device: where it ran.
        settings: everything that was chosen: size, batch, thresholds.
        ms_per_image: wall-clock time of an image from array to detections (reading the file not counted), in ms.
        ms_per_stage: mean time of each stage as the detector states it, in ms.
        machine: processor, cores, system.
        versions: package -> version.
    """

    command: str = ""
    created: str = ""
    data: str = ""
    data_fingerprint: str = ""
    split: str = ""
    unreadable: Sequence[str] = ()
    model: str = ""
    model_path: str = ""
    model_file: str = ""
    model_sha256: str = ""
    engine: str = ""
    device: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    ms_per_image: float | None = None
    ms_per_stage: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for metrics.json."""
        data: dict[str, Any] = {"path": self.data, "split": self.split, "fingerprint": self.data_fingerprint}
        if self.unreadable:
            data["unreadable"] = list(self.unreadable)
        return {
            "ms_per_image": self.ms_per_image,
            "ms_per_stage": dict(self.ms_per_stage),
            "model": {
                "name": self.model,
                "path": self.model_path,
                "file": self.model_file,
                "sha256": self.model_sha256,
            },
            "data": data,
            "engine": self.engine,
            "device": self.device,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "command": self.command,
            "created": self.created,
        }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on the figures, as far as they are installed."""
    return installed(PACKAGES)
