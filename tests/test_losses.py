"""Losses against their definitions, against recorded values, and against finite differences."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_targets import targets_of  # noqa: E402

from agssp_zoo.training.losses import (  # noqa: E402
    DetectionLoss,
    Targets,
    assign_task_aligned,
    class_balance,
    complete_iou,
    distribution_focal_loss,
)

PARITY = Path(__file__).parents[1].parent / "shared" / "reference" / "parity"


def test_complete_iou_follows_its_definition() -> None:
    first = torch.tensor([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 3.0, 5.0]], dtype=torch.float64)
    second = torch.tensor([[2.0, 0.0, 6.0, 2.0], [10.0, 7.0, 12.0, 8.0], [1.0, 1.0, 3.0, 5.0]], dtype=torch.float64)
    # Half overlapping boxes of one shape: IoU 4 / 12, centres 2 apart, hull 6 x 2.
    expected = [4 / 12 - 4 / 40]
    # Apart, aspect ratios 2 and 2: no overlap, centres (9, 6.5) apart, hull 12 x 8.
    expected.append(0 - (9**2 + 6.5**2) / (12**2 + 8**2))
    expected.append(1.0)
    assert torch.allclose(complete_iou(first, second), torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    # One centre, 4 x 2 in 2 x 4: only overlap and aspect count.
    tall, wide = torch.tensor([1.0, 0.0, 3.0, 4.0]).double(), torch.tensor([0.0, 1.0, 4.0, 3.0]).double()
    iou = 4 / 12
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    assert float(complete_iou(tall, wide)) == pytest.approx(iou - v * v / (1 - iou + v), abs=1e-6)
    degenerate = complete_iou(torch.zeros(4), torch.tensor([0.0, 0.0, 5.0, 0.0]))
    assert torch.isfinite(degenerate).all()


def test_complete_iou_gradient_treats_the_aspect_weight_as_constant() -> None:
    box = torch.tensor([0.5, 0.2, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    true = torch.tensor([0.0, 1.0, 4.0, 3.0], dtype=torch.float64)
    complete_iou(box, true).backward()

    def with_constant_weight(b: torch.Tensor, weight: float) -> float:
        v = 4 / math.pi**2 * (math.atan(2.0) - math.atan(float((b[2] - b[0]) / (b[3] - b[1])))) ** 2
        full = float(complete_iou(b, true))
        iou = float(_iou(b, true))
        return full + v * v / (1 - iou + v) - v * weight

    start = box.detach()
    v0 = 4 / math.pi**2 * (math.atan(2.0) - math.atan(2.5 / 3.8)) ** 2
    weight = v0 / (1 - float(_iou(start, true)) + v0)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-6
        slope = (with_constant_weight(start + step, weight) - with_constant_weight(start - step, weight)) / 2e-6
        assert float(box.grad[i]) == pytest.approx(slope, abs=1e-5)


def _iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import box_iou

    return box_iou(a[None], b[None])[0, 0]


def test_distribution_focal_loss_is_least_where_the_mean_is_right() -> None:
    distance = torch.tensor([0.0, 3.25, 14.99])
    sharp = torch.full((3, 16), -30.0)
    sharp[0, 0] = 0.0
    sharp[1, 3], sharp[1, 4] = math.log(0.75), math.log(0.25)
    sharp[2, 14], sharp[2, 15] = math.log(0.01), math.log(0.99)
    entropy = [0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), -(0.01 * math.log(0.01) + 0.99 * math.log(0.99))]
    assert torch.allclose(distribution_focal_loss(sharp, distance), torch.tensor(entropy), atol=1e-4)
    flat = distribution_focal_loss(torch.zeros(3, 16), distance)
    assert torch.allclose(flat, torch.full((3,), math.log(16)))


def slow_assigner(scores, boxes, points, labels, true, top_k, alpha, beta):  # one image, one loop a definition
    count, classes = scores.shape
    wanted: dict[int, list[int]] = {}
    overlap = complete_iou(true[:, None], boxes[None]).clamp(min=0)
    inside = [
        [bool((p[0] > b[0]) & (p[1] > b[1]) & (p[0] < b[2]) & (p[1] < b[3])) for p in points] for b in true
    ]  # fmt: skip
    metric = [
        [float(scores[p, labels[g]] ** alpha * overlap[g, p] ** beta) if inside[g][p] else -1.0 for p in range(count)]
        for g in range(len(true))
    ]
    for g in range(len(true)):
        order = sorted((p for p in range(count) if metric[g][p] > 0), key=lambda p: -metric[g][p])
        for p in order[:top_k]:
            wanted.setdefault(p, []).append(g)
    owner = {}
    for p, boxes_of in wanted.items():
        around = [g for g in range(len(true)) if inside[g][p]]
        owner[p] = boxes_of[0] if len(boxes_of) == 1 else max(around, key=lambda g: float(overlap[g, p]))
    targets = torch.zeros(count, classes)
    for g in range(len(true)):
        mine = [p for p, o in owner.items() if o == g]
        if mine:
            top = max(metric[g][p] for p in mine)
            best = max(float(overlap[g, p]) for p in mine)
            for p in mine:
                targets[p, labels[g]] = metric[g][p] / top * best
    return owner, targets


@pytest.mark.parametrize("seed", range(4))
def test_assigner_agrees_with_a_plain_one(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    side, classes, boxes_each = 6, 3, 4
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2) * 8
    corner = torch.rand(2, boxes_each, 2, generator=rng) * 24
    true = torch.cat([corner, corner + 6 + torch.rand(2, boxes_each, 2, generator=rng) * 20], -1)
    labels = torch.randint(0, classes, (2, boxes_each), generator=rng)
    mask = torch.ones(2, boxes_each, dtype=torch.bool)
    mask[1, 2:] = False
    spread = torch.rand(2, side * side, 4, generator=rng) * 12 + 2
    predicted = torch.cat([points - spread[..., :2], points + spread[..., 2:]], -1)
    scores = torch.rand(2, side * side, classes, generator=rng)
    found = assign_task_aligned(scores, predicted, points, labels, true, mask, top_k=5)
    for image in range(2):
        n = int(mask[image].sum())
        owner, targets = slow_assigner(
            scores[image], predicted[image], points, labels[image, :n], true[image, :n], 5, 0.5, 6.0
        )
        assert found.foreground[image].nonzero()[:, 0].tolist() == sorted(owner)
        assert all(int(found.box_index[image, p]) == g for p, g in owner.items())
        assert torch.allclose(found.scores[image], targets, atol=1e-5)


def raw_output(batch: int, classes: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    sizes = (8, 4, 2)
    return [
        (
            torch.randn(batch, classes, s, s, generator=rng).sub(2).requires_grad_(),
            torch.randn(batch, 64, s, s, generator=rng).requires_grad_(),
        )
        for s in sizes
    ]


def test_loss_has_gradients_and_bears_empty_images() -> None:
    loss = DetectionLoss((8, 16, 32), 3)
    for targets in (targets_of([[1, 5, 5, 40, 50]], []), targets_of([], [])):
        raw = raw_output(2, 3)
        sums = loss(raw, targets)
        sums.total.backward()
        assert sums.total.item() == pytest.approx(sums.parts.sum().item(), rel=1e-6)
        for classes, boxes in raw:
            assert torch.isfinite(classes.grad).all() and float(classes.grad.abs().sum()) > 0
            assert torch.isfinite(boxes.grad).all()
    assert float(sums.parts[0]) == float(sums.parts[2]) == 0.0


def test_two_processes_compute_together_what_one_does() -> None:
    targets = targets_of([[0, 4, 4, 30, 30], [2, 20, 10, 60, 60]], [], [[1, 0, 0, 64, 20]], [[2, 5, 30, 25, 60]])
    loss = DetectionLoss((8, 16, 32), 3)
    whole = raw_output(4, 3)
    loss(whole, targets).total.backward()
    halves = [[(c[i : i + 2].detach(), b[i : i + 2].detach()) for c, b in whole] for i in (0, 2)]
    parts = [Targets(*(t[i : i + 2] for t in (targets.labels, targets.boxes, targets.mask))) for i in (0, 2)]
    seen: list[torch.Tensor] = []
    for half, part in zip(halves, parts, strict=True):
        loss(half, part, reduce_sum=lambda t: seen.append(t) or t)
    total = seen[0] + seen[1]
    for start, half, part in zip((0, 2), halves, parts, strict=True):
        leaves = [(c.requires_grad_(), b.requires_grad_()) for c, b in half]
        loss(leaves, part, reduce_sum=lambda _: total, processes=2).total.backward()
        for (c, b), (wc, wb) in zip(leaves, whole, strict=True):
            # Gradients are averaged over the processes, hence the half.
            assert torch.allclose(c.grad / 2, wc.grad[start : start + 2], atol=1e-6)
            assert torch.allclose(b.grad / 2, wb.grad[start : start + 2], atol=1e-6)


def test_class_balance_keeps_the_average_box_at_one() -> None:
    counts = np.array([100, 25, 0])
    factors = class_balance(counts, 0.5)
    assert factors is not None
    assert float(factors[1] / factors[0]) == pytest.approx(2.0)
    assert float((factors[:2] * torch.tensor([100.0, 25.0])).sum() + factors[2]) == pytest.approx(126.0, rel=1e-5)
    assert class_balance(counts, 0.0) is None
    rare = targets_of([[1, 5, 5, 40, 50]])
    raw = raw_output(1, 3)
    plain = DetectionLoss((8, 16, 32), 3)(raw, rare).parts
    weighted = DetectionLoss((8, 16, 32), 3, class_balance=torch.tensor([1.0, 3.0, 1.0]))(raw, rare).parts
    assert float(weighted[1]) > float(plain[1])
    assert torch.equal(weighted[[0, 2]], plain[[0, 2]])


@pytest.mark.skipif(not PARITY.is_dir(), reason="the recorded values are not here")
@pytest.mark.parametrize("name", ["yolov8_s", "yolov8_s_1class", "yolov8_resnet50"])
def test_loss_equals_the_recorded_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agssp_zoo import models
    from agssp_zoo.convert import convert_checkpoint

    monkeypatch.syspath_prepend(str(PARITY))
    import weights

    recorded = np.load(PARITY / f"{name}.npz")
    names = ("anomaly",) if name.endswith("1class") else tuple("abcdef")
    state = {k: torch.from_numpy(v) for k, v in weights.official_state_dict(name, seed=1).items()}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "checkpoint.pth")
    folder = convert_checkpoint(
        tmp_path / "checkpoint.pth", name.removesuffix("_1class"), tmp_path / "out", class_names=names
    )
    from agssp_zoo.config import ModelConfig

    module = models.load(ModelConfig.load(folder), folder / "model.safetensors")
    x = torch.from_numpy(np.clip(0.25 * weights.input_array((1, 3, 320, 320), seed=1) + 0.45, 0, 1))
    with torch.no_grad():
        raw = module(x)
    parts = DetectionLoss(module.strides, len(names))(raw, targets_of(recorded["x/loss_gt"].tolist())).parts
    expected = [float(recorded[f"x/loss_{part}"]) for part in ("bbox", "cls", "dfl")]
    # The network's sums run in another order on another machine, which alone makes 1e-5.
    assert parts.tolist() == pytest.approx(expected, rel=1e-4)
    sys.modules.pop("weights", None)
