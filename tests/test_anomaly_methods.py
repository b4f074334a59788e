"""The mathematics of the methods without text against slow references, and what they promise the driver."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomaly_features import Made, maps_of, prepared, unit  # noqa: E402

from agssp_zoo.errors import DataError  # noqa: E402
from agssp_zoo.training.anomaly import memory, neighbours  # noqa: E402
from agssp_zoo.training.anomaly.auto import Auto  # noqa: E402
from agssp_zoo.training.anomaly.consensus import Consensus  # noqa: E402
from agssp_zoo.training.anomaly.features import FeatureMethod, draw, top_mean  # noqa: E402
from agssp_zoo.training.anomaly.gaussian import Gaussian  # noqa: E402
from agssp_zoo.training.anomaly.memory import Memory  # noqa: E402
from agssp_zoo.training.anomaly.mutual import Mutual  # noqa: E402
from agssp_zoo.training.anomaly.neighbours import coreset, nearest, nearest_by_image  # noqa: E402
from agssp_zoo.training.anomaly.own import Own  # noqa: E402

METHODS = (Own, Consensus, Gaussian, Memory, Mutual, Auto)
LAYERS, CHANNELS, PLACES = 2, 6, 16


def draw_images(count: int, seed: int = 0) -> torch.Tensor:
    """Features with something of the image, of the place and of the patch in them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, LAYERS * CHANNELS, 4, 4)
    images = torch.randn(shape, generator=generator) * 0.4 + 0.7
    images += torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(99)) * 0.3
    return images + torch.randn((count, shape[1], 1, 1), generator=generator) * 0.2


def own_distances(features: list[np.ndarray]) -> np.ndarray:
    """(N, P): of every patch to its image's mean, without what is due to the place where there are images enough."""
    total = np.zeros(features[0].shape[:2])
    for layer in features:
        place = layer.mean(axis=0) - layer.mean(axis=(0, 1)) if len(layer) >= 16 else 0.0
        away = np.zeros(layer.shape[:2])
        for n, image in enumerate(layer - place):
            for p, patch in enumerate(image):
                away[n, p] = np.linalg.norm(patch - image.mean(axis=0))
        total += away / away.mean()
    return total / len(features)


@pytest.mark.parametrize("count", [5, 20])
def test_own(count: int) -> None:
    images = draw_images(count)
    found = maps_of(prepared(Own(Made()), images), images).flatten(1).numpy()
    np.testing.assert_allclose(found, own_distances(unit(images, LAYERS)), rtol=1e-4)


@pytest.mark.parametrize("count", [5, 20])
def test_gaussian(count: int) -> None:
    images = draw_images(count)
    found = maps_of(prepared(Gaussian(Made()), images), images).flatten(1).numpy()
    total = np.zeros((count, PLACES))
    for layer in unit(images, LAYERS):
        mean = layer.mean(axis=0) if count >= 8 else np.tile(layer.mean(axis=(0, 1)), (PLACES, 1))
        covariance = np.zeros((CHANNELS, CHANNELS))
        for image in layer:
            for place in range(PLACES):
                covariance += np.outer(image[place] - mean[place], image[place] - mean[place]) / (count * PLACES)
        covariance += 0.3 * np.trace(covariance) / CHANNELS * np.eye(CHANNELS)
        for n, image in enumerate(layer):
            for place in range(PLACES):
                away = image[place] - mean[place]
                total[n, place] += np.sqrt(away @ np.linalg.inv(covariance) @ away / CHANNELS) / LAYERS
    np.testing.assert_allclose(found, total, rtol=2e-3)


@pytest.mark.parametrize("count", [5, 20])
def test_consensus(count: int) -> None:
    images = draw_images(count)
    found = maps_of(prepared(Consensus(Made()), images), images).flatten(1).numpy()
    features = unit(images, LAYERS)
    target = own_distances(features).ravel()
    if count >= 16:
        features = [layer - (layer.mean(axis=0) - layer.mean(axis=(0, 1))) for layer in features]
    rows = np.concatenate(features, axis=-1).reshape(count * PLACES, -1)
    learnt_of = rows.astype(np.float16).astype(np.float64)
    mean = learnt_of.mean(axis=0)
    gram = (learnt_of - mean).T @ (learnt_of - mean)
    gram += 0.3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    for _ in range(12):
        weights = np.linalg.inv(gram) @ (learnt_of - mean).T @ (target - target.mean())
        judged = (learnt_of - mean) @ weights
        target = 1 / (1 + np.exp(-4 * (judged / judged.std(ddof=1) - 1)))
    value = (rows - mean) @ weights / judged.std(ddof=1)
    np.testing.assert_allclose(found.ravel(), 1 / (1 + np.exp(-4 * (value - 1))), atol=1e-2)
    assert found.std() > 0.1


