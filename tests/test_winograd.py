"""3x3 convolutions with fewer multiplications: the sums, the shapes, and where they are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agssp_zoo.models import winograd
from agssp_zoo.models.cpu_linear import has_onednn
from agssp_zoo.models.layers import ConvNormAct

pytestmark = pytest.mark.skipif(not has_onednn("_reorder_linear_weight"), reason="with oneDNN only")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def literally(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In float64, window by window."""
    windows = F.unfold(x.double(), 3, padding=1)
    out = weight.double().flatten(1) @ windows + bias.double()[:, None]
    return out.view(x.shape[0], len(weight), *x.shape[2:])


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (2, 16, 7, 9), (1, 3, 1, 1), (3, 4, 2, 5), (1, 300, 96, 30)])
@pytest.mark.parametrize(("act", "function"), [("none", lambda x: x), ("relu", F.relu), ("swish", F.silu)])
def test_equals_a_literal_convolution(shape, act, function):
    x = drawn(*shape).contiguous(memory_format=torch.channels_last)
    weight, bias, other = drawn(6, shape[1], 3, 3, seed=1) / shape[1] ** 0.5, drawn(6, seed=2), drawn(6, *shape[2:])
    other = other.expand(shape[0], -1, -1, -1)
    with torch.inference_mode():
        found = winograd.convolve(x, winograd.transform_weight(weight), bias, act)
        added = winograd.convolve(x, winograd.transform_weight(weight), bias, act, other)
    expected = literally(x, weight, bias)
    torch.testing.assert_close(found.double(), function(expected), rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(added.double(), function(expected + other), rtol=1e-4, atol=3e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_rounds_no_worse_than_a_plain_convolution():
    x = drawn(1, 256, 40, 40).contiguous(memory_format=torch.channels_last)
    weight, bias = drawn(256, 256, 3, 3, seed=1) / 48, drawn(256, seed=2)
    expected = literally(x, weight, bias)
    with torch.inference_mode():
        found = winograd.convolve(x, winograd.transform_weight(weight), bias, "none")
        plain = F.conv2d(x, weight, bias, padding=1)
    assert (found - expected).square().mean() <= 1.5 * (plain - expected).square().mean()


def test_where_it_is_used():
    assert winograd.pays(256, 256, (1, 256, 40, 40))
    assert winograd.pays(512, 128, (4, 128, 20, 20))
    assert not winograd.pays(128, 128, (1, 128, 80, 80))  # few channels
    assert not winograd.pays(1024, 64, (1, 64, 80, 80))
    assert not winograd.pays(512, 512, (1, 512, 7, 7))  # a small map
    assert not winograd.pays(256, 256, (0, 256, 40, 40))


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="folded on x86 only")
def test_a_layer_uses_it_for_large_maps_and_notices_changes(monkeypatch):
    calls = []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: calls.append(args[0].shape[2]) or convolve(*args))
    torch.manual_seed(0)
    layer = ConvNormAct(160, 256, 3).eval()
    large, small = (drawn(1, 160, side, side).contiguous(memory_format=torch.channels_last) for side in (40, 6))

    def expected(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return layer(x).detach()

    with torch.inference_mode():
        for x in (large, small, large):
            torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-4)
    assert calls == [40, 40]
    with torch.no_grad():
        layer.conv.weight[:, ::2] *= -1
        for x in (small, large):  # neither of the two that are kept is the old one
            torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-4)
    assert calls == [40, 40, 40]
    for change in ({"stride": (2, 2)}, {"padding": (0, 0)}, {"dilation": (2, 2)}):
        for name, value in change.items():
            setattr(layer.conv, name, value)
        with torch.inference_mode():
            torch.testing.assert_close(layer(large), expected(large), rtol=1e-4, atol=1e-4)
        layer.conv.stride = layer.conv.padding = layer.conv.dilation = (1, 1)
    assert calls == [40, 40, 40]


def test_one_filter_by_hand():
    """A filter that only shifts, on a map of rising numbers."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 2] = 1  # what is one up and one to the right
    x = torch.arange(16.0).view(1, 1, 4, 4)
    with torch.inference_mode():
        found = winograd.convolve(x, winograd.transform_weight(weight), torch.tensor([10.0]), "none")
    expected = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0.0]]) + 10
    torch.testing.assert_close(found[0, 0], expected)
