"""DINO through the same commands as every detector: fine-tuning, stage 2, rates, other classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_runs import QUICK
from pretrain_runs import write_maps, write_pool
from test_dino import SMALL as OPTIONS
from training_runs import NAMES, SMALL, rows, write_data

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

import agssp_zoo  # noqa: E402
from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import TrainingError  # noqa: E402
from agssp_zoo.folder import write_folder  # noqa: E402
from agssp_zoo.training.families import family_of  # noqa: E402
from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.optimizer import build_optimizer, set_rates  # noqa: E402
from agssp_zoo.training.pretrain.stage2_cli import pretrain_detector  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.transfer import build_start  # noqa: E402

STILL: dict[str, Any] = {
    "mosaic": 0.0, "scale": 0.0, "translate": 0.0, "flip_lr": 0.0, "flip_ud": 0.0, "brightness": 0.0, "contrast": 0.0,
    "saturation": 0.0, "hue": 0.0,
}  # fmt: skip
"""No augmentation."""


def save(module: models.ZooModule, folder: Path) -> Path:
    config = module.config
    return write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small network: its config makes it small."""
    torch.manual_seed(0)
    config = models.default_config("dino_swin_b", class_names=("a",), options=OPTIONS)
    return save(models.build(config), tmp_path_factory.mktemp("models") / "dino")


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_it_learns_eight_images_by_heart(small: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=8, val=8)
    for kind in ("images", "labels"):
        shutil.rmtree(data / kind / "val")
        shutil.copytree(data / kind / "train", data / kind / "val")
    settings = {
        **SMALL, **STILL, "model": str(small), "batch": 8, "epochs": 80, "val_every": 80, "lr": 0.002, "warmup": 10.0,
        "clip_norm": 1.0, "close_mosaic": 0, "ema_decay": 0.0,
    }  # fmt: skip
    assert finetune(data=str(data), out=str(tmp_path / "run"), **settings).finished
    first, last = rows(tmp_path / "run")[0], rows(tmp_path / "run")[-1]
    assert {"box_loss", "cls_loss", "giou_loss"} <= last.keys() and float(last["loss"]) < 0.4 * float(first["loss"])
    assert ModelConfig.load(tmp_path / "run" / "best").provenance["metrics"]["map50"] > 0.95
    detector = agssp_zoo.load_detector(tmp_path / "run" / "best", engine="pytorch")
    (found,) = detector.predict(data / "images" / "train" / "1.png", conf=0.3)
    assert found.names == NAMES and found.labels[0] == 1


def test_stage_2_trains_all_but_the_backbone(small: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 4)
    write_maps(tmp_path / "pool", tmp_path / "maps")
    options = {key: OPTIONS[key] for key in ("embed_dim", "depths", "heads")}
    torch.manual_seed(4)
    backbone = models.build(models.default_config("swin_b_simmim", options=options))
    save(backbone, tmp_path / "backbone")
    settings = {
        **QUICK, "images": str(tmp_path / "pool"), "maps": str(tmp_path / "maps"), "val_fraction": 0.25, "margin": 0.4,
        "backbone_weights": str(tmp_path / "backbone"), "model": str(small), "optimizer": "adamw", "epochs": 1,
        "precision": "bf16",
    }  # fmt: skip
    assert pretrain_detector(out=str(tmp_path / "run"), **settings).finished
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (record["settings"]["lr"], record["settings"]["weight_decay"]) == (1e-4, 1e-4)  # what suits DINO
    before, after = load_file(small / "model.safetensors"), load_file(tmp_path / "run" / "last" / "model.safetensors")
    own = {f"backbone.{name}": value for name, value in load_file(tmp_path / "backbone" / "model.safetensors").items()}
    # The first convolution is rewritten for the detector's pixels.
    same = {name for name in own if torch.equal(own[name], after[name])}
    assert own.keys() - same <= {"backbone.stem.proj.weight", "backbone.stem.proj.bias"}
    assert all(value.isfinite().all() for value in after.values()) and before.keys() == after.keys()


def test_the_backbone_has_a_rate_of_its_own() -> None:
    module = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    settings = TrainSettings(data="x", lr=1e-3, warmup=0.0, schedule="linear", final_lr=1.0)
    optimizer = build_optimizer(module, settings, backbone_lr=0.1)
    assert set_rates(optimizer, 0, 5, settings) == pytest.approx(1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(module["backbone"].weight)] == rates[id(module["backbone"].bias)] == pytest.approx(1e-4)
    assert rates[id(module["head"].weight)] == rates[id(module["head"].bias)] == pytest.approx(1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0, 0.02, 0.0]
    one = build_optimizer(module, settings)
    assert len(one.param_groups) == 2


def test_what_suits_it_is_taken_where_nothing_is_said() -> None:
    suits = {"adamw": {"lr": 1e-4, "weight_decay": 1e-4}}
    settled = TrainSettings(data="x").settled("no", suits)
    assert (settled.lr, settled.weight_decay, settled.momentum) == (1e-4, 1e-4, 0.9)
    assert TrainSettings(data="x", lr=3e-4).settled("no", suits).lr == 3e-4
    assert TrainSettings(data="x", optimizer="sgd").settled("no", suits).lr == 0.01
    assert TrainSettings(data="x").settled("no").lr == 0.001


def test_other_classes_begin_anew_and_settings_of_another_loss_are_refused(small: Path) -> None:
    start = build_start(TrainSettings(data="x", model=str(small)), NAMES)
    assert start.left and all(name.startswith(("head.class_layers.", "head.label_embedding.")) for name in start.left)
    assert len(start.left) == 2 * 3 + 1  # weights and biases of two layers and of the proposals
    family = family_of(start.module)
    for name in ("box_weight", "cls_weight", "dfl_weight", "cls_pw"):
        settings = TrainSettings(data="x", **{name: 0.7})
        with pytest.raises(TrainingError, match=f"--{name.replace('_', '-')} is of the YOLOv8 detectors' loss"):
            family.build_loss(start.module, settings, np.array([1, 1]))
