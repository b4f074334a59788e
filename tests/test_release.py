"""Releasing a trained model: what is stored, what the card says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detector_runs import write_backbone
from training_runs import write_data

import agssp_zoo
from agssp_zoo import models
from agssp_zoo.card import read_header
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.folder import ModelFolder, read_checksums, write_folder
from agssp_zoo.training.release import main, release


def write_detector(folder: Path) -> Path:
    config = models.default_config("yolov8_n").replace(
        name="yolov8_n", class_names=("dark", "bright"), provenance={"license": "apache-2.0", "settings": {"lr": 1}}
    )
    torch.manual_seed(3)
    module = models.build(config)
    return write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)})


def test_a_backbone_has_no_scores_but_says_what_storing_changes(tmp_path: Path) -> None:
    backbone, out = write_backbone(tmp_path / "run"), tmp_path / "cspdarknet_n.agbp"
    words = [str(backbone), "--name", out.name, "--out", str(out), "--datasets", "Drawn", "--no-onnx"]
    (tmp_path / "notes.md").write_text("## Limits\n\nNone known.\n")
    assert main([*words, "--trained-by", "agssp-zoo pretrain-backbone", "--notes", str(tmp_path / "notes.md")]) == 0
    folder = ModelFolder.open(out)
    assert folder.config.name == out.name and not folder.has("model.onnx")
    assert folder.file("model.safetensors").stat().st_size < 0.52 * (backbone / "model.safetensors").stat().st_size
    card = (out / "README.md").read_text()
    assert "by at most" in card and "None known." in card and "agssp-zoo pretrain-backbone" in card
    assert read_header(out / "README.md")["datasets"] == ["drawn"]
    image = torch.rand(1, 3, 64, 64)
    wanted, got = (agssp_zoo.load_backbone(str(path))(image) for path in (backbone, out))
    for one, other in zip(wanted, got, strict=True):
        assert 0 < (one - other).norm() < 0.01 * one.norm()
    with pytest.raises(InvalidArgumentError, match="leave --data out"):
        release(backbone, tmp_path / "again", name="cspdarknet_n", data=tmp_path)
    for name in ("yolov8_n.mine", "cspdarknet_n.", "cspdarknet_n.a/b", ""):
        with pytest.raises(InvalidArgumentError, match=r"is a cspdarknet_n; give cspdarknet_n\.TAG"):
            release(backbone, tmp_path / "again", name=name)
    with pytest.raises(InvalidArgumentError, match="no model folder"):
        release(backbone, tmp_path, name="cspdarknet_n.mine")
    (tmp_path / "link").symlink_to(backbone)
    with pytest.raises(InvalidArgumentError, match="as trained, which would be lost"):
        release(backbone, tmp_path / "link", name="cspdarknet_n.mine")


def test_a_detector_is_measured_as_trained_and_as_released(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data", 2, 2), tmp_path / "yolov8_n.scratch"
    figures = release(
        write_detector(tmp_path / "run"), out, name=out.name, data=data, trained_by=("agssp-zoo finetune",)
    )
    assert set(figures) == {"map50", "map75", "map50_95"}
    config = ModelFolder.open(out).config
    assert config.provenance["metrics"] == figures and "settings" not in config.provenance
    assert config.provenance["license"] == "apache-2.0"
    card = (out / "README.md").read_text()
    assert "| | released (float16 matrices, onnx) | as trained (float32, pytorch) |" in card.replace(
        "PyTorch", "pytorch"
    )
    found = agssp_zoo.load_detector(str(out), engine="onnx").predict(str(data / "images" / "val" / "0.png"), conf=0.0)
    assert len(found[0])
    before = read_checksums(out)
    with pytest.raises(DataError):
        release(tmp_path / "run", out, name=out.name, data=tmp_path / "none", onnx=False)
    assert read_checksums(out) == before, "what was released stays until there is something better"
