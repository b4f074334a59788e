"""DINO: its attention, positions, queries and losses against their definitions, any size, any batch, and learning."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_targets import targets_of  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.models import Targets  # noqa: E402
from agssp_zoo.models.deformable_attention import DeformableAttention, gather_points, sample_points  # noqa: E402
from agssp_zoo.models.denoising import make_denoising  # noqa: E402
from agssp_zoo.models.heads.dino import DinoHead, TrainingAnswer  # noqa: E402
from agssp_zoo.models.sine_positions import encode_boxes, encode_map  # noqa: E402

SMALL = {
    "embed_dim": 32, "depths": "1,1,1,1", "heads": "1,2,4,8", "queries": 20, "layers": 2, "width": 32, "hidden": 64,
}  # fmt: skip
"""Options of a network of a million parameters."""
NAMES = ("dark", "bright", "striped")


def small(names: tuple[str, ...] = NAMES, *, lively: bool = True, **options: object) -> models.DetectorModule:
    """A small network; a lively one's boxes and scores differ as a trained one's do."""
    torch.manual_seed(3)
    module = models.build(models.default_config("dino_swin_b", class_names=names, options={**SMALL, **options}))
    if lively:
        with torch.no_grad():
            for classes, box in zip(module.head.class_layers, module.head.box_layers, strict=True):
                classes.weight.normal_(0, 0.3)
                box[4].weight.normal_(0, 0.2)
    return module.eval()


# --- parts -----------------------------------------------------------------------------------------------------------


def look_up(plane: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """A (h, w, D) map at x, y in 0-1, between the pixels' centres, zero outside."""
    height, width = plane.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(plane.shape[2])
    for i, j in itertools.product((math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)):
        if 0 <= i < height and 0 <= j < width:
            total += plane[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


@pytest.mark.parametrize("sample", [sample_points, gather_points])
def test_points_are_interpolated_by_definition(sample) -> None:
    shapes = [(5, 3), (2, 4)]
    rng = torch.Generator().manual_seed(1)
    value = torch.randn(2, 15 + 8, 2, 4, generator=rng)
    places = torch.rand(2, 3, 2, 2, 2, 2, generator=rng) * 1.6 - 0.3
    places[0, 0, 0, 0, 0] = torch.tensor([-50.0, 80.0])  # far outside
    weights = torch.rand(2, 3, 2, 2, 2, generator=rng)
    found = sample(value, places, weights, shapes).view(2, 3, 2, 4)
    for b, q, h in itertools.product(range(2), range(3), range(2)):
        expected = torch.zeros(4)
        for level, (start, (height, width)) in enumerate(zip((0, 15), shapes, strict=True)):
            plane = value[b, start : start + height * width, h].view(height, width, 4)
            for p in range(2):
                x, y = places[b, q, h, level, p].tolist()
                expected += weights[b, q, h, level, p] * look_up(plane, x, y)
        torch.testing.assert_close(found[b, q, h], expected, atol=1e-5, rtol=1e-5)


def test_attention_looks_in_a_ring_at_first_and_not_into_the_padding() -> None:
    torch.manual_seed(0)
    shapes, pixels = [(6, 6), (3, 3)], 45
    attention = DeformableAttention(32, heads=8, levels=2, points=2)
    attention.reset_parameters()
    offsets = attention.sampling_offsets(torch.zeros(1, 32)).view(8, 2, 2, 2)
    assert torch.equal(offsets[0, 0].round(decimals=5), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert torch.equal(offsets[1, 1].round(decimals=5), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    query, memory = torch.randn(1, 4, 32), torch.randn(1, pixels, 32)
    boxes = torch.rand(1, 4, 1, 4).expand(-1, -1, 2, -1)
    valid = torch.zeros(1, pixels, dtype=torch.bool)
    valid[:, :20] = True
    changed = memory.clone()
    changed[:, 20:] += 5
    for references in (boxes, boxes[..., :2]):
        one, other = (attention(query, m, references, shapes, valid) for m in (memory, changed))
        assert torch.equal(one, other)
        assert not torch.allclose(one, attention(query, memory, references, shapes), atol=1e-4)
        with torch.no_grad():  # the quick way on a CPU
            torch.testing.assert_close(attention(query, memory, references, shapes, valid), one, atol=1e-5, rtol=1e-4)


def test_positions_count_the_valid_part_only() -> None:
    rows, columns = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, True, False]])
    found = encode_map(rows, columns, 8)
    assert found.shape == (1, 4, 3, 8)
    angle = 2 * math.pi * np.array([2.5 / 4, 1.5 / 2])  # y of the third row, x of the second column
    expected = [[np.sin(a), np.cos(a), np.sin(a / 100), np.cos(a / 100)] for a in angle]
    np.testing.assert_allclose(found[0, 2, 1], np.ravel(expected), atol=1e-5)
    box = encode_boxes(torch.tensor([0.25, 0.5, 0.125, 1.0]), 8)  # y, x, w, h
    expected = [f(2 * math.pi * v) for v in (0.5, 0.25, 0.125, 1.0) for f in (math.sin, math.cos)]
    np.testing.assert_allclose(box, expected, atol=1e-5)


