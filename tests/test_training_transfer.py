"""A backbone's weights in a detector: the same pixels give the same features, and strides are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dino import SMALL as SMALL_DINO

torch = pytest.importorskip("torch")

from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import Preprocess  # noqa: E402
from agssp_zoo.errors import SettingError, TrainingError  # noqa: E402
from agssp_zoo.folder import write_folder  # noqa: E402
from agssp_zoo.models import Backbone  # noqa: E402
from agssp_zoo.training.data.records import Record  # noqa: E402
from agssp_zoo.training.families import family_of  # noqa: E402
from agssp_zoo.training.renormalize import renormalize  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.transfer import build_start, kept_origin, settle_nms, settle_size  # noqa: E402

UNIT = Preprocess()


def trained(architecture: str, **options: Any) -> Backbone:
    """A backbone whose statistics are not those it was built with."""
    torch.manual_seed(4)
    module = models.build(models.default_config(architecture, options=options))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    assert isinstance(module, Backbone)
    return module.eval()


def folder_of(module: Backbone, folder: Path) -> Path:
    writers = {"model.safetensors": lambda path: models.save_weights(module, path, module.config)}
    return write_folder(folder, module.config, writers)


@pytest.mark.parametrize("architecture", ["cspdarknet_n", "resnet50"])
def test_other_pixels_give_the_same_features(architecture: str) -> None:
    source = trained(architecture)
    old = source.config.preprocess
    assert old.mean != UNIT.mean
    target = models.build(source.config.replace(preprocess=dataclasses.replace(old, mean=UNIT.mean, std=UNIT.std)))
    assert isinstance(target, Backbone)
    tensors = source.state_dict()
    target.load_state_dict(renormalize(target, tensors, old, target.config.preprocess))
    target.eval()
    # At the border zero padding stands for another colour now, so only what lies within is compared.
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        one, two = (m.forward_stem(m.normalize(images)) for m in (source, target))
        plain = target.forward_stem(source.normalize(images))
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(two[inner], one[inner], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain[inner], one[inner], atol=0.1)
    # The way back gives the weights again, and equal pixels change nothing.
    back = renormalize(source, target.state_dict(), target.config.preprocess, old)
    for name, value in tensors.items():
        torch.testing.assert_close(back[name], value, rtol=1e-5, atol=1e-5)
    same = renormalize(source, tensors, old, dataclasses.replace(old, size=(64, 64)))
    assert all(same[name] is value for name, value in tensors.items())


def test_a_detector_takes_its_backbone_s_pixels_and_strides(tmp_path: Path) -> None:
    source = trained("resnet50", v1_strides=True)
    folder = folder_of(source, tmp_path / "resnet")
    settings = TrainSettings(data="x", model="yolov8_resnet50", weights="none", backbone_weights=str(folder))
    module = build_start(settings, ("a",)).module
    assert module.config.options["v1_strides"] is True and module.backbone.layer2[0].conv1.stride == (2, 2)
    assert module.config.preprocess.mean == UNIT.mean
    module.eval()
    image = torch.full((1, 96, 96, 3), 90, dtype=torch.uint8)
    image[:, 40:56, 40:56] = 200
    with torch.no_grad():
        found, expected = (m.forward_stem(m.normalize(image)) for m in (module.backbone, source))
        torch.testing.assert_close(found[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=1e-4, atol=1e-4)


def test_a_detector_with_weights_of_its_own_keeps_its_strides(tmp_path: Path) -> None:
    backbone = folder_of(trained("resnet50", v1_strides=True), tmp_path / "backbone")
    config = models.default_config("yolov8_resnet50", class_names=("a",))
    detector = models.build(config)
    writers = {"model.safetensors": lambda path: models.save_weights(detector, path, config)}
    folder = write_folder(tmp_path / "detector", config, writers)
    with pytest.raises(TrainingError, match=r"was trained with .*v1_strides.* take --weights none"):
        build_start(TrainSettings(data="x", model=str(folder), backbone_weights=str(backbone)), ("a",))
    settings = TrainSettings(data="x", model=str(folder), weights="none", backbone_weights=str(backbone))
    assert build_start(settings, ("a",)).module.config.options["v1_strides"] is True


def test_the_input_is_as_large_as_the_weights_knew_it_or_as_the_images(tmp_path: Path) -> None:
    """Small images keep the size that the start learned at, larger ones their own up to 640; what is given stays."""
    config = models.default_config("yolov8_n", class_names=("a",))
    config = config.replace(preprocess=dataclasses.replace(config.preprocess, size=224))
    module = models.build(config)
    writers = {"model.safetensors": lambda path: models.save_weights(module, path, config)}
    detector = write_folder(tmp_path / "detector", config, writers)
    small = models.build(models.default_config("cspdarknet_n"))
    small.config = small.config.replace(preprocess=dataclasses.replace(small.config.preprocess, size=(192, 192)))
    backbone = folder_of(small, tmp_path / "backbone")

    def settled(side: int, **values: Any) -> int:
        settings = TrainSettings(data="x", **values)
        start = build_start(settings, ("a",))
        none = np.zeros(0, bool)
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        records = [Record("", "", "train", width, 40, boxes, labels, none, none) for width in (side, side, 5000)]
        settled = settle_size(settings, start, records)
        assert start.module.config.preprocess.size == settled.size
        return settled.size

    known = {"model": str(detector)}
    assert [settled(side, **known) for side in (200, 225, 300, 4096)] == [224, 256, 320, 640]
    assert settled(4096, size=96, **known) == 96
    assert settled(200, model="yolov8_n", weights="none") == 640, "the authors' size: random weights know none"
    scratch = {"model": "yolov8_n", "weights": "none", "backbone_weights": str(backbone)}
    assert [settled(side, **scratch) for side in (100, 193)] == [192, 224]

    odd = config.replace(preprocess=dataclasses.replace(config.preprocess, size=250))  # bounds the longer side
    between = write_folder(tmp_path / "between", odd, writers)
    assert settled(200, model=str(between)) == 256, "samples are squares of this side"


def test_a_size_has_to_fit_the_network(tmp_path: Path) -> None:
    """Only where the network needs multiples: DINO takes any size."""
    dino = models.default_config("dino_swin_b", class_names=("a",), options=SMALL_DINO)
    folder = write_folder(tmp_path / "dino", dino, {})
    settings = TrainSettings(data="x", model=str(folder), weights="none", size=100)
    assert build_start(settings, ("a",)).module.config.preprocess.size == 100
    with pytest.raises(SettingError, match=r"needs a multiple of 32 pixels; the nearest are 96 and 128\."):
        build_start(dataclasses.replace(settings, model="yolov8_n"), ("a",))


@pytest.mark.parametrize(
    ("architecture", "own", "chosen"), [("yolov8_n", 0.7, 0.5), ("yolov8_resnet50_lite", 0.7, 0.5)]
)
def test_suppression_of_defects_is_stricter_than_the_authors(architecture: str, own: float, chosen: float) -> None:
    settings = TrainSettings(data="x", model=architecture, weights="none")
    start = build_start(settings, ("scratch",))
    assert start.module.config.postprocess is not None and start.module.config.postprocess.iou == own
    family = family_of(start.module)
    assert settle_nms(settings, start, None).nms_iou == own == start.module.config.postprocess.iou
    assert settle_nms(settings, start, family.nms_iou).nms_iou == chosen == start.module.config.postprocess.iou
    given = dataclasses.replace(settings, nms_iou=0.65)
    assert settle_nms(given, start, family.nms_iou).nms_iou == 0.65 == start.module.config.postprocess.iou
    with pytest.raises(TrainingError, match=r"--nms-iou is 1\.2"):
        dataclasses.replace(settings, nms_iou=1.2)


@pytest.mark.parametrize(
    ("names", "own", "kept"),
    [
        (("anomaly",), False, True),  # where there is one class the setting says nothing
        (("pit", "scratch"), False, False),
        (("pit", "scratch"), True, True),
    ],
)
def test_several_classes_answer_as_a_new_detector_s(
    names: tuple[str, ...], own: bool, kept: bool, tmp_path: Path
) -> None:
    """What a one-class model says of boxes with several classes is not what several classes inherit."""
    config = models.default_config("yolov8_n", class_names=names)
    assert config.postprocess is not None
    post = dataclasses.replace(config.postprocess, multi_label=own, class_conf={names[0]: 0.4}, conf=0.3)
    config = config.replace(postprocess=post)
    module = models.build(config)
    folder = write_folder(
        tmp_path / "start", config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}
    )
    settings = TrainSettings(data="x", model=str(folder))
    for given, expected in ((("a", "b", "c"), kept), (("a",), False)):
        found = build_start(settings, given).module.config.postprocess
        assert found == dataclasses.replace(post, multi_label=expected, class_conf={})
    drawn = build_start(TrainSettings(data="x", weights="none"), ("a", "b", "c")).module.config.postprocess
    assert drawn is not None and drawn.multi_label


def test_the_models_before_the_start_stay_known(tmp_path: Path) -> None:
    """A third training still says which data and licence the first one had."""
    first = {
        "license": "cc-by-nc-sa-4.0",
        "datasets": ["first"],
        "start": {"source": "random weights", "provenance": {}},
    }
    second = {
        "license": "mit",
        "datasets": ["second"],
        "seed": 1,
        "start": {"source": "yolov8_n.agssp", "provenance": {"yolov8_n.agssp": first}, "tensors_loaded": 9},
    }
    config = models.default_config("yolov8_n", class_names=("a",)).replace(name="yolov8_n.finetuned", provenance=second)
    module = models.build(config)
    folder = write_folder(
        tmp_path / "start", config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}
    )
    start = build_start(TrainSettings(data="x", model=str(folder)), ("a",))
    assert start.provenance["yolov8_n.finetuned"] == {
        "license": "mit",
        "datasets": ["second"],
        "start": {"source": "yolov8_n.agssp", "provenance": {"yolov8_n.agssp": first}},
    }
    assert kept_origin(first) == {"license": "cc-by-nc-sa-4.0", "datasets": ["first"]}
