"""Swin: window attention against the definition, any size, what learns, conversion, masking, export."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.convert import convert_checkpoint, guess_architecture, official_name  # noqa: E402
from agssp_zoo.errors import CheckpointError, ConfigError, InvalidArgumentError, TrainingError  # noqa: E402
from agssp_zoo.models.window_attention import WindowAttention, make_plan  # noqa: E402

PARITY = Path(__file__).parents[1].parent / "shared" / "reference" / "parity"
needs_reference = pytest.mark.skipif(not PARITY.is_dir(), reason="needs the authors' layouts")
TINY = {"embed_dim": 16, "depths": "2,2,2,2", "heads": "1,2,4,4"}


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(name="swin_b", **more):
    """A small network with position biases and norms that are not the initial ones."""
    module = models.build(models.default_config(name, options=TINY, **more)).eval()
    with torch.no_grad():
        for key, value in module.named_parameters():
            if key.endswith("bias_table"):
                value.normal_(0, 0.5)
            elif value.ndim == 1:
                value.add_(torch.randn_like(value), alpha=0.1)
    return module


# --- attention --------------------------------------------------------------------------------------------------------


def slow_attention(attention, x, height, width):
    """Shifted window attention of one map, a token and a head at a time."""
    window, shift = attention.window, attention.shift
    down, across = -(-height // window) * window, -(-width // window) * window
    grid = torch.zeros(down, across, x.shape[-1])
    grid[:height, :width] = x.view(height, width, -1)
    q, k, v = attention.qkv(grid).chunk(3, dim=-1)

    def place(row, column):  # of a token after the shift: its window, place in it, and region
        r, c = (row - shift) % down, (column - shift) % across
        region = tuple((p >= n - window) + (p >= n - shift) if shift else 0 for p, n in ((r, down), (c, across)))
        return (r // window, c // window), (r % window, c % window), region

    tokens = [(r, c) for r in range(down) for c in range(across)]
    side = x.shape[-1] // attention.heads
    out = torch.zeros(height, width, x.shape[-1])
    for row, column in ((r, c) for r, c in tokens if r < height and c < width):
        own, mine, region = place(row, column)
        others = [t for t in tokens if place(*t)[0] == own]
        for head in range(attention.heads):
            part = slice(head * side, (head + 1) * side)
            logits = []
            for other in others:
                _, theirs, their_region = place(*other)
                index = (mine[0] - theirs[0] + window - 1) * (2 * window - 1) + mine[1] - theirs[1] + window - 1
                logit = q[row, column, part] @ k[other][part] / side**0.5 + attention.bias_table[index, head]
                logits.append(logit - (100 if region != their_region else 0))
            weights = torch.stack(logits).softmax(0)
            out[row, column, part] = sum(w * v[o][part] for w, o in zip(weights, others, strict=True))
    return attention.proj(out.flatten(0, 1))


@pytest.mark.parametrize(("height", "width"), [(6, 7), (3, 3), (2, 5)])
@pytest.mark.parametrize("shift", [0, 1])
def test_attention_is_what_the_paper_defines(height, width, shift):
    attention = WindowAttention(8, 2, 3, shift)
    torch.nn.init.normal_(attention.bias_table)
    x = torch.randn(2, height * width, 8)
    expected = torch.stack([slow_attention(attention, one, height, width) for one in x])
    for largest in (None, 20):  # also in several pieces
        plan = make_plan((2, height, width), 3, shift, x.device, largest)
        torch.testing.assert_close(attention(x, plan), expected, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():  # another way of computing
            torch.testing.assert_close(attention(x, plan), expected, rtol=1e-4, atol=1e-5)


def test_merging_takes_neighbours_in_the_order_of_unfold():
    merging = models.backbones.swin.PatchMerging(4)
    for value in merging.parameters():
        torch.nn.init.normal_(value)
    x = torch.randn(2, 4, 6, 8)
    columns = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    expected = merging.reduction(merging.norm(columns)).view(2, 3, 4, 8)
    torch.testing.assert_close(merging(x.permute(0, 2, 3, 1)), expected, rtol=1e-4, atol=1e-5)
    odd = merging(x[:, :, :5, :7].permute(0, 2, 3, 1))  # filled up with zeros
    filled = torch.nn.functional.pad(x[:, :, :5, :7], (0, 1, 0, 1)).permute(0, 2, 3, 1)
    torch.testing.assert_close(odd, merging(filled))


# --- the backbone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "window"), [("swin_b", 7), ("swin_b_simmim", 6)])
def test_backbone(name, window):
    full = models.build(models.default_config(name), init=False)  # on the meta device, where shapes can be counted
    assert [tuple(m.shape) for m in full(torch.empty(1, 3, 224, 192, device="meta"))] == [
        (1, 256, 28, 24), (1, 512, 14, 12), (1, 1024, 7, 6)
    ]  # fmt: skip
    assert sum(p.numel() for p in full.parameters()) / 1e6 == pytest.approx(86.7, abs=0.15)
    assert [(i.channels, i.reduction) for i in full.feature_info] == [(256, 8), (512, 16), (1024, 32)]
    backbone = tiny(name)
    assert backbone.stage1.blocks[1].attn.window == window and backbone.stage1.blocks[1].attn.shift == 3
    assert backbone.stage1.blocks[0].attn.shift == 0
    backbone.set_out_indices((0, 1, 2, 3))
    for height, width in ((64, 96), (61, 35), (3, 5)):
        x = torch.randn(3, 3, height, width)
        with torch.inference_mode():
            together, alone = backbone(x), [backbone(one[None]) for one in x]
        learning = backbone(x)
        sides = [(height, width)]
        for divisor in (4, 2, 2, 2):
            sides.append((-(-sides[-1][0] // divisor), -(-sides[-1][1] // divisor)))
        assert [tuple(m.shape[2:]) for m in together] == sides[1:]
        for level, one in enumerate(together):
            torch.testing.assert_close(one, torch.cat([maps[level] for maps in alone]), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one, learning[level], rtol=1e-4, atol=1e-5)
    assert all(len(stage.plans._kept) <= 8 for stage in backbone.stages)


def test_a_changed_table_changes_the_answer_at_once():
    backbone, x = tiny(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = backbone(x)[-1].clone()
    backbone.stage1.blocks[1].attn.bias_table.data.mul_(-2)  # as averaged weights are written
    with torch.inference_mode():
        assert not torch.allclose(backbone(x)[-1], before, atol=1e-3)


def test_the_position_bias_is_gathered_once_unless_something_learns():
    backbone = tiny()
    attention = backbone.stage1.blocks[1].attn
    with torch.inference_mode():
        backbone(torch.randn(1, 3, 64, 64))
        kept = attention.position_bias()
        backbone(torch.randn(2, 3, 32, 96))  # another size, the same windows
        assert attention.position_bias() is kept and kept.is_contiguous()
    assert attention.position_bias().requires_grad
    backbone.train()(torch.randn(1, 3, 64, 64))[-1].mean().backward()
    assert attention.bias_table.grad.abs().sum() > 0
    backbone.eval().load_state_dict({name: value + 1 for name, value in backbone.state_dict().items()})
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        assert torch.equal(attention.position_bias(), kept + 1)
        assert torch.equal(copied.stage1.blocks[1].attn.position_bias(), kept + 1)


@pytest.mark.parametrize("size", [(56, 56), (110, 112), (60, 40)])
def test_maps_larger_than_the_cache_give_the_same(size, monkeypatch):
    """Where tokens are gathered before they are multiplied: in the first stage, if few places are filled up."""
    from agssp_zoo.models import cpu_linear, window_attention

    torch.manual_seed(0)
    x, calls = torch.randn(2, 3, *size), []
    gathers_first = window_attention._gathers_first
    monkeypatch.setattr(
        window_attention, "_gathers_first", lambda *args: calls.append(gathers_first(*args)) or calls[-1]
    )
    network = tiny()
    with torch.inference_mode():
        expected = network(x)
    assert not any(calls)
    monkeypatch.setattr(cpu_linear, "PIECE", 2048)
    pieces = tiny()
    pieces.load_state_dict(network.state_dict())
    with torch.inference_mode():
        found = pieces(x)
    assert any(calls) == (size != (60, 40))  # of that a fifth would be filled up
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gelu", [False, True])
def test_linear_layers_answer_the_same_without_onednn(gelu, monkeypatch):
    from agssp_zoo.models import cpu_linear

    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 7, 20), torch.randn(12, 20), torch.randn(12)
    expected = x @ weight.T + bias
    expected = torch.nn.functional.gelu(expected) if gelu else expected
    with torch.inference_mode():
        quick = cpu_linear.linear(x, weight, bias, gelu=gelu)
        monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())  # as in a torch that has it no more
        assert not cpu_linear.has_onednn("_linear_pointwise")
        plain = cpu_linear.linear(x, weight, bias, gelu=gelu)
    for found in (quick, plain):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}),
        lambda layer: layer.load_state_dict({"weight": torch.ones(24, 16), "bias": torch.ones(24)}, assign=True),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight.detach() * 2)),
        lambda layer: layer.bias.data.add_(1),
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer).parametrizations.weight.original0.data.mul_(2),
    ],
)
def test_weights_in_an_order_of_their_own_are_never_stale(change):
    from agssp_zoo.models import cpu_linear

    torch.manual_seed(0)
    layer, x = cpu_linear.Linear(16, 24), torch.randn(2, 5, 16)
    with torch.inference_mode():
        before = layer(x)
        assert layer._ordered.is_kept == cpu_linear.can_reorder()
    change(layer)
    expected = (x @ layer.weight.T + layer.bias).detach()
    with torch.inference_mode():
        assert not torch.equal(layer(x), before)
        for shape in ((2, 5, 16), (10, 16), (1, 10, 16)):
            torch.testing.assert_close(layer(x.view(shape)).flatten(0, -2), expected.flatten(0, -2))
        assert layer(x[:0]).shape == (0, 5, 24)


def test_weights_in_an_order_of_their_own_are_nobodys_state():
    from agssp_zoo.models import cpu_linear

    layer, x = cpu_linear.Linear(16, 24), torch.randn(5, 16)
    with torch.inference_mode():
        layer(x)
    assert list(layer.state_dict()) == ["weight", "bias"]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert not copied._ordered.is_kept
    with torch.inference_mode():
        assert torch.equal(copied(x), layer(x))
    layer(x).sum().backward()
    assert not layer._ordered.is_kept and layer.weight.grad is not None


def test_what_options_make_no_network():
    for options, named in (
        ({"depths": "2,2"}, "as many heads"),
        ({"heads": "3,6,12,24"}, "divide"),
        ({"depths": "2,x,2,2"}, "numbers above 0"),
        ({"depths": "2,0,2,2"}, "numbers above 0"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"depth": "2"}, "no option"),
    ):
        with pytest.raises(ConfigError, match=named):
            models.build(models.default_config("swin_b", options=options))


def test_options_are_compared_with_the_file(tmp_path):
    module = tiny()
    models.save_weights(module, tmp_path / "x.safetensors", module.config)
    models.load(module.config, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="heads=1,2,4,4"):
        models.load(models.default_config("swin_b", options={**TINY, "heads": "2,2,4,4"}), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="swin_b, but the config asks for swin_b_simmim"):
        models.load(models.default_config("swin_b_simmim", options=TINY), tmp_path / "x.safetensors")
    from safetensors.torch import save_file  # a file that says nothing of itself

    save_file({n: t.contiguous() for n, t in module.state_dict().items()}, tmp_path / "y.safetensors")
    models.load(module.config, tmp_path / "y.safetensors")


# --- learning ---------------------------------------------------------------------------------------------------------


def test_frozen_stages_and_norms_that_nobody_needs():
    backbone = tiny()
    backbone.set_out_indices((2, 3))
    backbone.freeze_stages(1).train()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {name.partition(".")[0] for name in frozen} == {"stem", "stage1", "stage2"}
    assert {name for name in frozen if name.startswith("stage2.")} == {
        "stage2.downsample.norm.weight", "stage2.downsample.norm.bias", "stage2.downsample.reduction.weight",
        "stage2.norm.weight", "stage2.norm.bias",
    }  # fmt: skip
    sum(m.sum() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())
    assert not backbone.stage1.training and backbone.stage2.training
    backbone.set_out_indices((0, 1, 2, 3))
    assert backbone.stage2.norm.weight.requires_grad and not backbone.stage1.norm.weight.requires_grad
    backbone.freeze_stages(0)
    assert all(p.requires_grad for p in backbone.parameters())


def test_checkpointing_changes_no_gradient():
    plain = tiny().train()
    plain.set_drop_path(0.4)
    saving = copy.deepcopy(plain)
    saving.set_checkpointing(True)
    x = torch.randn(4, 3, 64, 64)
    gradients = []
    for module in (plain, saving):
        torch.manual_seed(3)  # the same branches are left out
        sum(m.square().mean() for m in module(x)).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_drop_path_leaves_out_and_keeps_the_mean():
    from agssp_zoo.models.drop_path import DropPath

    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 3))
    assert out.flatten(1).unique(dim=1).shape[1] == 1 or (out.flatten(1) == out[:, :1, 0]).all()
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(torch.ones(3, 2)), torch.ones(3, 2))
    backbone = tiny()
    backbone.set_drop_path(0.7)
    rates = [b.drop_path.rate for b in backbone.modules() if hasattr(b, "drop_path")]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    resnet = models.build(models.default_config("resnet50"), init=False)
    resnet.set_drop_path(0)
    resnet.set_checkpointing(False)
    with pytest.raises(InvalidArgumentError, match="drop_path"):
        resnet.set_drop_path(0.1)
    with pytest.raises(InvalidArgumentError, match="checkpointing"):
        resnet.set_checkpointing(True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_yolo_on_swin_learns(precision):
    from agssp_zoo.models import Targets
    from agssp_zoo.training.losses import DetectionLoss

    detector = models.build(models.default_config("yolov8_swin_b", options=TINY, class_names=("a", "b"))).train()
    images, boxes = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.tensor([[[8.0, 8, 32, 40]], [[20, 30, 60, 62]]])
    labels = torch.tensor([[0], [1]])
    for image, (box,), (label,) in zip(images, boxes.long(), labels, strict=True):
        image[box[1] : box[3], box[0] : box[2]] = 90 + 120 * label
    loss = DetectionLoss(detector.strides, detector.num_classes, detector.reg_max)
    targets = Targets(boxes=boxes, labels=labels, mask=torch.ones(2, 1, dtype=torch.bool))
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=2e-3)
    seen = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            raw = detector(detector.normalize(images))
        value = loss([(c.float(), b.float()) for c, b in raw], targets).total
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(value.item())
    assert np.isfinite(seen).all() and seen[-1] < 0.8 * seen[0], seen
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)


# --- masking ----------------------------------------------------------------------------------------------------------


def pretraining(**changes: Any):
    from agssp_zoo.training.pretrain.network import PretrainNetwork
    from agssp_zoo.training.pretrain.recipes import load_recipe
    from agssp_zoo.training.pretrain.settings import PretrainSettings

    recipe = {**load_recipe("agbp_swin_b_simmim").settings, "size": 96, "pixels": "model"} | changes
    settings = PretrainSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()})
    return PretrainNetwork(tiny("swin_b_simmim"), settings, 2).train()


def test_hidden_pixels_cannot_be_seen_and_are_foretold():
    network = pretraining()
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    maps, labels = torch.rand(2, 1, 24, 24), torch.zeros(2, dtype=torch.int64)
    hidden = torch.zeros(2, 3, 3, dtype=torch.bool)
    hidden[0, 0, 0] = hidden[1, 1:, 2] = True
    parts = network(images, maps, labels, hidden)
    assert network.parts == ("stage4_loss", "task_loss") and parts.shape == (2,)
    task = network.task
    x = network.backbone.normalize(images)
    changed = images.clone()
    changed[0, :32, :32] = 255 - changed[0, :32, :32]
    features = [task(network.stages, network.backbone.normalize(i), labels, hidden)[0] for i in (images, changed)]
    for one, other in zip(*features, strict=True):
        torch.testing.assert_close(one, other)  # what is hidden changes nothing
    # The loss is that of hidden pixels alone.
    with torch.no_grad():
        task.decoder.weight.zero_()
        task.decoder.bias.zero_()
        _, loss, visible = task(network.stages, x, labels, hidden)
    shown = torch.nn.functional.interpolate(hidden[:, None].float(), (96, 96)).bool().expand_as(x)
    assert loss.item() == pytest.approx(x[shown].abs().mean().item(), rel=1e-4)
    assert visible is None  # tokens respond everywhere


def test_the_token_learns_through_frozen_stages():
    network = pretraining()
    assert network.backbone.num_frozen_stages == 1
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    hidden = torch.rand(2, 3, 3) < 0.6
    network(images, torch.rand(2, 1, 24, 24), torch.zeros(2, dtype=torch.int64), hidden).sum().backward()
    assert network.task.token.grad.abs().sum() > 0
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # else several processes would wait for them
    assert not network.backbone.stage1.blocks[0].fc1.weight.requires_grad
    with pytest.raises(TrainingError, match="mask-patch"):
        pretraining(mask_patch=16)


# --- conversion -------------------------------------------------------------------------------------------------------


def layout(name):
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: shape for key, (shape, _) in module.read_keys(PARITY / f"{name}.keys.txt").items()}


@needs_reference
@pytest.mark.parametrize("name", ["swin_b", "swin_b_simmim", "yolov8_swin_b", "yolov8_swin_b_simmim"])
def test_every_entry_of_the_authors_layout_has_a_place(name):
    task = "detector" if name.startswith("yolov8") else "backbone"
    file = name if task == "detector" else f"agbp_{name}"
    theirs = layout(file)
    classes = {"class_names": [f"c{i}" for i in range(6)]} if task == "detector" else {}
    module = models.build(models.default_config(name, **classes), init=False)
    ours = {official_name(n, task): tuple(t.shape) for n, t in module.state_dict().items()}
    norms = {"backbone.norm0"} if task == "detector" else {f"backbone.norm{i}" for i in range(3)}
    assert {n.rpartition(".")[0] for n in ours.keys() - theirs.keys()} == norms
    rest = {n for n in theirs.keys() - ours.keys() if not n.endswith("relative_position_index")}
    assert rest == (
        set() if task == "detector" else {n for n in theirs if "mask_token" in n or "head.fc" in n or "decoder" in n}
    )
    assert all(ours[n] == theirs[n] for n in ours.keys() & theirs.keys())
    state = {n: torch.empty(s, device="meta") for n, s in theirs.items()}
    assert guess_architecture(state) == name


@needs_reference
def test_a_stage_one_checkpoint_is_converted(tmp_path, capsys):
    from agssp_zoo.cli import main

    generator = torch.Generator().manual_seed(5)
    state = {n: torch.rand(s, generator=generator) for n, s in layout("agbp_swin_b_simmim").items()}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "x.pth")
    assert main(["convert", str(tmp_path / "x.pth"), "--arch", "swin_b_simmim", "--out", str(tmp_path / "out")]) == 0
    assert "stage1.norm, stage2.norm, stage3.norm" in capsys.readouterr().err
    config = ModelConfig.load(tmp_path / "out")
    assert config.provenance["not_in_file"] == ["stage1.norm", "stage2.norm", "stage3.norm"]
    assert config.preprocess.size == (192, 192) and config.preprocess.mean == (110.2955, 113.433, 109.914)
    backbone = models.load(config, tmp_path / "out" / "model.safetensors")
    for name, tensor in backbone.state_dict().items():
        theirs = state.get(official_name(name, "backbone"))
        if theirs is None:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        else:
            assert torch.equal(tensor, theirs), name
    with pytest.raises(CheckpointError, match=r"looks like swin_b_simmim, not swin_b"):
        convert_checkpoint(tmp_path / "x.pth", "swin_b", tmp_path / "wrong")
    del state["backbone.norm3.weight"]
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"Missing \(1\): backbone\.norm3\.weight"):
        convert_checkpoint(tmp_path / "x.pth", "swin_b_simmim", tmp_path / "wrong")


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_swin_in_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    from agssp_zoo.backbone import load_backbone
    from agssp_zoo.export import export_onnx

    backbone = tiny()
    file = export_onnx(backbone, tmp_path / "x.onnx", verify=False)
    onnx = load_backbone(file, engine="onnx")
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 64, 96), (3, 32, 32), (1, 224, 256)):
        images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
        with torch.inference_mode():
            expected = backbone(backbone.normalize(torch.tensor(images)))
        for got, want in zip(onnx.run(images), expected, strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)


def test_other_maps_do_not_thaw_what_is_frozen():
    options = {"embed_dim": 16, "depths": "1,1,1,1", "heads": "1,1,1,1"}
    backbone = models.build(models.default_config("swin_b_simmim", options=options)).requires_grad_(False)
    backbone.set_out_indices((0, 1, 2, 3))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.requires_grad_(True).set_out_indices((1, 3))
    names = ("stage1.norm.", "stage3.norm.")
    assert all(p.requires_grad != name.startswith(names) for name, p in backbone.named_parameters())