def test_proposals_near_the_border_and_in_the_padding_are_none() -> None:
    head = DinoHead(2, channels=32, levels=2, queries=5, layers=1, hidden=32)
    head.reset_parameters()
    maps = [torch.randn(2, 32, 8, 120), torch.randn(2, 32, 4, 60)]
    tokens = head.to_tokens(maps, (64, 960), torch.tensor([[64, 960], [32, 480]]))
    boxes, there = head.anchors(tokens)
    first = there[:, : 8 * 120].view(2, 8, 120)
    # Centres of 0.5 / 120 lie nearer to the border than 0.01, those of 1.5 / 120 do not.
    assert first[0, :, 1:-1].all() and not first[0, :, 0].any() and not first[0, :, -1].any()
    assert first[1, :4, 1:59].all() and first[1].sum() == 4 * 58  # of half the size, 0.5 / 60 is too near as well
    assert boxes[~there].isinf().all() and boxes[there].isfinite().all()
    sides = boxes.sigmoid()[0, :, 2:]
    torch.testing.assert_close(sides[121], torch.tensor([0.05, 0.05]))
    torch.testing.assert_close(sides[8 * 120 + 61], torch.tensor([0.1, 0.1]))


def test_noisy_copies_are_near_or_apart_and_keep_to_their_group() -> None:
    torch.manual_seed(1)
    truth = targets_of([[2, 20, 30, 60, 50]], [[0, 10, 10, 90, 40], [1, 5, 50, 25, 90]], [])
    noisy = make_denoising(truth, (100, 100), 4, 6, noisy_queries=50)
    assert noisy is not None and noisy.groups == 25 and noisy.labels.shape == (3, 100)
    centres, sides = noisy.boxes.view(3, 25, 2, 2, 4).split(2, -1)
    low, high = centres - sides / 2, centres + sides / 2
    true = truth.boxes / 100
    for image, box in ((0, 0), (1, 0), (1, 1)):
        extent = (true[image, box, 2:] - true[image, box, :2]) / 2
        moved = torch.cat(
            [(low[image, :, :, box] - true[image, box, :2]), (high[image, :, :, box] - true[image, box, 2:])], -1
        ).abs() / extent.repeat(2)
        assert (moved[:, 0] <= 1 + 1e-5).all() and moved[:, 0].max() > 0.8
        inside = (low[image, :, 1, box] > 0).all(-1) & (high[image, :, 1, box] < 1).all(-1)  # not cut at the border
        assert inside.any() and (moved[inside, 1] >= 1 - 1e-5).all() and (moved[:, 1] <= 2 + 1e-5).all()
    wrong = (noisy.labels.view(3, 50, 2)[1] != torch.tensor([0, 1])).float().mean()
    assert 0.05 < float(wrong) < 0.35  # a quarter is drawn anew, of which one in four hits the truth
    hidden = noisy.hidden
    assert hidden.shape == (106, 106)
    assert hidden[100:, :100].all() and not hidden[100:, 100:].any() and not hidden[:100, 100:].any()
    group = torch.arange(100) // 4
    assert torch.equal(hidden[:100, :100], group[:, None] != group)
    state = torch.get_rng_state()
    assert make_denoising(targets_of([], []), (100, 100), 4, 6) is None
    assert not torch.equal(torch.get_rng_state(), state)  # one draw, as with boxes


