"""The losses of stage 1: the authors' numbers, their gradients, maps of all sizes, half precision."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from agssp_zoo.training.pretrain.activation import (  # noqa: E402
    guidance_losses,
    map_loss,
    resize_maps,
    squared_activation,
)

PARITY = Path(__file__).parents[2] / "shared" / "reference" / "parity"


@pytest.fixture(scope="module")
def recorded() -> dict:
    """The authors' losses and gradients, with the features and maps they are of."""
    if not (PARITY / "distill.json").is_file():
        pytest.skip("needs ../shared/reference")
    sys.path.insert(0, str(PARITY))
    try:
        from weights import input_array
    finally:
        sys.path.remove(str(PARITY))
    values = json.loads((PARITY / "distill.json").read_text())
    draw = [input_array(tuple(shape), values["seed"], tag) for tag, shape in values["features"]]
    tag, shape = values["anomaly_map"]
    values["draw"] = [torch.from_numpy(array) for array in draw]
    values["map"] = torch.from_numpy(np.clip(np.abs(input_array(tuple(shape), values["seed"], tag)) / 3, 0, 1) ** 2)
    return values


@pytest.mark.parametrize(("name", "form", "weight"), [("cosine_shift2_scale2", "cosine", 1), ("l2_weight2", "l2", 2)])
def test_losses_and_gradients_are_the_authors(recorded: dict, name: str, form: str, weight: float) -> None:
    features = [array.clone().requires_grad_() for array in recorded["draw"]]
    loss = weight * guidance_losses(features, recorded["map"], form=form, resizing="cumulative").sum()
    loss.backward()
    expected = recorded[name]
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    for feature, norm, first in zip(features, expected["grad_norms"], expected["grad_first8"], strict=True):
        assert float(feature.grad.norm()) == pytest.approx(norm, rel=1e-5)
        found = feature.grad.flatten()[:8]
        torch.testing.assert_close(found, torch.tensor(first), rtol=1e-4, atol=1e-5 * norm)


def test_direct_resizing_differs_and_starts_from_the_map(recorded: dict) -> None:
    sizes = [(14, 14), (7, 7)]
    cumulative, direct = (resize_maps(recorded["map"], sizes, kind) for kind in ("cumulative", "direct"))
    assert torch.equal(cumulative[0], direct[0]) and not torch.allclose(cumulative[1], direct[1], atol=1e-3)
    # Going down by two without align_corners is the mean of two by two cells.
    torch.testing.assert_close(cumulative[1], torch.nn.functional.avg_pool2d(cumulative[0], 2))
    features = recorded["draw"]
    losses = [guidance_losses(features, recorded["map"], resizing=kind) for kind in ("cumulative", "direct")]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_the_loss_is_about_where_and_not_how_much() -> None:
    torch.manual_seed(0)
    target = torch.rand(2, 1, 6, 6)
    for form in ("cosine", "l2"):
        assert map_loss(5 * target, target, form) == pytest.approx(0, abs=1e-6)
        assert map_loss(target, torch.zeros_like(target), form) == pytest.approx(2 if form == "cosine" else 1)
    left, right = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    left[..., 0], right[..., 1] = 1, 3
    assert map_loss(left, right) == pytest.approx(2) and map_loss(left, right, "l2") == pytest.approx(2)


def test_flat_maps_and_dead_features_give_numbers() -> None:
    dead = torch.zeros(2, 4, 6, 6, requires_grad=True)
    for maps in (torch.zeros(2, 1, 24, 24), torch.full((2, 1, 24, 24), 0.5)):
        loss = guidance_losses([dead], maps)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(dead.grad).all()


def test_half_precision_features_do_not_overflow() -> None:
    features = torch.full((1, 8, 3, 3), 300.0, dtype=torch.float16)  # their squares are beyond float16
    assert squared_activation(features).dtype == torch.float32
    assert float(squared_activation(features).max()) == 8 * 300.0**2


def test_hidden_places_are_not_expected_to_respond() -> None:
    features = torch.zeros(1, 2, 4, 4)
    features[..., :2] = 1
    maps = torch.ones(1, 1, 8, 8)
    visible = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])

    def loss(**options: Tensor) -> float:
        return float(guidance_losses([features], maps, **options))

    assert loss(visible=visible) == pytest.approx(0, abs=1e-6) and loss() > 0.5