def mutual_distances(features: list[np.ndarray]) -> np.ndarray:
    """(N, P): 1 - similarity to the nearest tenth of the other images, which no copy of it is among."""
    count = len(features[0])
    total = np.zeros((count, PLACES))
    for n in range(count):
        best = np.array([[(layer[n] @ layer[r].T).max(axis=1) for r in range(count)] for layer in features])
        others = [r for r in range(count) if best[:, r].mean(axis=1).min() < 0.999]
        keep = max(1, int(0.1 * len(others)))
        for layer in best:
            total[n] += (1 - np.sort(layer[others], axis=0)[-keep:].mean(axis=0)) / len(features)
    return total


@pytest.mark.parametrize("count", [5, 25])
def test_mutual(count: int) -> None:
    images = draw_images(count)
    found = maps_of(prepared(Mutual(Made()), images), images).flatten(1).numpy()
    np.testing.assert_allclose(found, mutual_distances(unit(images, LAYERS)), rtol=1e-3, atol=1e-5)


def test_mutual_looks_neither_at_the_image_itself_nor_at_copies() -> None:
    images = draw_images(9)
    images[0] += torch.randn(images[0].shape, generator=torch.Generator().manual_seed(5))
    alone = maps_of(prepared(Mutual(Made()), images), images[:1])
    assert alone.max() > 0.1 and alone.max() > 2 * maps_of(prepared(Mutual(Made()), images[1:]), images[1:]).mean()
    nearly = images[0] * (1 + 0.001 * torch.randn(images[0].shape, generator=torch.Generator().manual_seed(6)))
    copied = torch.cat([images, images[:1], nearly[None]])
    torch.testing.assert_close(maps_of(prepared(Mutual(Made()), copied), images[:1]), alone, rtol=1e-5, atol=1e-6)
    # Copies of one layer only are no copies: the image is compared with it.
    half = images[:1].clone()
    half[:, CHANNELS:] = images[1:2, CHANNELS:]
    assert maps_of(prepared(Mutual(Made()), torch.cat([images, half])), images[:1]).mean() < 0.7 * alone.mean()
    # Where there is nothing but copies, the map is finite and flat.
    assert maps_of(prepared(Mutual(Made()), images[[1, 1, 1]]), images[1:2]).abs().max() < 1e-5


def test_memory() -> None:
    normal, images = draw_images(3, seed=1), draw_images(5)
    method = prepared(Memory(Made()), normal)
    assert [bank.shape for bank in method.bank] == [(3 * PLACES, CHANNELS)] * 2
    total = np.zeros((5, PLACES))
    for layer, kept in zip(unit(images, LAYERS), unit(normal, LAYERS), strict=True):
        total += (1 - (layer @ kept.reshape(-1, CHANNELS).T).max(axis=-1)) / LAYERS
    np.testing.assert_allclose(maps_of(method, images).flatten(1).numpy(), total, rtol=1e-3, atol=1e-6)
    assert maps_of(method, normal).abs().max() < 1e-5
    for bad in (draw_images(0), torch.zeros_like(normal)):  # none, and none that can be read
        with pytest.raises(DataError, match=r"normal images and was given none|not one of the 3 images .* can be read"):
            prepared(Memory(Made()), bad)


def test_memory_of_many_images_is_a_coreset(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = draw_images(12, seed=1)
    whole = prepared(Memory(Made()), normal).bank
    monkeypatch.setattr(memory, "LARGEST", 40)
    small = prepared(Memory(Made()), normal).bank
    assert [len(bank) for bank in small] == [40, 40]
    for kept, bank in zip(small, whole, strict=True):
        assert (kept @ bank.T).amax(1).min() > 1 - 1e-5  # its patches are some of theirs
        picked = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:40]
        assert nearest(bank, kept).min() > nearest(bank, bank[picked]).min()  # no patch is far from all of them
    # Memory is bounded while it is made, too: of each image as many patches are looked at, of all layers the same.
    monkeypatch.setattr(memory, "LOOKED_AT", 60)
    seen: list[int] = []
    monkeypatch.setattr(memory, "coreset", lambda bank, *_: seen.append(len(bank)) or torch.arange(40))
    prepared(Memory(Made()), normal)
    assert seen == [12 * 5] * 2


# ---- neighbours


@pytest.mark.parametrize("block", [1, 50, 1000, 1 << 24])
def test_neighbours_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    queries, bank = (torch.nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (11, 42))
    similar = queries @ bank.T
    torch.testing.assert_close(nearest(queries, bank), similar.amax(1))
    torch.testing.assert_close(nearest_by_image(queries, bank.reshape(6, 7, 5)), similar.reshape(11, 6, 7).amax(2))
    assert nearest_by_image(queries, torch.zeros(0, 7, 5)).shape == (11, 0)


