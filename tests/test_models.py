"""The networks: shapes, weights files, freezing, decoding, suppression, and what torch can do with them."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    CheckpointError,
    ConfigError,
    IntegrityError,
    InvalidArgumentError,
    ModelNotFoundError,
)
from agssp_zoo.models.heads.dfl import DFLHead, make_points  # noqa: E402
from agssp_zoo.models.necks import PAFPN  # noqa: E402
from agssp_zoo.models.postprocess import nms, select_detections  # noqa: E402

SHARED = Path(__file__).parents[1].parent / "shared"
CLASSES = ("crazing", "inclusion", "patches")


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return models.build(models.default_config("yolov8_n", class_names=CLASSES)).eval()


def lively(module):
    """BatchNorm statistics that are not the initial ones, so that mistakes with them show."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.7, 1.4)
    return module


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions", "channels"),
    [
        ("cspdarknet_n", 1.27, (32, 64, 128, 256)),
        ("cspdarknet_s", 5.08, (64, 128, 256, 512)),
        ("resnet50", 23.51, (256, 512, 1024, 2048)),
    ],
)
def test_backbone_maps(name, millions, channels):
    backbone = models.build(models.default_config(name)).eval()
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert [(i.channels, i.reduction) for i in backbone.feature_info] == list(
        zip(channels[1:], (8, 16, 32), strict=True)
    )
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last_three = backbone(x)
        backbone.set_out_indices((0, -1))
        first_and_last = backbone(x)
    assert [tuple(m.shape) for m in last_three] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels[1:], (8, 16, 32), strict=True)
    ]
    assert [(i.channels, i.reduction) for i in backbone.feature_info] == [(channels[0], 4), (channels[3], 32)]
    assert first_and_last[0].shape == (2, channels[0], 16, 24)
    torch.testing.assert_close(first_and_last[1], last_three[2])
    assert {info.name for info in backbone.stage_info} <= {n.split(".")[0] for n in backbone.state_dict()}
    for bad in ((), (4,), (2, 1), (1, 1), (-5,)):
        with pytest.raises(InvalidArgumentError, match="out_indices"):
            backbone.set_out_indices(bad)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("yolov8_n", 3, 3.01),
        ("yolov8_s", 6, 11.14),
        ("yolov8_s", 1, 11.14),
        ("yolov8_resnet50", 6, 114.66),
        ("yolov8_resnet50_lite", 6, 26.08),
    ],
)
def test_detector_size(name, classes, millions):
    config = models.default_config(name, class_names=[f"c{i}" for i in range(classes)])
    module = models.build(config, init=False)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert module.num_classes == classes
    assert module.strides == (8, 16, 32)
    assert not module.pixel_mean.is_meta  # these are in no weights file
    assert config.postprocess.multi_label == (classes > 1)


def test_detector_outputs(detector):
    with torch.no_grad():
        raw = detector(torch.rand(2, 3, 96, 64))
        boxes, scores = detector.decode(raw)
    assert [(c.shape, b.shape) for c, b in raw] == [((2, 3, h, w), (2, 64, h, w)) for h, w in ((12, 8), (6, 4), (3, 2))]
    points = 12 * 8 + 6 * 4 + 3 * 2
    assert boxes.shape == (2, points, 4)
    assert scores.shape == (2, points, 3)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    with pytest.raises(InvalidArgumentError, match="multiples of 32"):
        detector(torch.rand(1, 3, 60, 64))


def test_fresh_detector_expects_few_objects(detector):
    """The prior: about 5 objects an image over all points of a level, so that training starts calmly."""
    for branch, stride in zip(detector.head.cls_branches, (8, 16, 32), strict=True):
        prior = torch.sigmoid(branch[2].bias).sum() * (640 / stride) ** 2
        assert prior.item() == pytest.approx(5, rel=0.02)
    assert all((branch[2].bias == 1).all() for branch in detector.head.box_branches)
    with torch.no_grad():
        maps = copy.deepcopy(detector.backbone).train()(torch.rand(2, 3, 128, 128))
    assert all(0.01 < m.std() < 100 for m in maps)  # neither vanishing nor exploding
    first = models.build(detector.config).state_dict()["backbone.stem.conv.weight"]
    assert not torch.equal(first, detector.backbone.stem.conv.weight)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again = models.build(detector.config).state_dict()["backbone.stem.conv.weight"]
    assert torch.equal(again, detector.backbone.stem.conv.weight)


