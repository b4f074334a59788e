"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import write_folder


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub on the loopback interface."""
    with HubServer() as server:
        yield server


@pytest.fixture
def tiny_config() -> ModelConfig:
    """The config of a detector with two classes; nobody builds it."""
    return ModelConfig(name="yolov8_s.agssp", architecture="yolov8_s", task="detector", class_names=("pit", "scratch"))


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """A model folder whose safetensors file is whole but holds one small tensor."""
    return write_folder(tmp_path / "tiny", tiny_config, {"model.safetensors": write_safetensors})


def write_safetensors(path: Path, size: int = 4000) -> None:
    """Writes a safetensors file with one tensor of ``size`` bytes."""
    header = b'{"weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    data = bytes(i * 37 % 251 for i in range(251)) * (size // 251 + 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[:size])
