"""What every engine that reads ONNX files goes by: the contract of our files, and how many threads to use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import EngineError

CONTRACT_VERSION = 1
"""The newest contract of inputs and outputs that this version runs."""


def read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[str, ModelConfig]:
    """What a file holds, ``"detections"``, ``"raw"`` or ``"features"``, and its config.

    Args:
        path: the file, for messages.
        metadata: the file's.

    Raises:
        EngineError: it is none of ours, or of a newer contract.
        ConfigError: its config is wrong.
    """
    if "config" not in metadata or "contract_version" not in metadata:
        raise EngineError(f"{path} is not an ONNX file of agssp-zoo; make one with `agssp-zoo export`.")
    version = metadata["contract_version"]
    if not version.isdecimal() or int(version) > CONTRACT_VERSION:
        raise EngineError(
            f"{path} follows contract {version} of inputs and outputs, newer than this installation "
            f"({CONTRACT_VERSION}); run `pip install -U agssp-zoo`."
        )
    config = ModelConfig.from_json(metadata["config"], where=f"{path}: config")
    return metadata.get("outputs", "features" if config.task == "backbone" else "detections"), config


def check_same_model(path: Path, own: ModelConfig, config: ModelConfig) -> None:
    """Raises EngineError where a folder's config contradicts a file's.

    Names, sizes and thresholds of a folder's config may be changed; what the graph has in it may not.
    """
    for what, in_file, in_config in (
        ("architecture", own.architecture, config.architecture),
        ("options", json.dumps(dict(own.options), sort_keys=True), json.dumps(dict(config.options), sort_keys=True)),
        ("number of classes", len(own.class_names), len(config.class_names)),
        ("preprocess.mean", own.preprocess.mean, config.preprocess.mean),
        ("preprocess.std", own.preprocess.std, config.preprocess.std),
    ):
        if in_file != in_config:
            raise EngineError(
                f"{path} was exported with {what} {in_file}, but the folder's config.json says {in_config}; "
                "export it again with `agssp-zoo export`."
            )


def thread_count() -> int:
    """How many threads to use; 0 leaves it to the engine, which takes one a physical core.

    The engines overlook what everyone else heeds: OMP_NUM_THREADS, and a process bound to some of the cores, whose
    surplus threads would wait for each other, spinning.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal():
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        mine = len(os.sched_getaffinity(0))
        if mine < (os.cpu_count() or 1):
            return mine
    return 0