def test_the_coreset_takes_the_farthest_each_time() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
    chosen = coreset(features, 12, seed=4).tolist()
    generator = torch.Generator().manual_seed(4)
    small = (features @ torch.randn(5, 5, generator=generator) / 5**0.5).numpy()
    expected = [int(torch.randint(60, (1,), generator=generator))]
    while len(expected) < 12:
        distances = [min(np.linalg.norm(row - small[other]) for other in expected) for row in small]
        expected.append(int(np.argmax(distances)))
    assert chosen == expected and len(set(chosen)) == 12
    assert coreset(features, 60, 0).tolist() == coreset(features, 99, 0).tolist() == list(range(60))
    assert len(set(coreset(torch.ones(9, 5), 4, 0).tolist())) == 4  # all the same


def test_scores_and_draws() -> None:
    values = torch.arange(400.0).reshape(2, 200)
    assert top_mean(values).tolist() == [198.5, 398.5] and top_mean(values[:, :9]).tolist() == [8, 208]
    assert draw(5, 9, 0) == list(range(5)) and draw(100, 4, 1) == draw(100, 4, 1) != draw(100, 4, 2)
    assert len(set(draw(1000, 500, 0))) == 500 and draw(1000, 500, 0) == sorted(draw(1000, 500, 0))


# ---- what the driver relies on


@pytest.mark.parametrize("kind", METHODS)
def test_what_was_learnt_can_be_kept(kind: type[FeatureMethod]) -> None:
    images, others = draw_images(20), draw_images(17, seed=1)
    method = prepared(kind(Made()), images)
    maps, state = maps_of(method, images), method.state()
    assert state and all(isinstance(value, torch.Tensor) for value in state.values())
    again = prepared(kind(Made()), others)  # what it learnt before is forgotten
    assert not torch.equal(maps_of(again, images), maps)
    again.load_state({name: value.clone() for name, value in state.items()})
    assert torch.equal(maps_of(again, images), maps) and again.notes() == method.notes()
    assert set(again.state()) == set(state) and all(torch.equal(again.state()[name], state[name]) for name in state)
    fresh = kind(Made())
    fresh.load_state(state)
    assert (
        torch.equal(maps_of(fresh, images), maps) and fresh.settings() == method.settings() == kind(Made()).settings()
    )
    twice = prepared(prepared(kind(Made()), others), images)
    assert torch.equal(maps_of(twice, images), maps) and twice.notes() == method.notes()


@pytest.mark.parametrize("kind", METHODS)
def test_batches_do_not_matter(kind: type[FeatureMethod]) -> None:
    images = draw_images(20)
    method = prepared(kind(Made()), images, batch=4)
    maps = maps_of(method, images, batch=7)
    torch.testing.assert_close(maps_of(method, images, batch=1), maps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps_of(method, images.flip(0), batch=3).flip(0), maps, rtol=1e-5, atol=1e-6)
    other = prepared(kind(Made()), images, batch=9)
    torch.testing.assert_close(maps_of(other, images), maps, rtol=1e-3, atol=1e-4)
    grid, scores = method.maps(images[:3])
    assert grid.shape == (3, 4, 4) and grid.dtype == scores.dtype == torch.float32
    assert torch.equal(scores, grid.flatten(1).amax(1))  # of 16 patches a hundredth is one
    assert not grid.requires_grad


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images(kind: type[FeatureMethod], count: int) -> None:
    images = draw_images(count)
    if kind is Mutual and count == 1:
        with pytest.raises(DataError, match="only one; take --method auto"):
            prepared(kind(Made()), images)
        return
    method = prepared(kind(Made()), images)
    assert maps_of(method, images).isfinite().all()
    again = prepared(prepared(kind(Made()), draw_images(20)), images).state()  # nothing is left of many
    assert all(torch.equal(again.pop(name), value) for name, value in method.state().items()) and not again
    if kind is Auto:
        assert method.notes() == ("auto: own, since there are too few images to compare with each other",)
        torch.testing.assert_close(maps_of(method, images), maps_of(prepared(Own(Made()), images), images))


@pytest.mark.parametrize("kind", METHODS)
def test_flat_images(kind: type[FeatureMethod]) -> None:
    """Each patch of an image the same, in one image, in all, and in all the same."""
    images = draw_images(20)
    flat = images.clone()
    flat[:] = flat[:, :, :1, :1]
    for learnt_of in (images, flat, flat[:1].expand(20, -1, -1, -1)):
        method = prepared(kind(Made()), learnt_of)
        for shown in (images, flat):
            maps, scores = method.maps(shown)
            assert maps.isfinite().all() and scores.isfinite().all() and maps.abs().max() < 1e4
    # What is left is rounding.
    assert maps_of(prepared(kind(Made()), flat), flat).flatten(1).std(dim=1).max() < (
        0.2 if kind in (Own, Auto) else 1e-2
    )