# --- losses ----------------------------------------------------------------------------------------------------------


def test_generalized_iou_and_focal_loss_follow_their_definitions() -> None:
    from agssp_zoo.training.losses.focal import focal_loss
    from agssp_zoo.training.losses.iou import generalized_iou

    first = torch.tensor([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    second = torch.tensor([[2.0, 0.0, 6.0, 2.0], [2.0, 0.0, 3.0, 1.0], [1.0, 1.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([4 / 12, 0 - 1 / 3, 1.0, 0.0])
    torch.testing.assert_close(generalized_iou(first, second), expected, atol=1e-5, rtol=0)
    score = torch.tensor([0.9, 0.2, 0.7])
    found = focal_loss(score.logit(), torch.tensor([1.0, 0.0, 0.0]))
    expected = [0.25 * 0.1**2 * -math.log(0.9), 0.75 * 0.2**2 * -math.log(0.8), 0.75 * 0.7**2 * -math.log(0.3)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_matching_has_the_least_cost_of_all() -> None:
    from agssp_zoo.training.losses.focal import focal_loss
    from agssp_zoo.training.losses.iou import generalized_iou
    from agssp_zoo.training.losses.matcher import match_least_cost, to_centres, to_corners

    rng = torch.Generator().manual_seed(5)
    logits, boxes = torch.randn(2, 3, 5, 2, generator=rng), torch.rand(2, 3, 5, 4, generator=rng) * 0.5 + 0.2
    truth = targets_of(
        [[0, 10, 10, 40, 50], [1, 30, 5, 90, 40], [1, 50, 50, 70, 99]], [], [[1, 0, 0, 99, 99], [0, 20, 60, 50, 80]]
    )
    true = to_centres(truth.boxes, (100, 100))
    matches = match_least_cost(logits, boxes, truth, true)
    assert len(matches.query) == 2 * (3 + 2)
    for layer, image in itertools.product(range(2), (0, 2)):
        count = int(truth.mask[image].sum())

        def cost(query: int, box: int, layer: int = layer, image: int = image) -> float:
            logit = logits[layer, image, query, truth.labels[image, box]]
            classes = float(focal_loss(logit, torch.tensor(1.0)) - focal_loss(logit, torch.tensor(0.0)))
            sides = float((boxes[layer, image, query] - true[image, box]).abs().sum())
            overlap = generalized_iou(to_corners(boxes[layer, image, query]), to_corners(true[image, box]))
            return 2 * classes + 5 * sides - 2 * float(overlap)

        least = min(sum(cost(q, b) for b, q in enumerate(p)) for p in itertools.permutations(range(5), count))
        mine = (matches.layer == layer) & (matches.image == image)
        chosen = dict(zip(matches.box[mine].tolist(), matches.query[mine].tolist(), strict=True))
        assert sorted(chosen) == list(range(count))
        assert sum(cost(q, b) for b, q in chosen.items()) == pytest.approx(least, abs=1e-4)
    # More boxes than queries: as many as there are; and what is no number ends nothing here.
    crowd = targets_of([[0, 1, 1, 9, 9 + i] for i in range(7)])
    some = match_least_cost(
        torch.full((1, 1, 5, 2), torch.nan), boxes[:1, :1], crowd, to_centres(crowd.boxes, (100, 100))
    )
    assert len(some.query) == 5


def test_loss_is_least_where_the_answer_is_right() -> None:
    from agssp_zoo.training.losses.matcher import to_centres
    from agssp_zoo.training.losses.set_prediction import SetPredictionLoss

    truth = targets_of([[1, 10, 10, 40, 50], [0, 30, 60, 90, 80]], [])
    true = to_centres(truth.boxes, (100, 100))
    boxes = torch.rand(3, 2, 6, 4, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1
    logits = torch.full((3, 2, 6, 2), -20.0)
    for layer, (place, box) in itertools.product(range(3), ((4, 0), (2, 1))):
        boxes[layer, 0, place] = true[0, box]
        logits[layer, 0, place, truth.labels[0, box]] = 20.0
    right = TrainingAnswer(logits[:2], boxes[:2], logits[2], boxes[2], None, (100, 100))
    loss = SetPredictionLoss(2)
    assert float(loss(right, truth).total) < 1e-4
    moved = right._replace(boxes=boxes[:2] + torch.tensor([0.0, 0.0, 0.02, 0.0]))
    parts = loss(moved, truth).parts
    # Two layers of three sets, both boxes 0.02 too wide, over two boxes, times 5.
    assert float(parts[0]) == pytest.approx(2 * 2 * 0.02 / 2 * 5, rel=1e-3)
    assert float(parts[1]) < 1e-4 and 0.05 < float(parts[2]) < 0.5


@pytest.mark.parametrize("images", [([[1, 5, 5, 40, 50]], [[0, 9, 9, 30, 20], [2, 30, 5, 60, 60]]), ([], [])])
def test_a_step_has_finite_gradients_for_all_that_learns(images: tuple[list[list[float]], ...]) -> None:
    from agssp_zoo.training.losses.set_prediction import SetPredictionLoss

    module = small(lively=False).train()
    truth = targets_of(*images)
    raw = module(torch.randn(2, 3, 64, 72), None, truth)
    assert (raw.denoising is None) == (not any(images))
    sums = SetPredictionLoss(3)(raw, truth)
    sums.total.backward()
    assert float(sums.total.detach()) == pytest.approx(float(sums.parts.sum()), rel=1e-5)
    assert (float(sums.parts[0]) == 0) == (not any(images))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_two_processes_compute_together_what_one_does() -> None:
    from agssp_zoo.training.losses.set_prediction import SetPredictionLoss

    truth = targets_of([[0, 4, 4, 30, 30], [2, 20, 10, 60, 60]], [[1, 0, 0, 64, 20]])
    module = small().train()
    torch.manual_seed(0)
    raw = module(torch.randn(2, 3, 64, 64), None, truth)
    loss = SetPredictionLoss(3)
    whole = float(loss(raw, truth).total.detach())
    halves = []
    for i in (0, 1):
        noisy = raw.denoising
        own = Targets(noisy.truth.labels[i : i + 1], noisy.truth.boxes[i : i + 1], noisy.truth.mask[i : i + 1])
        part = type(noisy)(noisy.labels[i : i + 1], noisy.boxes[i : i + 1], noisy.groups, own, noisy.hidden)
        one = TrainingAnswer(
            raw.logits[:, i : i + 1], raw.boxes[:, i : i + 1], raw.proposed_logits[i : i + 1],
            raw.proposed_boxes[i : i + 1], part, raw.input_size,
        )  # fmt: skip
        halves.append((one, own))
    seen: list[torch.Tensor] = []
    for one, own in halves:
        loss(one, own, reduce_sum=lambda t: seen.append(t) or t, processes=2)
    total = seen[0] + seen[1]
    sums = [float(loss(one, own, reduce_sum=lambda _: total, processes=2).total.detach()) for one, own in halves]
    assert sum(sums) / 2 == pytest.approx(whole, rel=1e-5)  # gradients are averaged over the processes


# --- the network -----------------------------------------------------------------------------------------------------


def test_a_padded_image_is_answered_as_alone() -> None:
    module = small()
    rng = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (1, 96, 128, 3), generator=rng, dtype=torch.uint8)
    canvas = torch.full((2, 128, 160, 3), 102, dtype=torch.uint8)
    canvas[0, :96, :128] = image[0]
    canvas[1] = torch.randint(0, 256, (128, 160, 3), generator=rng, dtype=torch.uint8)
    sizes = torch.tensor([[96, 128], [128, 160]])
    with torch.inference_mode():
        inputs = module.normalize(canvas, sizes)
        assert not inputs[0, :, 96:].any() and not inputs[0, :, :, 128:].any() and inputs[1, :, 96:].any()
        boxes, scores = module.decode(module(inputs, sizes))
        whole, _ = module.decode(module(module.normalize(canvas[1:])))
        full, _ = module.decode(module(module.normalize(canvas[1:]), torch.tensor([[128, 160]])))
    assert boxes.shape == (2, 20, 4) and scores.shape == (2, 20, 3)
    torch.testing.assert_close(boxes[1:], whole, atol=2e-2, rtol=1e-4)
    assert torch.equal(full, whole)
    assert (boxes[0, :, 2] <= 128).all() and (boxes[0, :, 3] <= 96).all() and (boxes >= 0).all()
    assert (boxes[1, :, 2] > 128).any()
    # What the padding holds makes no difference; it was gray, now it is noise.
    canvas[0, 96:], canvas[0, :, 128:] = 7, 250
    with torch.inference_mode():
        again, _ = module.decode(module(module.normalize(canvas, sizes), sizes))
    assert torch.equal(again[0], boxes[0])


@pytest.mark.parametrize("size", [(65, 97), (64, 64), (33, 150)])
def test_any_size_is_taken_and_small_ones_have_fewer_queries(size: tuple[int, int]) -> None:
    module = small(queries=60)
    with torch.inference_mode():
        boxes, scores = module.decode(module(torch.randn(1, 3, *size)))
    pixels = sum(math.ceil(size[0] / s) * math.ceil(size[1] / s) for s in (8, 16, 32, 64))
    assert boxes.shape == (1, min(60, pixels), 4) and boxes.isfinite().all() and scores.isfinite().all()


@pytest.mark.parametrize("names", [("anomaly",), NAMES])
def test_the_best_of_all_queries_and_classes_are_answered(names: tuple[str, ...]) -> None:
    from agssp_zoo.detector import Detector
    from agssp_zoo.engines.pytorch import PyTorchEngine

    module = small(names)
    detector = Detector(PyTorchEngine(module))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (found,) = detector.predict(image, conf=0.0, size=128)
    assert len(found) == 20 * len(names)  # 300 at most
    assert (np.diff(found.scores) <= 0).all() and set(found.labels) == set(range(len(names)))
    (best,) = detector.predict(image, conf=0.0, size=128, max_det=5)
    np.testing.assert_array_equal(best.scores, found.scores[:5])
    (none,) = detector.predict(image, conf=1.0, size=128)
    assert len(none) == 0
    # A batch of one canvas for images of different shapes: each as on a canvas of its own, but for rounding.
    pair = detector.predict([image, image[:60]], conf=0.0, size=(128, 128), batch=2)
    assert [one.image_size for one in pair] == [(90, 120), (60, 120)]
    assert all((one.boxes[:, 3] <= one.image_size[0]).all() for one in pair)


def test_options_that_make_no_network_are_refused() -> None:
    from agssp_zoo.errors import ConfigError

    with pytest.raises(ConfigError, match="multiple of 32"):
        small(width=40)
    with pytest.raises(ConfigError, match="numbers above 0"):
        small(queries=0)


def test_half_precision_answers_nearly_the_same() -> None:
    module = small()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        whole = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = module(x)
    assert half.boxes.dtype == torch.float32 and half.logits.dtype == torch.float32
    assert half.logits.isfinite().all() and half.boxes.isfinite().all()
    assert abs(float(half.logits.amax() - whole.logits.amax())) < 0.5
