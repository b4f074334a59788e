"""Convolutions folded with their norms: the same answers, never stale ones, and nothing of it in a module's state."""

from __future__ import annotations

import copy
import io
import types

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from agssp_zoo import models
from agssp_zoo.models import cpu_conv
from agssp_zoo.models.backbones.resnet import ResNetBottleneck
from agssp_zoo.models.layers import ConvNormAct, CSPLayer

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")),
    reason="folded on x86 with oneDNN only",
)


def drawn(module: nn.Module) -> nn.Module:
    """Evaluated, with norms that are not the identity."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for vector in (part.weight.data, part.running_var):
                vector.uniform_(0.5, 2)
            for vector in (part.bias.data, part.running_mean):
                vector.normal_()
    return module.eval()


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """What the modules answer themselves."""
    with torch.enable_grad():
        return module(x).detach()


@pytest.mark.parametrize(
    "module",
    [
        ConvNormAct(12, 20, 3),
        ConvNormAct(12, 20, 3, 2),
        ConvNormAct(12, 20, 1),
        CSPLayer(12, 24, 2, shortcut=True),
        ResNetBottleneck(12, 8, 2, v1_strides=False, project=True),
        ResNetBottleneck(12, 3, 1, v1_strides=False, project=False),
    ],
)
def test_answers_are_those_of_the_modules(module):
    drawn(module)
    for shape in ((1, 12, 16, 16), (3, 12, 10, 22), (1, 12, 1, 1), (2, 12, 40, 40)):  # one after another
        x = maps(*shape)
        with torch.no_grad():
            found = module(x)
        torch.testing.assert_close(found, plain(module, x), rtol=1e-4, atol=1e-4)
        assert found.is_contiguous(memory_format=torch.channels_last)
    half = maps(1, 24, 16, 16)[:, 12:]  # channels of a larger map
    with torch.inference_mode():
        torch.testing.assert_close(module(half), plain(module, half), rtol=1e-4, atol=1e-4)
        module(x)
    folded = [f for part in module.modules() for f in vars(part).values() if isinstance(f, cpu_conv.FoldedConv)]
    folded += [f for part in module.modules() if isinstance(part, ResNetBottleneck) for f in part._folded]
    assert folded and all(one.is_kept for one in folded)
    with torch.no_grad():
        assert module(torch.zeros(0, 12, 8, 8).to(memory_format=torch.channels_last)).shape[0] == 0


def _optimizer_step(layer: ConvNormAct) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(maps(1, 12, 8, 8)).square().mean().backward()
    optimizer.step()


def _new_state(layer: ConvNormAct, *, assign: bool) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=assign)


def _in_place(layer: ConvNormAct) -> None:
    with torch.no_grad():
        layer.conv.weight[3, 2, 1, 1] += 1


def _in_inference_mode(layer: ConvNormAct) -> None:
    with torch.inference_mode():
        layer.bn.bias += 1


def _new_data(layer: ConvNormAct) -> None:
    layer.conv.weight.data = layer.conv.weight.data + 1


def _running_statistics(layer: ConvNormAct) -> None:
    layer.train()(maps(4, 12, 8, 8))
    layer.eval()


def _norm_alone(layer: ConvNormAct) -> None:
    layer.bn.train()(maps(4, 20, 8, 8))
    layer.bn.eval()


@pytest.mark.parametrize(
    "change",
    [
        _optimizer_step,
        _in_place,
        _in_inference_mode,
        _new_data,
        _running_statistics,
        _norm_alone,
        lambda layer: _new_state(layer, assign=False),
        lambda layer: _new_state(layer, assign=True),
        lambda layer: layer.conv.weight.data.mul_(2),
        lambda layer: layer.bn.weight.data.mul_(2),
        lambda layer: layer.half().float(),
        lambda layer: setattr(layer.bn, "eps", 1.0),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(20).eval()),
        lambda layer: setattr(layer, "act", nn.ReLU()),
        lambda layer: setattr(layer, "act", nn.Hardswish()),
        lambda layer: setattr(layer.conv, "stride", (2, 2)),
        lambda layer: layer.bn.train(),
        lambda layer: nn.utils.parametrizations.weight_norm(layer.conv),
    ],
)
def test_changes_are_seen(change):
    layer = drawn(ConvNormAct(12, 20, 3))
    x = maps(2, 12, 16, 16)
    with torch.inference_mode():
        before = layer(x)
    assert layer._folded.is_kept
    change(layer)
    with torch.inference_mode():
        after = layer(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, plain(layer, x), rtol=1e-4, atol=1e-4)


def test_what_is_hooked_is_run():
    layer = drawn(ConvNormAct(12, 20, 3))
    x, seen = maps(1, 12, 8, 8), []
    for part in (layer.conv, layer.bn, layer.act):  # one after another
        with torch.inference_mode():
            layer(x)
        assert layer._folded.is_kept
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        with torch.inference_mode():
            layer(x)
        assert seen.pop() and not layer._folded.is_kept
        handle.remove()
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 12 * 20 * 9 * 64


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # PyTorch's own, on setting what it read before
def test_when_nothing_is_folded(monkeypatch):
    """With gradients, in mixed precision, for channels first, while tracing, where PyTorch has no such operator."""
    layer = drawn(ConvNormAct(12, 20, 3))
    x = maps(1, 12, 8, 8)
    expected = plain(layer, x)
    assert not layer._folded.is_kept
    with torch.inference_mode():
        first = layer(x.contiguous())
        assert first.is_contiguous() and not layer._folded.is_kept
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert not layer._folded.is_kept
    with torch.no_grad():
        torch.export.export(layer, (x,))
        assert not layer._folded.is_kept
    with torch.inference_mode():
        with torch.backends.mkldnn.flags(enabled=False):
            layer(x)
        assert not layer._folded.is_kept
        layer(x)
        assert layer._folded.is_kept
        layer._folded = cpu_conv.FoldedConv()
        monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())  # as in a torch that has it no more
        torch.testing.assert_close(layer(x), expected)
        assert not layer._folded.is_kept
    layer.double()
    with torch.inference_mode():
        assert layer(x.double()).dtype == torch.float64


def test_folded_weights_are_nobodys_state():
    config = models.default_config("yolov8_n", class_names=("a",))
    network = drawn(models.build(config))
    names = list(network.state_dict())
    x = maps(1, 3, 64, 64)
    with torch.inference_mode():
        network(x)
    layer = network.backbone.stem
    assert layer._folded.is_kept and list(network.state_dict()) == names
    copied = copy.deepcopy(network)
    torch.save(network, buffer := io.BytesIO())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copied, loaded):
        assert not other.backbone.stem._folded.is_kept
        with torch.inference_mode():
            assert torch.equal(other(x)[0][0], network(x)[0][0])
    network.train()(x)
    assert not any(part._folded.is_kept for part in network.modules() if isinstance(part, ConvNormAct))


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own, inside
def test_forward_gradients_are_not_lost():
    """Those of torch.func.jvp are computed under no_grad, too."""
    backbone = models.build(models.default_config("cspdarknet_n")).eval()
    x, direction = (torch.rand(1, 3, 64, 64).to(memory_format=torch.channels_last) for _ in range(2))

    def tangent() -> Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(backbone(forward_ad.make_dual(x, direction))[-1]).tangent

    expected = tangent()
    with torch.no_grad():
        backbone(x)  # keeps what it has folded
        found = tangent()
    assert expected is not None and expected.norm() > 0
    assert found is not None
    torch.testing.assert_close(found, expected)
