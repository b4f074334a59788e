"""Views of image and map: both alike, drawn from seed, epoch and place alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pretrain_runs import SMALL, write_maps, write_pool

torch = pytest.importorskip("torch")

from agssp_zoo.training.loader import BatchPlan, load_batches  # noqa: E402
from agssp_zoo.training.pretrain.pool import ImageCache, PoolSamples, pool_order, read_pool, stack_views  # noqa: E402
from agssp_zoo.training.pretrain.schedule import learning_rate  # noqa: E402
from agssp_zoo.training.pretrain.settings import PretrainSettings  # noqa: E402
from agssp_zoo.training.pretrain.views import Window, crop_map, draw_view, draw_window  # noqa: E402

DARK = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def settings(**values: object) -> PretrainSettings:
    return PretrainSettings(**{"size": 64, "resize": 96, "scale_min": 0.75, "scale_max": 2.0, **values})


def test_the_map_follows_the_image() -> None:
    """An image that is its own map: wherever a view lies and however it is mirrored, the two agree."""
    y, x = np.mgrid[:12, :12]
    grid = (0.5 + 0.25 * np.sin(0.8 * x) + 0.25 * np.sin(0.5 * y + 0.4 * x)).astype(np.float32)
    # The map over the image, enlarged as the whole window shows it, is the image.
    large = crop_map(grid, Window(), (480, 480))
    image = np.repeat((large * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    seen = set()
    for seed in range(20):
        view = draw_view(np.random.default_rng(seed), image, grid, settings(**DARK))
        window = draw_window(np.random.default_rng(seed), settings(**DARK), (480, 480))
        seen.add((window.flip_lr, window.flip_ud))
        assert view.image.shape == (64, 64, 3) and view.map.shape == (16, 16) and view.map.dtype == np.float32
        # A cell's value is that of the pixels around its centre.
        centres = view.image[..., 0].astype(np.float32).reshape(16, 4, 16, 4)[:, 1:3, :, 1:3].mean((1, 3)) / 255
        assert np.abs(centres - view.map).max() < 0.03 and np.corrcoef(centres.ravel(), view.map.ravel())[0, 1] > 0.99
    assert len(seen) == 4


def test_the_whole_map_is_resized_as_torch_does() -> None:
    grid = np.random.default_rng(1).random((5, 9)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(grid)[None, None], (16, 16), mode="bilinear")[0, 0]
    np.testing.assert_allclose(crop_map(grid, Window(), (16, 16)), expected.numpy(), atol=1e-6)
    mirrored = crop_map(grid, Window(flip_lr=True, flip_ud=True), (16, 16))
    np.testing.assert_allclose(mirrored, expected.numpy()[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("aspect", ["keep", "square"])
def test_windows_are_squares_of_all_sizes_everywhere(aspect: str) -> None:
    rng = np.random.default_rng(2)
    windows = [draw_window(rng, PretrainSettings(aspect=aspect), (200, 200)) for _ in range(400)]
    sides = np.array([w.width for w in windows])
    assert all(w.width == w.height for w in windows)
    assert sides.min() == pytest.approx(224 / 1024, rel=0.05) and sides.max() == pytest.approx(224 / 256, rel=0.05)
    assert all(w.left >= 0 and w.left + w.width <= 1 + 1e-9 for w in windows)
    free = np.array([w.left / (1 - w.width) for w in windows])
    assert free.min() < 0.02 and free.max() > 0.98


def test_a_square_image_gives_the_same_windows_either_way() -> None:
    kept, squashed = (
        [draw_window(np.random.default_rng(s), PretrainSettings(aspect=aspect), (200, 200)) for s in range(50)]
        for aspect in ("keep", "square")
    )
    assert kept == squashed


def test_windows_of_long_images_are_square_in_pixels() -> None:
    rng, given = np.random.default_rng(2), PretrainSettings(aspect="keep")
    for height, width in ((50, 200), (400, 128), (7, 3000)):
        windows = [draw_window(rng, given, (height, width)) for _ in range(300)]
        sides = np.array([[w.height * height, w.width * width] for w in windows])
        np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-9)
        assert sides.max() <= min(height, width) * (1 + 1e-9)
        # As many pixels of the image as a squashed one gives, where the image has them: at twice 512 px.
        least = 224 / 1024 * (height * width) ** 0.5
        assert sides.min() == pytest.approx(min(least, height, width), rel=0.03)
        along, longest = (0, height) if height > width else (1, width)
        starts = np.array([(w.top, w.left)[along] for w in windows])
        assert all(
            s >= 0 and s + c / longest <= 1 + 0.5 / longest for s, c in zip(starts, sides[:, along], strict=True)
        )
        assert starts.min() < 0.03 and (starts + sides[:, along] / longest).max() > 0.97


def test_squares_stay_squares_in_views_of_long_images() -> None:
    """A disc of light on a long image, which is its own map: round in every view that keeps proportions, else not."""
    y, x = np.mgrid[:96, :288]
    disc = ((y - 48) ** 2 + (x - 144) ** 2 < 30**2).astype(np.uint8) * 255
    grid = disc.reshape(24, 4, 72, 4).mean((1, 3)).astype(np.float32) / 255
    for aspect, ratio in (("keep", 1.0), ("square", 3.0)):
        given = settings(**DARK, aspect=aspect, resize=64, scale_min=1.0, scale_max=1.01)
        views = [draw_view(np.random.default_rng(seed), disc, grid, given) for seed in range(200)]
        edges = [np.concatenate([v.map[[0, -1]].ravel(), v.map[:, [0, -1]].ravel()]) for v in views]
        whole = [v for v, edge in zip(views, edges, strict=True) if v.map.max() > 0.9 and not edge.any()]
        assert len(whole) > 10
        for view in whole:
            for seen in (view.image[..., 0] > 127, view.map > 0.5):
                tall, wide = (np.ptp(np.flatnonzero(seen.any(axis))) + 1 for axis in (1, 0))
                assert tall / wide == pytest.approx(ratio, rel=0.2)  # cells of 4 pixels


def test_gray_and_coloured_images_are_lit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    gray = rng.integers(60, 200, (80, 80), dtype=np.uint8)
    grid = np.zeros((4, 4), np.float32)
    views = [draw_view(np.random.default_rng(s), gray, grid, settings()).image for s in range(4)]
    assert all((v[..., 0] == v[..., 1]).all() and (v[..., 1] == v[..., 2]).all() for v in views)
    assert np.ptp([v.mean() for v in views]) > 10
    colour = np.stack([gray, gray // 2, gray // 3], axis=2)
    coloured = [draw_view(np.random.default_rng(s), colour, grid, settings()).image for s in range(4)]
    assert np.ptp([v[..., 0].mean() / v[..., 2].mean() for v in coloured]) > 0.2
    # A gray image with three channels is lit like the same image with one.
    three = np.repeat(gray[..., None], 3, axis=2)
    quiet = settings(saturation=0.0, hue=0.0)
    one, same = (draw_view(np.random.default_rng(5), image, grid, quiet).image for image in (gray, three))
    np.testing.assert_array_equal(one, same)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("drawn")
    write_pool(folder / "pool", 5)
    # An uneven pool: one more folder, with a single image.
    write_pool(folder / "pool", 1, names=("rail",))
    write_maps(folder / "pool", folder / "maps")
    return {**SMALL, "images": (str(folder / "pool"),), "maps": str(folder / "maps")}


def test_samples_depend_on_seed_epoch_and_place_alone(drawn: dict[str, object]) -> None:
    given = PretrainSettings(**{**drawn, "task": "mocov3"})
    pool = read_pool(given)
    cache = ImageCache(pool.images, given, 1 << 20)
    first, again = PoolSamples(pool, cache, given), PoolSamples(pool, ImageCache(pool.images, given, 0), given)
    for draw in ((0, 3), (1, 3), (1, 0), (0, 14)):  # the last one is beyond the epoch's end
        one, two = first[draw], again[draw]
        assert one.key == two.key and len(one.views) == 2
        for a, b in zip(one.views, two.views, strict=True):
            assert np.array_equal(a.image, b.image) and np.array_equal(a.map, b.map)
        assert not np.array_equal(one.views[0].image, one.views[1].image)
    assert not np.array_equal(first[0, 3].views[0].image, first[1, 3].views[0].image)
    other = PoolSamples(pool, cache, dataclasses.replace(given, seed=1))
    assert not np.array_equal(first[0, 3].views[0].image, other[0, 3].views[0].image)

    # Two processes see what one sees, each its half of every step.
    def batches(rank: int, processes: int) -> list:
        plan = BatchPlan(len(pool), 4, rank, processes)
        plan.start(1)
        return list(load_batches(first, plan, stack_views, 0, pin=False))

    whole, halves = batches(0, 1), [batches(rank, 2) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [half[step] for half in halves]
        assert batch.keys == parts[0].keys + parts[1].keys
        assert torch.equal(batch.labels, torch.cat([p.labels for p in parts]))
        views = [torch.cat([p.images.chunk(2)[view] for p in parts]) for view in range(2)]
        assert torch.equal(batch.images, torch.cat(views))
        assert batch.maps.shape == (8, 1, 16, 16) and batch.hidden.shape == (4, 0, 0)


def test_natural_and_balanced_orders(drawn: dict[str, object]) -> None:
    given = PretrainSettings(**drawn)
    pool = read_pool(given)
    assert pool.counts == {"rail": 1, "steel": 5, "tile": 5} and pool.class_names == ("rail", "steel", "tile")
    order = pool_order(pool, given, 0)
    assert sorted(order) == list(range(11)) and list(order) != list(pool_order(pool, given, 1))
    balanced = pool_order(pool, dataclasses.replace(given, sampling="balanced"), 0)
    names = [pool.sources[index] for index in balanced]
    assert len(balanced) == 11 and sorted(names.count(n) for n in pool.counts) == [3, 4, 4]
    steel = [index for index in balanced if pool.sources[index] == "steel"]
    assert len(set(steel)) == len(steel)  # none twice while others wait


def test_hidden_patches_are_as_many_as_asked_for(drawn: dict[str, object]) -> None:
    given = PretrainSettings(**{**drawn, "task": "simmim", "size": 128, "resize": 128, "mask_ratio": 0.6})
    pool = read_pool(given)
    samples = PoolSamples(pool, ImageCache(pool.images, given, 1 << 20), given)
    hidden = [samples[0, place].hidden for place in range(4)]
    assert all(h.shape == (4, 4) and h.sum() == 10 for h in hidden)
    assert len({h.tobytes() for h in hidden}) > 1


def test_gray_images_are_kept_with_one_channel_and_large_ones_smaller(drawn: dict[str, object]) -> None:
    squashed = PretrainSettings(
        **{**drawn, "aspect": "square", "size": 32, "resize": 50, "scale_min": 1, "scale_max": 2}
    )
    pool = read_pool(squashed)
    cache = ImageCache(pool.images, squashed, 1 << 20)
    shapes = {pool.sources[i]: cache.load(i).shape for i in range(len(pool))}
    assert shapes["steel"] == (64, 64) and shapes["tile"] == (64, 100, 3)  # 128 wide on the disk
    size = sum(cache.load(i).nbytes for i in range(len(pool)))
    small = ImageCache(pool.images, squashed, size // 2)
    kept = sum(image.nbytes for image in small._kept if image is not None)
    assert size // 4 < kept <= size // 2  # the rest is read when it is needed
    assert np.array_equal(small.load(len(pool) - 1), cache.load(len(pool) - 1))
    # In proportion: as many pixels as the largest square, unless the shorter side has to be longer for a view.
    for most, expected in ((80, (57, 113)), (64, (48, 96))):
        size = 48 if most == 64 else 32
        kept_so = dataclasses.replace(squashed, aspect="keep", resize=most // 2, size=size, scale_min=1.5)
        cache = ImageCache(pool.images, kept_so, 1 << 20)
        assert {cache.load(i).shape[:2] for i in range(len(pool)) if pool.sources[i] == "tile"} == {expected}


def test_learning_rates_follow_their_schedules() -> None:
    cosine = PretrainSettings(epochs=10, warmup=2.0, lr=0.1, final_lr=0.01)
    rates = [learning_rate(cosine, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == pytest.approx(0.1) == max(rates)
    assert rates[30] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5), rel=1e-6)  # half-way after the warm-up
    assert rates[49] == pytest.approx(0.001, rel=0.2) and rates[10:] == sorted(rates[10:], reverse=True)
    steps = PretrainSettings(epochs=10, warmup=0.0, optimizer="sgd", schedule="step", milestones=(3, 6))
    assert [learning_rate(steps, 5 * epoch, 5) for epoch in (0, 2, 3, 5, 6, 9)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4]
    )
    straight = PretrainSettings(epochs=4, warmup=0.0, schedule="linear", lr=1.0, final_lr=0.0)
    assert [learning_rate(straight, s, 1) for s in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
