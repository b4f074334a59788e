"""Faster R-CNN: its parts on cases worked out by hand, whole small networks, training, and the exported file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from training_runs import SMALL, rows, write_data  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.convert import convert_checkpoint, official_name  # noqa: E402
from agssp_zoo.errors import CheckpointError, InvalidArgumentError, TrainingError  # noqa: E402
from agssp_zoo.folder import write_folder  # noqa: E402
from agssp_zoo.models.anchors import anchors_of  # noqa: E402
from agssp_zoo.models.box_coder import MAX_STRETCH, clip, decode, encode  # noqa: E402
from agssp_zoo.models.heads.rpn import Proposals  # noqa: E402
from agssp_zoo.models.heads.two_stage import REGION_SAMPLE, choose_regions  # noqa: E402
from agssp_zoo.models.matching import BACKGROUND, IGNORED, MatchRule, SampleRule, match, sample  # noqa: E402
from agssp_zoo.models.operators import best_anchors, suppress  # noqa: E402
from agssp_zoo.models.roi_pooling import level_of, pool_regions  # noqa: E402
from agssp_zoo.models.targets import Targets  # noqa: E402

ARCHITECTURE = "faster_rcnn_swin_b"
NAMES = ("crack", "pit", "scale")
OPTIONS = {"embed_dim": 16, "depths": "1,1,2,1", "heads": "1,2,4,8", "pyramid_width": 32, "region_width": 64}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def small(names=NAMES, options=None, seed=3):
    """A small network whose random answers vary: about as many boxes above the threshold as a trained one has."""
    torch.manual_seed(seed)
    module = models.build(
        models.default_config(ARCHITECTURE, class_names=names, options={**OPTIONS, **(options or {})})
    ).eval()
    with torch.no_grad():
        for layer in (module.head.rpn.conv, module.head.rpn.objectness, module.head.rpn.deltas):
            layer.weight.mul_(30)
        module.head.roi.box_deltas.weight.mul_(30)
        module.head.roi.class_logits.weight.mul_(100)
    return module


def targets(*boxes, labels=None):
    """Targets of one image."""
    labels = torch.tensor([labels or [0] * len(boxes)], dtype=torch.int64)
    there = torch.ones(1, len(boxes), dtype=torch.bool)
    return Targets(labels, torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4), there)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_anchors_are_centred_on_corners_and_not_rounded():
    (first, second) = anchors_of([(1, 2), (1, 1)], (4, 8), torch.device("cpu"))
    root = math.sqrt(2)
    wide, tall = [-16 * root, -8 * root, 16 * root, 8 * root], [-8 * root, -16 * root, 8 * root, 16 * root]
    expected = torch.tensor([wide, [-16, -16, 16, 16], tall])
    assert torch.allclose(first[:3], expected)
    assert torch.allclose(first[3:], expected + torch.tensor([4.0, 0, 4, 0]))
    assert torch.allclose(second, 2 * expected)


def test_deltas_there_and_back():
    generator = torch.Generator().manual_seed(1)
    corners, sides = torch.rand(2, 50, 2, generator=generator) * 100, torch.rand(2, 50, 2, generator=generator) * 60 + 1
    boxes, references = torch.cat([corners, corners + sides], dim=-1)
    std = (0.1, 0.1, 0.2, 0.2)
    assert torch.allclose(decode(encode(boxes, references, std), references, std), boxes, atol=1e-3)
    assert encode(references, references).abs().max() < 1e-5
    grown = decode(torch.tensor([0.0, 0, 99, 99]), torch.tensor([0.0, 0, 2, 2]))
    assert torch.allclose(grown[2] - grown[0], torch.tensor(2 * math.exp(MAX_STRETCH)))


def test_boxes_are_cut_off_at_each_images_own_size():
    boxes = torch.tensor([[-5.0, -5, 500, 500]]).expand(2, 3, 4)
    cut = clip(boxes, torch.tensor([[10, 20], [30, 40]]))
    assert cut[:, 0].tolist() == [[0, 0, 20, 10], [0, 0, 40, 30]]
    assert torch.equal(clip(boxes[:, :, None], torch.tensor([[10, 20], [30, 40]]))[:, :, 0], cut)


def test_matching_follows_the_thresholds_and_gives_every_box_its_best():
    references = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [50, 50, 60, 54], [80, 80, 90, 90]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    rule = MatchRule(positive=0.7, negative=0.3, best_from=0.3)
    assert match(references, boxes, rule).tolist() == [0, IGNORED, BACKGROUND, 1, BACKGROUND]
    plain = MatchRule(positive=0.7, negative=0.3)
    assert match(references, boxes, plain).tolist() == [0, IGNORED, BACKGROUND, IGNORED, BACKGROUND]
    assert match(references, boxes[:0], rule).tolist() == [BACKGROUND] * 5


def test_a_sample_has_its_share_and_is_filled_up():
    matched = torch.tensor([0] * 50 + [BACKGROUND] * 50 + [IGNORED] * 50)
    draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    positive, negative = sample(matched, SampleRule(40, 0.25), draw())
    assert len(positive) == 10 and len(negative) == 30
    assert (matched[positive] == 0).all() and (matched[negative] == BACKGROUND).all()
    assert len(set(positive.tolist())) == 10
    assert torch.equal(positive, sample(matched, SampleRule(40, 0.25), draw())[0])
    few, rest = sample(matched[47:], SampleRule(40, 0.25), draw())
    assert few.tolist() == [0, 1, 2] and len(rest) == 37


def test_regions_hold_the_labelled_boxes_and_what_leads_to_them():
    proposals = Proposals(
        torch.tensor([[[0.0, 0, 10, 8], [40, 40, 50, 50], [0, 0, 0, 0]]]), torch.tensor([[0.9, 0.8, -1]])
    )
    regions = choose_regions(proposals, targets([0, 0, 10, 10], labels=[2]), num_classes=3)
    assert sorted(regions.labels.tolist()) == [2, 2, 3]  # the box itself, the first proposal, background; no filling
    at = regions.boxes[:, 3].tolist().index(8)
    assert torch.allclose(regions.deltas[at], torch.tensor([0, 1 / 8 / 0.1, 0, math.log(10 / 8) / 0.2]))
    assert (regions.deltas[regions.labels == 3] == 0).all()
    nothing = choose_regions(proposals, targets(), num_classes=3)
    assert nothing.labels.tolist() == [3, 3] and REGION_SAMPLE.count == 512


def test_best_anchors_fill_up_and_suppression_leaves_fillings_out():
    objectness, deltas = torch.zeros(1, 3, 1, 2), torch.zeros(1, 12, 1, 2)
    objectness[0, 1, 0, 1] = 5.0
    boxes, scores = best_anchors(objectness, deltas, stride=4, most=8)
    assert boxes.shape == (1, 8, 4) and boxes[0, 0].tolist() == [-12, -16, 20, 16]
    assert scores[0, :6].min() == 0.5 and scores[0, 6:].tolist() == [-1, -1]
    kept = suppress(boxes, scores, torch.zeros(8, dtype=torch.int64), iou=1.0, keep=10, groups=1)
    assert sorted(kept[0].tolist()) == [-1] * 4 + [0, 1, 2, 3, 4, 5]
    apart = suppress(boxes[:, [0, 0, 0]], scores[:, :3], torch.tensor([0, 0, 1]), iou=0.5, keep=3, groups=2)
    assert apart[0].tolist() == [0, 2, -1]


def test_regions_are_pooled_from_the_level_of_their_size():
    sides = torch.tensor([1.0, 111, 112, 223, 224, 448, 5000])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert level_of(boxes, 4).tolist() == [0, 0, 1, 1, 2, 3, 3]
    maps = [torch.full((2, 1, 128 // 2**i, 128 // 2**i), float(i)) for i in range(4)]
    maps[0][1] = 7.0
    pooled = pool_regions(maps, boxes[:6] * 0.999, torch.tensor([0, 1, 0, 0, 0, 0]), (4, 8, 16, 32))
    assert [round(float(x.mean()), 3) for x in pooled] == [0, 7, 0, 1, 1, 2]


# --- the network -----------------------------------------------------------------------------------------------------


def pixels(batch, height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (batch, height // 8, width // 8, 3), dtype=np.uint8)
    return torch.from_numpy(np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2)))


def answer(module, images, sizes=None):
    with torch.inference_mode():
        raw = module(module.normalize(images, sizes), sizes)
        return raw, *module.decode(raw)


def test_what_lies_beyond_the_valid_size_has_no_influence():
    module, images, sizes = small(), pixels(2, 64, 96), torch.tensor([[50, 96], [64, 71]])
    raw, boxes, scores = answer(module, images, sizes)
    other = images.clone()
    other[0, 50:], other[1, :, 71:] = 255, 3
    again = answer(module, other, sizes)
    assert torch.equal(boxes, again[1]) and torch.equal(scores, again[2])
    assert raw.proposals[0, :, 3].max() == 50 and boxes[0, ..., 3].max() == 50 and boxes[1, ..., 2].max() == 71
    whole = answer(module, images)
    assert whole[1][0, ..., 3].max() == 64 and not torch.equal(whole[2], scores)


def test_a_batch_answers_as_its_images_alone():
    module, images = small(), pixels(3, 64, 64)
    _, boxes, scores = answer(module, images)
    for i in range(3):
        _, one, value = answer(module, images[i : i + 1])
        count = one.shape[1]
        assert torch.allclose(boxes[i : i + 1, :count], one, atol=1e-2)
        assert torch.allclose(scores[i : i + 1, :count], value, atol=1e-3)
        assert (scores[i, count:] == 0).all()


def test_no_detections_is_an_answer():
    module = small()
    with torch.no_grad():
        module.head.roi.class_logits.bias[-1] = 100.0
    _, boxes, scores = answer(module, pixels(1, 64, 64))
    found = models.select_detections(
        boxes, scores, conf=0.05, iou=0.5, max_det=100, max_candidates=30000, multi_label=True
    )
    assert int(found[3][0]) == 0 and (found[2] == -1).all()


def test_every_class_has_a_box_of_its_own():
    boxes = torch.tensor([[[[0.0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 9], [50, 50, 60, 60]]]])
    scores = torch.tensor([[[0.9, 0.8], [0.7, 0.6]]])
    found = models.select_detections(
        boxes, scores, conf=0.1, iou=0.5, max_det=5, max_candidates=30000, multi_label=True
    )
    assert found[0][0, :3].tolist() == [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]]
    assert found[2][0].tolist() == [0, 1, 1, -1, -1]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgumentError, match="multiples of 32"):
        small()(torch.zeros(1, 3, 64, 70))


# --- training --------------------------------------------------------------------------------------------------------


def test_loss_of_a_batch_with_and_without_boxes():
    from agssp_zoo.training.families import family_of
    from agssp_zoo.training.settings import TrainSettings

    module = small().train()
    loss = family_of(module).build_loss(module, TrainSettings(data="x"), np.array([1, 1, 1]))
    x = module.normalize(pixels(2, 64, 64))
    mask = torch.tensor([[True], [False]])  # the second image shows nothing
    given = Targets(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[[8.0, 8, 40, 44]], [[0, 0, 0, 0]]]), mask)
    for one, boxes in ((given, True), (Targets(given.labels, given.boxes, torch.zeros_like(mask)), False)):
        module.zero_grad(set_to_none=True)
        sums = loss(module(x, None, one), one)
        assert torch.isfinite(sums.parts).all() and torch.allclose(sums.total.detach(), sums.parts.sum())
        assert (sums.parts[[1, 3]] > 0).all() == boxes and (sums.parts[[0, 2]] > 0).all()
        sums.total.backward()
        assert all(parameter.grad is not None for parameter in module.head.parameters())


def test_perfect_answers_cost_nothing():
    from agssp_zoo.training.losses.two_stage import TwoStageLoss

    module = small()
    loss = TwoStageLoss(module.head.rpn, 3)
    given = targets([4, 4, 36, 36], [30, 20, 61, 60], labels=[0, 2])
    raw = module(module.normalize(pixels(1, 64, 64)), None, given)
    regions = raw.regions
    logits = 50.0 * torch.nn.functional.one_hot(regions.labels, 4)
    deltas = regions.deltas[:, None].expand(-1, 3, -1)
    assert loss(raw._replace(class_logits=logits, box_deltas=deltas), given).parts[2:].tolist() == [0, 0]
    wrong = loss(raw._replace(class_logits=logits.roll(1, 1), box_deltas=deltas + 1), given).parts[2:]
    positive = (regions.labels < 3).sum() / len(regions.labels)
    assert wrong[0] == 50 and torch.allclose(wrong[1], 4 * positive)


def test_settings_of_another_loss_are_refused():
    from agssp_zoo.training.families import family_of
    from agssp_zoo.training.settings import TrainSettings

    module = small()
    with pytest.raises(TrainingError, match="--cls-pw"):
        family_of(module).build_loss(module, TrainSettings(data="x", cls_pw=0.5), np.array([1, 1, 1]))


def write_small(folder: Path, module):
    module.reset_parameters()
    return write_folder(
        folder, module.config, {"model.safetensors": lambda path: models.save_weights(module, path, module.config)}
    )


def test_eight_images_are_learnt_by_heart(tmp_path):
    from agssp_zoo.detector import load_detector
    from agssp_zoo.training.finetune import finetune

    data = write_data(tmp_path / "data", train=8, val=1)
    module = small(("dark", "bright"), {"depths": "1,1,1,1", "pyramid_width": 48, "region_width": 256})
    # Patches of one gray level differ in strength only, which the first norm takes away: the ground's must be zero.
    config = module.config.replace(preprocess=replace(module.config.preprocess, mean=(128.0, 128.0, 128.0)))
    start = write_small(tmp_path / "start", models.build(config))
    settings = {
        **SMALL, "epochs": 75, "batch": 8, "lr": 0.002, "final_lr": 0.1, "warmup": 2.0, "val_split": "train",
        "val_every": 75, "ema_decay": 0.95, "ema_ramp": 20.0,
        **dict.fromkeys(("mosaic", "translate", "scale", "flip_lr", "flip_ud"), 0.0),
        **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0),
    }  # fmt: skip
    with pytest.raises(TrainingError, match="--cls-pw is of the YOLOv8 detectors' loss"):
        finetune(**settings, cls_pw=0.5, data=str(data), model=str(start), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    outcome = finetune(**settings, data=str(data), model=str(start), out=str(tmp_path / "run"))
    found = rows(tmp_path / "run")
    assert list(found[0])[3:7] == ["rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss"]
    assert float(found[-1]["map50"]) > 0.95
    (answer,) = load_detector(outcome.folder / "best").predict(data / "images" / "train" / "1.png", conf=0.5)
    assert answer.labels.tolist() == [1]


def test_other_classes_and_frozen_stages_in_half_precision(tmp_path):
    from safetensors.torch import load_file

    from agssp_zoo.training.finetune import finetune

    data = write_data(tmp_path / "data", train=4, val=2, names=("dark", "bright", "striped"))
    start = write_small(tmp_path / "start", small())
    settings = {**SMALL, "weights": "auto", "epochs": 1, "close_mosaic": 0, "freeze": 2, "precision": "bf16"}
    finetune(**settings, data=str(data), model=str(start), out=str(tmp_path / "run"))
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "run" / "last"))
    still = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {
        name for name in before if name.startswith(("backbone.patch_embed.", "backbone.stage1.", "backbone.stage2."))
    }
    assert frozen and frozen <= still
    assert not [name for name in before if name.startswith("head.rpn.") and name in still]
    # three other classes: the layers that tell classes apart were drawn anew, the ones before were taken over
    name = "head.roi.class_logits.weight"
    assert not torch.allclose(before[name], after[name], atol=3e-3)
    assert torch.allclose(before["head.roi.hidden.0.weight"], after["head.roi.hidden.0.weight"], atol=3e-3)


# --- checkpoints of the authors --------------------------------------------------------------------------------------


def write_checkpoint(path: Path, **changes) -> Path:
    """A checkpoint in the authors' layout with a row more or less of this or that."""
    module = models.build(models.default_config(ARCHITECTURE, class_names=("anomaly",)), init=False)
    state = {official_name(name): torch.zeros(1).expand(tensor.shape) for name, tensor in module.state_dict().items()}
    state.update(changes)
    torch.save({"meta": {}, "state_dict": {name: value for name, value in state.items() if value is not None}}, path)
    return path


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    whole = write_checkpoint(tmp_path / "whole.pth")
    for other in ("yolov8_s", "yolov8_resnet50", "yolov8_swin_b", "dino_swin_b", "cspdarknet_s"):
        with pytest.raises(CheckpointError, match=f"looks like faster_rcnn_swin_b, not {other}"):
            convert_checkpoint(whole, other, tmp_path / "out")
    with pytest.raises(CheckpointError, match="has 1 classes, but 6 class names"):
        convert_checkpoint(whole, ARCHITECTURE, tmp_path / "out", class_names=list("abcdef"))
    without = write_checkpoint(tmp_path / "without.pth", **{"rpn_head.rpn_cls.bias": None})
    with pytest.raises(CheckpointError, match=r"Missing \(1\): rpn_head.rpn_cls.bias"):
        convert_checkpoint(without, ARCHITECTURE, tmp_path / "out")
    background = {"roi_head.bbox_head.fc_cls.weight": torch.zeros(1, 1024)}
    with pytest.raises(CheckpointError, match="fc_cls"):
        convert_checkpoint(write_checkpoint(tmp_path / "b.pth", **background), ARCHITECTURE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the exported file -----------------------------------------------------------------------------------------------


def test_the_exported_file_answers_what_pytorch_answers(tmp_path):
    pytest.importorskip("onnxscript")
    from agssp_zoo.engines.onnx import OnnxEngine
    from agssp_zoo.engines.pytorch import PyTorchEngine
    from agssp_zoo.export import export_onnx

    module = small()
    engine = OnnxEngine.load(export_onnx(module, tmp_path / "model.onnx", verify=False))
    other = PyTorchEngine(module)
    assert {"images", "sizes", "conf_threshold", "iou_threshold"} <= engine.inputs
    for batch, height, width, sizes in (
        (1, 96, 64, None),
        (3, 64, 160, [[64, 160], [40, 100], [64, 131]]),
        (1, 32, 32, None),
    ):
        images = pixels(batch, height, width).numpy()
        given = None if sizes is None else np.array(sizes, np.int64)
        one, two = engine.run(images, sizes=given), other.run(images, sizes=given)
        assert one.boxes.shape == (batch, 100, 4)
        for i in range(batch):
            count = int(two.count[i])
            assert count > 0 and abs(int(one.count[i]) - count) <= 0.02 * count
            distance = np.abs(one.boxes[i, : one.count[i], None] - two.boxes[i, None, :count]).max(2)
            nearest = distance.argmin(1)
            same = (distance.min(1) < 0.1) & (one.labels[i, : one.count[i]] == two.labels[i, nearest])
            assert same.mean() > 0.95
    with_row_for_all = engine.run(pixels(2, 64, 96).numpy(), sizes=np.array([[40, 80]], np.int64))
    repeated = engine.run(pixels(2, 64, 96).numpy(), sizes=np.array([[40, 80]] * 2, np.int64))
    assert np.array_equal(with_row_for_all.boxes, repeated.boxes) and repeated.boxes[..., 3].max() <= 40
