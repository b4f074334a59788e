"""load_backbone: names, folders, engines, images in; and real features on real steel."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image

import agssp_zoo
from agssp_zoo import models
from agssp_zoo.backbone import OnnxBackbone, load_backbone
from agssp_zoo.config import ModelConfig, Preprocess
from agssp_zoo.errors import (
    CheckpointError,
    EngineError,
    HubError,
    ImageError,
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
)
from agssp_zoo.features import FeatureInfo
from agssp_zoo.folder import write_folder

SHARED = Path(__file__).parents[1].parent / "shared"

GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
pools (uint8[batch, height, width, 3] images)
  => (float[batch, 3, half_height, half_width] stage1, float[batch, 3, quarter_height, quarter_width] stage2)
{
  pixels = Cast <to = 1> (images)
  x = Transpose <perm = [0, 3, 1, 2]> (pixels)
  stage1 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  stage2 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (stage1)
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cspdarknet_n with drawn weights."""
    torch.manual_seed(0)
    config = models.default_config("cspdarknet_n", name="cspdarknet_n.drawn")
    module = models.build(config)
    out = tmp_path_factory.mktemp("b") / "drawn"
    return write_folder(
        out, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}, card="test"
    )


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory) -> Path:
    """Two average poolings by the ONNX contract."""
    config = ModelConfig("cspdarknet_n.pools", "cspdarknet_n", "backbone", preprocess=Preprocess(size=64))

    def write(path: Path) -> None:
        model = onnx.parser.parse_model(GRAPH)
        properties = {"config": config.to_json(), "contract_version": "1", "outputs": "features"}
        onnx.helper.set_model_props(model, properties)
        onnx.save(model, path)

    return write_folder(tmp_path_factory.mktemp("b") / "pools", config, {"model.onnx": write}, card="test")