def test_what_cannot_be_built():
    with pytest.raises(ModelNotFoundError, match="yolov8_s"):
        models.default_config("yolo8_s")
    with pytest.raises(ConfigError, match="no option 'v2_strides'"):
        models.default_config("resnet50", options={"v2_strides": True})
    with pytest.raises(ConfigError, match="must be a bool"):
        models.default_config("resnet50", options={"v1_strides": 1})
    with pytest.raises(ConfigError, match="is a backbone"):
        models.build(ModelConfig(name="x", architecture="resnet50", task="detector", class_names=("a",)))


def test_resnet_equals_torchvision():
    from torchvision.models import resnet50

    reference = lively(resnet50()).eval()
    ours = models.build(models.default_config("resnet50"), init=False).eval()
    state = {n: t for n, t in reference.state_dict().items() if not n.startswith("fc.")}
    models.weights.load_state(ours, state, where="torchvision")
    ours.set_out_indices((0, 1, 2, 3))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = ours(x)
        out = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for got, layer in zip(
            maps, (reference.layer1, reference.layer2, reference.layer3, reference.layer4), strict=True
        ):
            out = layer(out)
            torch.testing.assert_close(got, out)


def test_normalize_is_float32_in_any_precision():
    backbone = models.build(models.default_config("cspdarknet_n"))
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = ((images.numpy() - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(backbone.normalize(images).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert backbone.to(torch.bfloat16).normalize(images).dtype == torch.bfloat16
    assert not any("pixel" in name for name in backbone.state_dict())
    detector = models.build(models.default_config("yolov8_n"))
    assert torch.equal(detector.normalize(images), images.permute(0, 3, 1, 2) / 255)
    with pytest.raises(InvalidArgumentError, match="batch, height, width, 3"):
        detector.normalize(images.permute(0, 3, 1, 2))


# --- freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cspdarknet_n", "resnet50"])
def test_freezing(name):
    backbone = models.build(models.default_config(name)).train()
    backbone.freeze_stages(2)
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    backbone.train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(m.square().mean() for m in maps).backward()
    learning = {n.split(".")[0] for n, p in backbone.named_parameters() if p.grad is not None}
    assert learning == {info.name for info in backbone.stage_info[2:]}
    moved = {n.split(".")[0] for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == learning  # the others' BatchNorm statistics stayed
    assert copy.deepcopy(backbone).train().stages[0].training is False
    backbone.freeze_stages(0)
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone.stages[0].training
    with pytest.raises(InvalidArgumentError, match="4 stages"):
        backbone.freeze_stages(5)


# --- weights files ----------------------------------------------------------------------------------------------------


def test_weights_round_trip(tmp_path, detector):
    module = lively(copy.deepcopy(detector))
    module.backbone.stem.bn.running_var[0] = 83_614.0  # as a real network has it; float16 ends at 65,504
    x = torch.rand(1, 3, 64, 64)
    models.save_weights(module, tmp_path / "full.safetensors", module.config)
    models.save_weights(module, tmp_path / "half.safetensors", module.config, half_matrices=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.safetensors", "half.safetensors"]
    assert (tmp_path / "half.safetensors").stat().st_size < 0.52 * (tmp_path / "full.safetensors").stat().st_size
    full = models.load(module.config, tmp_path / "full.safetensors")
    half = models.load(module.config, tmp_path / "half.safetensors")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert not any(t.is_meta for t in full.state_dict().values())
    assert half.backbone.stem.bn.running_var[0] == 83_614.0
    with torch.no_grad():
        expected = module(x)
        for (cls, box), (cls2, box2), (cls3, _) in zip(expected, full(x), half(x), strict=True):
            assert torch.equal(cls, cls2)
            assert torch.equal(box, box2)
            torch.testing.assert_close(cls, cls3, rtol=0.02, atol=0.02)
    # What was loaded is an ordinary module: it trains, and the file stays as it is.
    before = (tmp_path / "full.safetensors").read_bytes()
    loss = sum(c.mean() + b.mean() for c, b in full.train()(x.repeat(2, 1, 1, 1)))
    loss.backward()
    torch.optim.SGD(full.parameters(), lr=1.0).step()
    assert (tmp_path / "full.safetensors").read_bytes() == before
    # Into a module that is there already, in its own precision and in place.
    other = models.build(module.config).to(torch.bfloat16)
    pointer = other.backbone.stem.conv.weight.data_ptr()
    models.load_weights(other, tmp_path / "full.safetensors")
    assert other.backbone.stem.conv.weight.data_ptr() == pointer
    assert torch.equal(other.backbone.stem.conv.weight, module.backbone.stem.conv.weight.to(torch.bfloat16))


def test_weights_that_do_not_fit(tmp_path, detector):
    file = tmp_path / "model.safetensors"
    models.save_weights(detector, file, detector.config)
    for config, message in (
        (models.default_config("yolov8_n", class_names=("a", "b")), r"Misshapen \(6\).*cls_branches\.0\.2"),
        (models.default_config("yolov8_s", class_names=CLASSES), "holds weights of yolov8_n"),
    ):
        with pytest.raises(CheckpointError, match=message):
            models.load(config, file)
    state, metadata = models.read_weights(file)
    assert metadata["architecture"] == "yolov8_n"
    state["backbone.extra"] = state.pop("backbone.stem.bn.bias")
    with pytest.raises(CheckpointError, match=r"Missing \(1\): backbone.stem.bn.bias. Unknown \(1\): backbone.extra"):
        models.weights.load_state(models.build(detector.config, init=False), state, where="x")
    state["backbone.stem.bn.bias"] = state.pop("backbone.extra")
    quantised = {**state, "backbone.stem.conv.weight": state["backbone.stem.conv.weight"].to(torch.int8)}
    for init in (False, True):
        with pytest.raises(CheckpointError, match=r"int8 values.*: backbone\.stem\.conv\.weight"):
            models.weights.load_state(models.build(detector.config, init=init), quantised, where="x")
    for value in (math.nan, math.inf):
        astray = state["backbone.stem.conv.weight"].clone()
        astray[3, 0, 1, 1] = value
        with pytest.raises(
            CheckpointError, match=r"x holds NaN or infinity.*: backbone\.stem\.conv\.weight\. The file"
        ):
            models.weights.load_state(detector, {**state, "backbone.stem.conv.weight": astray}, where="x")
    huge = {**state, "backbone.stem.bn.bias": torch.full((16,), 3e38)}  # whose sum is no number, though each value is
    models.weights.load_state(models.build(detector.config, init=False), huge, where="x")
    for options in ("[1]", "null", "{", "[" * 100_000):
        save_file(state, tmp_path / "odd.safetensors", metadata={**metadata, "options": options})
        with pytest.raises(IntegrityError, match="metadata cannot be read"):
            models.load(detector.config, tmp_path / "odd.safetensors")
    (tmp_path / "odd.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match="truncated"):
        models.load(detector.config, file)
    with pytest.raises(IntegrityError, match="missing"):
        models.load(detector.config, tmp_path / "none.safetensors")
    broken = copy.deepcopy(detector)
    broken.backbone.stem.bn.running_mean[3] = math.nan
    with pytest.raises(CheckpointError, match="running_mean"):
        models.save_weights(broken, tmp_path / "nan.safetensors", broken.config)
    assert not (tmp_path / "nan.safetensors").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_stride_variants_do_not_mix(tmp_path):
    """Names and shapes of the two agree, so only what the file says about itself can tell them apart."""
    v1 = models.default_config("resnet50", options={"v1_strides": True})
    v15 = models.default_config("resnet50")
    module = models.build(v1)
    models.save_weights(module, tmp_path / "v1.safetensors", v1)
    with pytest.raises(CheckpointError, match="v1_strides=True"):
        models.load(v15, tmp_path / "v1.safetensors")
    same = models.load(v1, tmp_path / "v1.safetensors")
    assert same.layer2[0].conv1.stride == (2, 2)
    assert same.layer2[0].conv2.stride == (1, 1)
    models.save_weights(module, tmp_path / "v15.safetensors", v15)
    with pytest.raises(CheckpointError, match="v1_strides=default"):
        models.load(v1, tmp_path / "v15.safetensors")
    assert models.load(v15.replace(options={"v1_strides": False}), tmp_path / "v15.safetensors")
    # A detector hands the option on to its backbone, whose weights can then be loaded alone.
    detector = models.build(models.default_config("yolov8_resnet50", options={"v1_strides": True}), init=False)
    assert detector.backbone.layer3[0].conv1.stride == (2, 2)
    models.load_weights(detector.backbone, tmp_path / "v1.safetensors")
    with pytest.raises(CheckpointError, match="v1_strides"):
        models.load_weights(detector.backbone, tmp_path / "v15.safetensors")


def test_torchvisions_file_loads_as_it_is(tmp_path):
    """With its classifier, which a backbone does without, as README and docs/reproduce.md promise."""
    from torchvision.models import resnet50

    theirs = resnet50(weights=None).eval()
    save_file(theirs.state_dict(), tmp_path / "resnet50.safetensors")
    config = models.default_config("resnet50", options={"v1_strides": False})
    ours = models.load(config, tmp_path / "resnet50.safetensors")
    assert set(theirs.state_dict()) - set(ours.state_dict()) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    save_file({**theirs.state_dict(), "head.weight": torch.ones(1)}, tmp_path / "resnet50.safetensors")
    with pytest.raises(CheckpointError, match=r"Unknown \(1\): head\.weight"):
        models.load(config, tmp_path / "resnet50.safetensors")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the ImageNet weights")
def test_imagenet_weights_load_directly():
    """Torchvision's names, matrices in float16, counters beside them, metadata of another kind."""
    config = models.default_config("resnet50", options={"v1_strides": True})
    backbone = models.load(config, SHARED / "weights" / "resnet50_imagenet.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.bn1.num_batches_tracked.dtype == torch.int64
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert all(torch.isfinite(m).all() for m in maps)


# --- decoding and suppression -----------------------------------------------------------------------------------------


def test_decode_by_hand():
    """One cell of a 2x3 map at stride 8, its four distributions each at one bin or half-way between two."""
    head = DFLHead([64], 2, strides=(8,))
    cls = torch.full((1, 2, 2, 3), -100.0)
    box = torch.zeros(1, 64, 2, 3)
    cls[0, 1, 1, 2] = 0.0
    for side, bins in enumerate(((1,), (0,), (2, 3), (15,))):
        box[0, side * 16 : side * 16 + 16, 1, 2] = -1000.0
        for b in bins:
            box[0, side * 16 + b, 1, 2] = 5.0
    boxes, scores = head.decode([(cls, box)])
    assert scores[0, 5].tolist() == [0.0, 0.5]
    # The centre is (2.5, 1.5) cells; left 1, top 0, right 2.5, bottom 15 cells; 8 pixels each.
    assert boxes[0, 5].tolist() == [12.0, 12.0, 40.0, 132.0]
    assert boxes[0, 0].tolist() == [-56.0, -56.0, 64.0, 64.0]  # flat distributions: 7.5 cells


def test_points_are_kept_and_usable_in_training(detector):
    with torch.inference_mode():
        raw = detector(torch.rand(1, 3, 64, 96))
        first = detector.head.points(raw)
    again = detector.head.points(raw)
    assert first[0] is again[0]  # not made anew
    expected = make_points([(8, 12), (4, 6), (2, 3)], (8, 16, 32), torch.device("cpu"))
    assert torch.equal(first[0], expected[0])
    assert torch.equal(first[1], expected[1])
    raw = detector(torch.rand(1, 3, 64, 96))
    detector.decode(raw)[0].mean().backward()  # tensors made in inference mode would refuse
    detector.zero_grad()
    with torch.no_grad():
        boxes = detector.decode([(c.bfloat16(), b.bfloat16()) for c, b in raw])[0]
    assert boxes.dtype == torch.float32


def brute_force(boxes, scores, conf, iou, max_det, max_candidates, multi_label):
    """The definition, candidate by candidate."""
    found = []
    for n in range(len(boxes)):
        labels = range(scores.shape[1]) if multi_label else [int(scores[n].argmax())]
        found += [(float(scores[n, c]), n, c) for c in labels if scores[n, c] > conf]
    found.sort(key=lambda f: -f[0])
    kept = []
    for score, n, c in found[:max_candidates]:
        a = boxes[n]
        if all(k[2] != c or overlap(a, boxes[k[1]]) <= iou for k in kept):
            kept.append((score, n, c))
    return kept[:max_det]


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize(("conf", "max_det", "max_candidates"), [(0.3, 40, 30000), (0.01, 300, 900), (0.99999, 5, 10)])
def test_selection_equals_its_definition(multi_label, conf, max_det, max_candidates):
    generator = np.random.default_rng(3)
    centres, sides = generator.uniform(0, 600, (2, 700, 2)), generator.uniform(60, 90, (2, 700, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], -1).astype(np.float32)
    scores = generator.uniform(0, 1, (2, 700, 3)).astype(np.float32)
    scores[0, 10] = scores[0, 11]  # equal scores: the first one comes first
    got = select_detections(
        torch.as_tensor(boxes),
        torch.as_tensor(scores),
        conf=conf,
        iou=0.4,
        max_det=max_det,
        max_candidates=max_candidates,
        multi_label=multi_label,
    )
    for i in range(2):
        expected = brute_force(boxes[i], scores[i], conf, 0.4, max_det, max_candidates, multi_label)
        count = int(got[3][i])
        assert count == len(expected)
        assert got[1][i, :count].tolist() == [e[0] for e in expected]
        assert got[2][i, :count].tolist() == [e[2] for e in expected]
        np.testing.assert_array_equal(got[0][i, :count].numpy(), boxes[i][[e[1] for e in expected]])
        assert (got[2][i, count:] == -1).all()
        assert not got[0][i, count:].any()


def test_first_candidates_are_enough_or_more_are_taken():
    """Thousands of boxes on one place: the first candidates give one detection, so the search must go on."""
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0]]).repeat(5000, 1)
    boxes[-1] = torch.tensor([100.0, 100.0, 120.0, 120.0])
    scores = torch.linspace(0.9, 0.5, 5000)[:, None]
    out = select_detections(
        boxes[None], scores[None], conf=0.1, iou=0.5, max_det=10, max_candidates=30000, multi_label=True
    )
    assert int(out[3][0]) == 2
    assert out[0][0, 1].tolist() == [100.0, 100.0, 120.0, 120.0]
    limited = select_detections(
        boxes[None], scores[None], conf=0.1, iou=0.5, max_det=10, max_candidates=4999, multi_label=True
    )
    assert int(limited[3][0]) == 1


def test_classes_do_not_disturb_each_other_at_the_threshold():
    """Moving classes apart in float32 would round these coordinates, and with them the overlap of 0.7."""
    boxes = torch.tensor([[0.1, 0.1, 10.1, 10.1], [0.1, 0.1, 7.1, 10.1]])
    labels = torch.tensor([999, 999])
    kept = nms(boxes, torch.tensor([0.9, 0.8]), labels, 0.7 + 1e-7)
    same = nms(boxes, torch.tensor([0.9, 0.8]), labels * 0, 0.7 + 1e-7)
    assert kept.tolist() == same.tolist()
    assert nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 999]), 0.0).tolist() == [0, 1]
    assert nms(boxes[:0], torch.zeros(0), labels[:0], 0.5).tolist() == []


# --- what torch can do with the modules -------------------------------------------------------------------------------


def test_ordinary_module(detector):
    """Deep copies, pickled state, memory formats and precisions give the same answers."""
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = detector.decode(detector(x))
        twin = copy.deepcopy(detector)
        assert twin.config == detector.config
        fresh = models.build(detector.config).eval()
        fresh.load_state_dict(detector.state_dict())
        for module, inputs in (
            (twin, x),
            (fresh, x),
            (twin.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)),
        ):
            for got, want in zip(module.decode(module(inputs)), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
        low = copy.deepcopy(detector).to(torch.bfloat16)
        boxes, scores = low.decode(low(x.to(torch.bfloat16)))
        assert (boxes - expected[0]).abs().mean() < 1.0
        torch.testing.assert_close(scores, expected[1], rtol=0.05, atol=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert detector.decode(detector(x))[0].dtype == torch.float32


def test_compile(detector):
    """Network and decoding are one graph, and the sizes may stay symbols (exporting is tested elsewhere)."""

    def decoded(images):
        return detector.decode(detector(detector.normalize(images)))

    torch.compiler.reset()
    one_graph = torch.compile(decoded, backend="eager", fullgraph=True, dynamic=False)
    any_size = torch.compile(detector.decode, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
        for got, want in zip(one_graph(images), decoded(images), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        for shape in ((7, 3, 160, 256), (9, 3, 96, 64)):  # sizes that are equal at first would count as one symbol
            raw = detector(torch.rand(shape))
            for got, want in zip(any_size(raw), detector.decode(raw), strict=True):
                torch.testing.assert_close(got, want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


def test_import_costs_torch_only():
    """Nothing of torchvision, and nothing of torch.onnx, until it is needed."""
    code = """
import sys, json
import torch
before = set(sys.modules)
import agssp_zoo.models as m
model = m.build(m.default_config("yolov8_n"), init=False)
print(json.dumps(sorted({n.split(".")[0] for n in set(sys.modules) - before})))
print(json.dumps("torch.onnx" in sys.modules))
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    extra = set(json.loads(lines[0]))
    assert "torchvision" not in extra
    assert extra <= {"agssp_zoo", "safetensors", "torch", *sys.stdlib_module_names}
    assert json.loads(lines[1]) is False


def test_a_light_neck_on_a_heavy_backbone():
    """The neck and the head have their own widths; the maps' sides and the backbone's weights are the same."""
    module = models.build(models.default_config("yolov8_resnet50_lite", class_names=["a", "b"])).eval()
    plain = models.build(models.default_config("yolov8_resnet50", class_names=["a", "b"]), init=False)
    assert module.neck.channels == (64, 128, 256) and plain.neck.channels == (512, 1024, 2048)
    with torch.no_grad():
        fused = module.neck(module.backbone(torch.rand(1, 3, 64, 96)))
        raw = module(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in fused] == [(64, 8, 12), (128, 4, 6), (256, 2, 3)]
    assert [tuple(c.shape[1:]) for c, _ in raw] == [(2, 8, 12), (2, 4, 6), (2, 2, 3)]
    backbones = [{k: v.shape for k, v in m.state_dict().items() if k.startswith("backbone.")} for m in (module, plain)]
    assert backbones[0] == backbones[1]


def test_a_neck_needs_a_width_for_every_map():
    with pytest.raises(ValueError, match="3 maps go in and 2 come out"):
        PAFPN([8, 16, 32], [8, 16])