@pytest.mark.parametrize("kind", METHODS)
def test_images_that_cannot_be_read_are_not_learnt_of(kind: type[FeatureMethod]) -> None:
    images = draw_images(20)
    broken = torch.cat([images[:7], torch.zeros(2, *images.shape[1:]), images[7:]])
    torch.testing.assert_close(
        maps_of(prepared(kind(Made()), broken), images), maps_of(prepared(kind(Made()), images), images), **loose(kind)
    )
    if kind is not Memory:
        assert maps_of(prepared(kind(Made()), torch.zeros_like(images)), images).isfinite().all()


def loose(kind: type[FeatureMethod]) -> dict[str, float]:
    """Patches are drawn from other images where their places have moved."""
    return {"rtol": 1e-3, "atol": 1e-4 if kind is not Consensus else 1e-3}


@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_is_the_encoders_alone(kind: type[FeatureMethod]) -> None:
    """Made-up features pass the encoder unchanged; so mixed precision must not change maps at all."""
    images = draw_images(20)
    maps = maps_of(prepared(kind(Made()), images), images)
    with torch.autocast("cpu", torch.bfloat16):
        half = maps_of(prepared(kind(Made()), images), images)
    assert half.dtype == torch.float32 and torch.equal(half, maps)


# ---- auto


def patches(count: int, odd: dict[int, list[int]], *, kinds: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Images of a texture with ``kinds`` sorts of patches in even parts, and odd ones at some places of some images.

    Returns:
        Features (N, 40, 8, 8), and (N, 64) where the odd patches are.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 64, 40)
    images[..., 0] = 1.0
    for image in images:
        image[torch.arange(64), 1 + torch.randperm(64, generator=generator) % kinds] += 0.6
    images += 0.05 * torch.randn(images.shape, generator=generator)
    truth = np.zeros((count, 64), bool)
    for number, places in odd.items():
        images[number, places, 8] += 0.9
        truth[number, places] = True
    return images.transpose(1, 2).reshape(count, 40, 8, 8), truth


def auroc(maps: torch.Tensor, truth: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth.ravel(), maps.flatten().numpy()))


def test_auto_where_defects_are_rare() -> None:
    images, truth = patches(40, {3: [9, 10], 17: [33], 30: [60, 61, 62]}, kinds=2)
    method = prepared(Auto(Made(1, 8)), images)
    assert [part.name for part in method.parts] == ["mutual", "gaussian"]
    own, mutual = method.kurtosis.tolist()
    assert mutual > 2 * own and method.notes() == (
        f"auto: mutual and gaussian, since defects are rare in this pool (kurtosis {mutual:.1f} of mutual against "
        f"{own:.1f} of own)",
    )
    maps = maps_of(method, images)
    # The mean of the two, each by its quantiles on the pool.
    both = [maps_of(prepared(kind(Made(1, 8)), images), images) for kind in (Mutual, Gaussian)]
    bounds = [np.quantile(part.numpy(), (0.01, 0.999)) for part in both]
    expected = sum((part - low) / (high - low) for part, (low, high) in zip(both, bounds, strict=True)) / 2
    torch.testing.assert_close(maps, expected.float(), rtol=1e-3, atol=1e-3)
    assert auroc(maps, truth) > 0.99


def test_auto_where_every_image_shows_defects() -> None:
    """On most images the defect covers a tenth; on some it fills three quarters, so that the rest looks unusual."""
    rng = np.random.default_rng(0)
    images, truth = patches(40, {n: rng.permutation(64)[: 7 if n % 10 else 48].tolist() for n in range(40)}, kinds=1)
    method = prepared(Auto(Made(1, 8)), images)
    assert [part.name for part in method.parts] == ["consensus"]
    own, mutual = method.kurtosis.tolist()
    assert own > 1.5 * mutual and method.notes() == (
        f"auto: consensus, since most images show something unusual (kurtosis {mutual:.1f} of mutual against "
        f"{own:.1f} of own)",
    )
    maps = maps_of(method, images)
    torch.testing.assert_close(maps, maps_of(prepared(Consensus(Made(1, 8)), images), images))
    alone = maps_of(prepared(Own(Made(1, 8)), images), images)
    assert auroc(alone[::10], truth[::10]) < 0.1  # by itself, what is left of the surface is unusual
    assert auroc(maps[::10], truth[::10]) > 0.99 and auroc(maps, truth) > 0.99 > auroc(alone, truth) + 0.1
    assert auroc(maps_of(prepared(Mutual(Made(1, 8)), images), images), truth) < 0.3  # every other image shows it, too