def noise(height: int = 200, width: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_module_like_any_other(folder, tmp_path):
    backbone = agssp_zoo.load_backbone(folder)
    assert isinstance(backbone, agssp_zoo.Backbone) and isinstance(backbone, torch.nn.Module)
    assert not backbone.training and backbone.config.name == "cspdarknet_n.drawn"
    Image.fromarray(noise()).save(tmp_path / "a.png")
    x = backbone.preprocess([noise(), tmp_path / "a.png", Image.fromarray(noise()), noise()[..., ::-1].copy()])
    assert x.shape == (4, 3, 224, 224) and x.dtype == torch.float32
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
    assert torch.equal(backbone.preprocess(noise()[..., ::-1], channel_order="bgr")[0], x[0])
    pixels = np.asarray(Image.fromarray(noise()).resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    mean, std = (np.array(values, np.float32) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    assert np.allclose(x[0].permute(1, 2, 0).numpy(), (pixels - mean) / std, atol=1e-5)
    with torch.no_grad():
        maps = backbone(x)
        twin = copy.deepcopy(backbone)
        twin.load_state_dict(backbone.state_dict())
        again = twin(x)
    sizes = [(info.channels, 224 // info.reduction, 224 // info.reduction) for info in backbone.feature_info]
    assert [tuple(m.shape[1:]) for m in maps] == sizes == [(64, 28, 28), (128, 14, 14), (256, 7, 7)]
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(maps, pickle.loads(pickle.dumps(twin))(x), strict=True))
    chosen = load_backbone(folder, out_indices=(0, -1))
    assert [info.reduction for info in chosen.feature_info] == [4, 32]
    with torch.no_grad():
        assert torch.allclose(chosen(x)[1], maps[2], atol=1e-4)


def test_without_weights():
    """Nothing is looked for, neither on disk nor on the Hub."""
    for name, channels in (("resnet50", 2048), ("cspdarknet_n.agbp", 256), ("yolov8_n", 256)):
        backbone = load_backbone(name, weights=False, out_indices=[3])
        assert [info.channels for info in backbone.feature_info] == [channels] and not backbone.training
    with pytest.raises(ModelNotFoundError, match="resnet50"):
        load_backbone("resnet5", weights=False)


def test_without_weights_a_folder_that_happens_to_have_the_name_does_not_matter(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50").mkdir()
    assert load_backbone("resnet50", weights=False).config.name == "resnet50.scratch"
    shutil.copytree(folder, tmp_path / "cspdarknet_s")
    assert load_backbone("cspdarknet_s", weights=False).config.name == "cspdarknet_n.drawn"


def test_without_weights_the_config_is_the_one_that_was_asked_for(folder, tmp_path):
    """Of a repository in a cache of its own; nothing is downloaded."""
    snapshot = tmp_path / "cache" / "models--lab--mine" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    asked = {"cache_dir": tmp_path / "cache", "revision": "a" * 40}
    assert load_backbone("hf://lab/mine", weights=False, **asked).config.name == "cspdarknet_n.drawn"
    with pytest.raises(HubError, match="not in the cache"):
        load_backbone("hf://lab/mine", weights=False)


def test_a_detectors_backbone(tmp_path):
    config = models.default_config("yolov8_n")
    module = models.build(config)
    folder = write_folder(
        tmp_path / "d", config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}, card="x"
    )
    backbone = load_backbone(folder)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = module.eval().backbone(x)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(backbone(x), expected, strict=True))


def test_onnx_answers_the_same_without_torch(onnx_folder, tmp_path):
    backbone = load_backbone(onnx_folder, engine="onnx")
    assert isinstance(backbone, OnnxBackbone)
    assert backbone.feature_info == (FeatureInfo(3, 2, "stage1"), FeatureInfo(3, 4, "stage2"))
    maps = backbone.extract([noise(64, 64), noise(64, 64)])
    assert [m.shape for m in maps] == [(2, 3, 32, 32), (2, 3, 16, 16)]
    assert maps[1][0, :, 3, 5] == pytest.approx(noise(64, 64)[12:16, 20:24].reshape(16, 3).mean(0), abs=1e-3)
    assert backbone.preprocess(noise()).shape == (1, 64, 64, 3)
    (last,) = load_backbone(onnx_folder / "model.onnx", engine="onnx", out_indices=[-1]).extract(noise(64, 64))
    assert np.array_equal(last[0], maps[1][0])
    assert load_backbone(onnx_folder, engine="onnx", out_indices=(1,)).names == ("stage2",)
    script = (
        "import sys, numpy, agssp_zoo\n"
        f"b = agssp_zoo.load_backbone({str(onnx_folder)!r}, engine='onnx')\n"
        "print(len(b.extract(numpy.zeros((9, 9), numpy.uint8))), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "2 False\n", done.stderr


def test_out_indices_are_stages_in_every_engine(onnx_folder, tmp_path):
    """A file that lacks the first stage's map, as exported backbones do, answers the same maps as the module."""
    model = onnx.load(onnx_folder / "model.onnx")
    for value in (*model.graph.output, *model.graph.node):
        for names in (value.input, value.output) if isinstance(value, onnx.NodeProto) else ():
            names[:] = [name.replace("stage2", "stage3").replace("stage1", "stage2") for name in names]
    for output, name in zip(model.graph.output, ("stage2", "stage3"), strict=True):
        output.name = name
    onnx.save(model, tmp_path / "later.onnx")

    def load(indices):
        return load_backbone(tmp_path / "later.onnx", engine="onnx", out_indices=indices)

    assert load(None).out_indices == (1, 2) and load(None).names == ("stage2", "stage3")
    assert load([-1]).names == ("stage3",)
    for indices, names in (((1,), ["stage2"]), (np.array([2]), ["stage3"]), ([1, 2], ["stage2", "stage3"])):
        for backbone in (load(indices), load_backbone("cspdarknet_n", weights=False, out_indices=indices)):
            assert [info.name for info in backbone.feature_info] == names
            assert backbone.out_indices == tuple(indices)
    with pytest.raises(InvalidArgumentError, match="maps stage2, stage3 of the stages 1, 2"):
        load((0,))


def test_errors(folder, onnx_folder, tmp_path, monkeypatch):
    backbone = load_backbone(onnx_folder, engine="onnx")
    with pytest.raises(InvalidArgumentError, match="different sizes"):
        backbone.extract([noise(64, 64), noise(32, 64)])
    with pytest.raises(InvalidArgumentError, match="no image"):
        backbone.extract([])
    with pytest.raises(ImageError, match=r"none\.png"):
        load_backbone(folder).preprocess(tmp_path / "none.png")
    for indices in ((2,), (1, 0), (), 1, ["a"]):
        with pytest.raises(InvalidArgumentError, match="stage1, stage2"):
            load_backbone(onnx_folder, engine="onnx", out_indices=indices)
    for indices in ((7,), "ab", 2, [None], [0.5]):
        with pytest.raises(InvalidArgumentError, match="out_indices"):
            load_backbone(folder, out_indices=indices)
    with pytest.raises(InvalidArgumentError, match="weights='none'"):
        load_backbone(folder, weights="none")
    with pytest.raises(InvalidArgumentError, match="no revisions"):
        load_backbone(onnx_folder / "model.onnx", engine="onnx", revision="main")
    with pytest.raises(EngineError, match="agssp-zoo export"):
        load_backbone(folder, engine="onnx")
    with pytest.raises(EngineError, match="There is no file"):
        load_backbone(tmp_path / "none.onnx", engine="onnx")
    for weights in (True, False):
        with pytest.raises(InvalidArgumentError, match=r"model\.onnx is an ONNX file; take engine='onnx'"):
            load_backbone(onnx_folder / "model.onnx", weights=weights)
    with pytest.raises(InvalidArgumentError, match="take engine='onnx'"):
        load_backbone("none.onnx")
    with pytest.raises(EngineError, match="PyTorch has cpu"):
        load_backbone(folder, device="tpu")
    with pytest.raises(InvalidArgumentError, match="engine='pytorch'"):
        load_backbone(folder, weights=False, engine="onnx")
    with pytest.raises(InvalidArgumentError, match="'jax'"):
        load_backbone(folder, engine="jax")
    with pytest.raises(InvalidArgumentError, match="cashe_dir"):
        load_backbone(folder, cashe_dir="x")
    with pytest.raises(ModelNotFoundError):
        load_backbone(tmp_path / "nowhere")
    find_spec = agssp_zoo.backbone.importlib.util.find_spec
    monkeypatch.setattr(
        agssp_zoo.backbone.importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    with pytest.raises(MissingDependencyError, match=r"agssp-zoo\[torch\]"):
        load_backbone(folder)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """ImageNet's ResNet-50 as a model folder; its strides are those of the paper, which its config says."""
    weights = SHARED / "weights" / "resnet50_imagenet.safetensors"
    if not weights.is_file():
        pytest.skip("needs the ImageNet weights")
    config = models.default_config("resnet50", name="resnet50.imagenet", options={"v1_strides": True})
    out = tmp_path_factory.mktemp("b") / "imagenet"
    return write_folder(out, config, {"model.safetensors": lambda path: shutil.copy(weights, path)}, card="test")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "neu_det").is_dir(), reason="needs NEU-DET")
def test_features_tell_defects_apart(imagenet):
    """Mean-pooled last map, leave-one-out nearest neighbour, 60 images of each of the six classes: at least 97 %."""
    backbone = load_backbone(imagenet)
    by_class: dict[str, list[Path]] = {}
    for path in sorted((SHARED / "data" / "neu_det" / "images").iterdir()):
        by_class.setdefault(path.stem.rsplit("_", 1)[0], []).append(path)
    features, labels = [], []
    with torch.inference_mode():
        for label, paths in enumerate(by_class.values()):
            for start in range(0, 60, 20):
                maps = backbone(backbone.preprocess(paths[start : start + 20]))
                features.append(maps[-1].mean((2, 3)))
                labels += [label] * 20
    unit = torch.nn.functional.normalize(torch.cat(features))
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-1)
    nearest = torch.tensor(labels)[similarity.argmax(1)]
    accuracy = (nearest == torch.tensor(labels)).float().mean().item()
    assert len(labels) == 360 and accuracy >= 0.97, accuracy


def test_weights_of_the_other_stride_variant_are_refused(folder, tmp_path):
    """The shapes agree, so only what the file says about itself can tell."""
    v1 = models.default_config("resnet50", options={"v1_strides": True})
    module = models.build(v1)
    config = models.default_config("resnet50")
    out = write_folder(
        tmp_path / "r", config, {"model.safetensors": lambda path: models.save_weights(module, path, v1)}, card="test"
    )
    with pytest.raises(CheckpointError, match="v1_strides"):
        load_backbone(out)


def test_weights_that_do_not_state_their_strides_need_a_config_that_does(tmp_path):
    """Files of other origin (torchvision's names) carry no options, and v1 and v1.5 have the same shapes."""
    from safetensors.torch import save_file

    state = models.build(models.default_config("resnet50")).state_dict()
    for options, refused in (({}, True), ({"v1_strides": False}, False), ({"v1_strides": True}, False)):
        config = models.default_config("resnet50", options=options)
        out = write_folder(
            tmp_path / f"r{len(list(tmp_path.iterdir()))}",
            config,
            {"model.safetensors": lambda path: save_file(state, path)},
            card="test",
        )
        if refused:
            with pytest.raises(CheckpointError, match=r"v1_strides.*config\.json"):
                load_backbone(out)
        else:
            load_backbone(out)
