"""The store of anomaly maps: what goes in comes out, other images and settings are refused, and it is whole or not."""

from __future__ import annotations

import errno
import json
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import write_image

from agssp_zoo.errors import DataError, InvalidArgumentError, TrainingError
from agssp_zoo.training.anomaly import MapStore, MapWriter
from agssp_zoo.training.anomaly.combine import combine
from agssp_zoo.training.anomaly.grid import enlarge
from agssp_zoo.training.anomaly.rescale import map_range, rescale, score_range
from agssp_zoo.training.data import Dataset, pack, read_images

SETTINGS = {"method": "own", "encoder": "vit", "layers": [3, 6]}
NAMES = ("tiles/a", "tiles/b", "tiles/c", "strip/d", "strip/e")


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    """Five images of two data sets."""
    for name in NAMES:
        write_image(tmp_path / "pool" / f"{name}.png", name)
    return read_images(tmp_path / "pool")


def draw(count: int, grid: tuple[int, int] = (4, 3), seed: int = 0, scale: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return scale * rng.gamma(2.0, size=(count, *grid)), scale * rng.gamma(2.0, size=count)


def write(path: Path, images: Dataset, *, settings: dict[str, Any] = SETTINGS, **how: Any) -> MapStore:
    writer = MapWriter(path, images, settings, bounded=how.pop("bounded", False))
    maps, scores = draw(len(images), **how)
    writer.write(range(len(images)), maps, scores)
    return writer.finish()


def test_what_goes_in_comes_out(tmp_path: Path, images: Dataset) -> None:
    maps, scores = draw(5)
    writer = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    assert writer.todo.tolist() == [0, 1, 2, 3, 4]
    writer.write([3, 0, 1], maps[[3, 0, 1]], scores[[3, 0, 1]])
    assert writer.todo.tolist() == [2, 4]
    writer.write([2, 4], maps[[2, 4]], scores[[2, 4]])
    written = writer.finish(["chosen for a reason"])
    for store in (written, MapStore.open(tmp_path / "store", images=images)):
        assert store.keys == tuple(record.key for record in images) and len(store) == 5
        assert store.sources == ("strip", "strip", "tiles", "tiles", "tiles")
        assert store.maps.dtype == np.float16 and isinstance(store.maps, np.memmap) and store.grid == (4, 3)
        assert store.settings == SETTINGS and not store.bounded and store.notes == ("chosen for a reason",)
        assert "tiles/a" in store and "a" not in store and list(store) == list(store.keys)
        np.testing.assert_array_equal(store.maps, maps.astype(np.float16))
        np.testing.assert_array_equal(store.scores, scores.astype(np.float32))
        row = store.keys.index("tiles/b")
        np.testing.assert_array_equal(store.map("tiles/b"), maps[row].astype(np.float16))
        assert store.map("tiles/b").dtype == np.float32 and store.score("tiles/b") == np.float32(scores[row])
    with pytest.raises(DataError, match=r"no anomaly map of image 'b'; it has 5 others"):
        store.map("b")
    with pytest.raises(ValueError, match="read-only"):
        store.maps[0] = 0
    # Other tools read it: nothing but JSON and arrays.
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [
        "keys.json", "maps.npy", "scores.npy", "store.json",
    ]  # fmt: skip
    assert np.load(tmp_path / "store" / "maps.npy").shape == (5, 4, 3)


def test_probabilities_stay_and_other_values_are_rescaled_by_data_set(tmp_path: Path, images: Dataset) -> None:
    maps, scores = draw(5)
    maps[2:] *= 50  # the second data set answers on another scale
    probabilities = MapWriter(tmp_path / "bounded", images, SETTINGS, bounded=True)
    probabilities.write(range(5), maps / 40, scores)
    store = probabilities.finish()
    key = store.keys[0]
    np.testing.assert_array_equal(store.probability(key), np.minimum(store.map(key), 1))
    others = MapWriter(tmp_path / "free", images, SETTINGS, bounded=False)
    others.write(range(5), maps, scores)
    store = others.finish()
    for name, rows in (("strip", slice(0, 2)), ("tiles", slice(2, 5))):
        found = np.array([store.probability(store.keys[row]) for row in range(5)[rows]])
        low, high = store.ranges[name]["map"]
        raw = store.maps[rows].astype(np.float64)
        assert raw.min() <= low < high <= raw.max()
        np.testing.assert_allclose(found, np.clip((raw - low) / (high - low), 0, 1), atol=1e-6)
        assert found.max() == 1 and found.dtype == np.float32


def test_it_pickles_by_its_path(tmp_path: Path, images: Dataset) -> None:
    store = write(tmp_path / "store", images)
    store.maps  # noqa: B018  (opens the file)
    copied = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 500
    np.testing.assert_array_equal(copied.map("tiles/a"), store.map("tiles/a"))


# ---- stores that are none, not finished, or damaged


def test_what_is_no_store_is_refused(tmp_path: Path, images: Dataset) -> None:
    with pytest.raises(DataError, match="is not a store"):
        MapStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"kind": "shop"}')
    with pytest.raises(DataError, match="is not a store"):
        MapStore.open(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        MapStore.open(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        MapWriter(tmp_path, images, SETTINGS, bounded=False)


def test_an_unfinished_store_is_refused_and_says_how_to_finish_it(tmp_path: Path, images: Dataset) -> None:
    path = tmp_path / "store"
    writer = MapWriter(path, images, SETTINGS, bounded=False)
    writer.write([0, 1], *draw(2))
    with pytest.raises(DataError, match=r"not finished \(2 of 5 images\); run the same"):
        MapStore.open(path)
    with pytest.raises(TrainingError, match="3 images have no map yet"):
        writer.finish()
    (path / "store.json").unlink()  # killed before there was one
    with pytest.raises(DataError, match="run the same `agssp-zoo anomaly-maps` command again"):
        MapStore.open(path)
    assert len(MapWriter(path, images, SETTINGS, bounded=False).todo) == 5


@pytest.mark.parametrize(
    "name", ["keys.json", "maps.npy", "scores.npy"], ids=["without keys", "without maps", "without scores"]
)
def test_a_damaged_store_is_refused(tmp_path: Path, images: Dataset, name: str) -> None:
    path = write(tmp_path / "store", images).path
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="is damaged"):
        MapStore.open(path)
    (path / name).unlink()
    with pytest.raises(DataError, match="is damaged"):
        MapStore.open(path)


def test_files_of_different_stores_do_not_mix(tmp_path: Path, images: Dataset) -> None:
    one = write(tmp_path / "one", images).path
    two = write(tmp_path / "two", images, grid=(2, 2)).path
    shutil.copy(two / "maps.npy", one / "maps.npy")
    with pytest.raises(DataError, match="do not fit together"):
        MapStore.open(one)


def test_a_store_of_a_newer_version_asks_for_an_update(tmp_path: Path, images: Dataset) -> None:
    file = write(tmp_path / "store", images).path / "store.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(DataError, match="pip install -U"):
        MapStore.open(tmp_path / "store")


# ---- other images, other settings


def test_a_reader_with_other_images_is_refused(tmp_path: Path, images: Dataset) -> None:
    store = write(tmp_path / "store", images)
    pool = tmp_path / "pool"
    # Fewer images are fine, from shards too.
    assert MapStore.open(store.path, images=replace(images, records=images.records[1:3])).keys == store.keys
    store.check(read_images(pack(images, tmp_path / "shards")))
    with pytest.raises(DataError, match=r"no maps of 2 of 2 images: d, e.*another level"):
        MapStore.open(store.path, images=read_images(pool / "strip"))
    write_image(pool / "strip" / "d.png", "d", 40, 40)
    with pytest.raises(DataError, match="'strip/d' had 64x32 pixels when its map was made, now 40x40"):
        store.check(read_images(pool))
    write_image(pool / "strip" / "d.png", "another")
    with pytest.raises(DataError, match="'strip/d' has changed since"):
        store.check(read_images(pool))


def test_a_writer_with_other_images_is_refused(tmp_path: Path, images: Dataset) -> None:
    path = tmp_path / "store"
    MapWriter(path, images, SETTINGS, bounded=False).write([0], *draw(1))
    for state in ("unfinished", "finished"):
        write_image(tmp_path / "pool" / "strip" / "f.png", "f")
        with pytest.raises(TrainingError, match=r"maps of other images \(5, now 6; .*another --out"):
            MapWriter(path, read_images(tmp_path / "pool"), SETTINGS, bounded=False)
        (tmp_path / "pool" / "strip" / "f.png").unlink()
        kept = (tmp_path / "pool" / "strip" / "e.png").read_bytes()
        write_image(tmp_path / "pool" / "strip" / "e.png", "another")  # the same name and size, another image
        with pytest.raises(TrainingError, match="or files have changed"):
            MapWriter(path, read_images(tmp_path / "pool"), SETTINGS, bounded=False)
        (tmp_path / "pool" / "strip" / "e.png").write_bytes(kept)
        if state == "unfinished":
            writer = MapWriter(path, read_images(tmp_path / "pool"), SETTINGS, bounded=False)
            writer.write([1, 2, 3, 4], *draw(4))
            writer.finish()


@pytest.mark.parametrize("finished", [False, True])
def test_a_writer_with_other_settings_is_refused_and_names_them(
    tmp_path: Path, images: Dataset, finished: bool
) -> None:
    path = tmp_path / "store"
    writer = MapWriter(path, images, SETTINGS, bounded=False)
    writer.write(range(5), *draw(5))
    if finished:
        writer.finish()
    with pytest.raises(TrainingError, match=r"other settings: encoder \"cnn\" \(was \"vit\"\); give another --out"):
        MapWriter(path, images, {**SETTINGS, "encoder": "cnn"}, bounded=False)
    with pytest.raises(TrainingError, match=r"layers null \(was \[3, 6\]\), size 5 \(was null\)"):
        MapWriter(path, images, {"method": "own", "encoder": "vit", "size": 5}, bounded=False)
    with pytest.raises(TrainingError, match=r"bounded true \(was false\)"):
        MapWriter(path, images, SETTINGS, bounded=True)
    # Tuples are lists in JSON, and the order of settings says nothing.
    same = {"layers": (3, 6), "encoder": "vit", "method": "own"}
    assert len(MapWriter(path, images, same, bounded=False).finish()) == 5


def test_a_writer_goes_on_and_leaves_finished_rows_alone(tmp_path: Path, images: Dataset) -> None:
    path = tmp_path / "store"
    maps, scores = draw(5)
    first = MapWriter(path, images, SETTINGS, bounded=False)
    first.write([0, 3], maps[[0, 3]], scores[[0, 3]])
    second = MapWriter(path, images, SETTINGS, bounded=False)  # as after a kill, or in another process
    assert second.todo.tolist() == [1, 2, 4] and second.grid == (4, 3)
    third = MapWriter(path, images, SETTINGS, bounded=False)
    second.write([1], maps[[1]], scores[[1]])
    third.write([2, 4], maps[[2, 4]], scores[[2, 4]])
    third.close()
    np.testing.assert_array_equal(second.finish().maps, maps.astype(np.float16))
    done = MapWriter(path, images, SETTINGS, bounded=False)
    assert not len(done.todo) and done.finish().fingerprint == MapStore.open(path).fingerprint


# ---- values


def test_values_that_are_no_numbers_name_their_image(tmp_path: Path, images: Dataset) -> None:
    maps, scores = draw(5)
    writer = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    maps[3, 1, 1] = np.nan
    with pytest.raises(TrainingError, match="map of image tiles/b holds values that are no numbers"):
        writer.write(range(5), maps, scores)
    maps[3, 1, 1], scores[0] = 0, np.inf
    with pytest.raises(TrainingError, match="map of image strip/d"):
        writer.write(range(5), maps, scores)
    assert len(writer.todo) == 5
    scores[0], maps[0, 0, 0] = 0, 1e9  # beyond float16
    writer.write(range(5), maps, scores)
    assert writer.finish().map("strip/d")[0, 0] == 65504
    with pytest.raises(TrainingError, match="do not fit the store's grid"):
        MapWriter(tmp_path / "other", images, SETTINGS, bounded=False).write([0], maps[:2], scores[:1])


def test_unreadable_images_are_left_out(tmp_path: Path, images: Dataset) -> None:
    maps, scores = draw(5)
    writer = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    writer.write([0, 2, 4], maps[[0, 2, 4]], scores[[0, 2, 4]])
    writer.mark_unreadable([1, 3])
    assert writer.todo.tolist() == [1, 3]  # they are tried again
    store = writer.finish()
    assert store.keys == ("strip/d", "tiles/a", "tiles/c") and store.sources == ("strip", "tiles", "tiles")
    assert store.unreadable == {"strip/e", "tiles/b"}
    np.testing.assert_array_equal(store.maps, maps[[0, 2, 4]].astype(np.float16))
    np.testing.assert_array_equal(store.map("tiles/c"), maps[4].astype(np.float16))
    with pytest.raises(DataError, match="it could not be read when they were made"):
        store.map("tiles/b")
    assert MapStore.open(store.path, images=images).scores.tolist() == scores[[0, 2, 4]].astype(np.float32).tolist()
    assert not len(MapWriter(store.path, images, SETTINGS, bounded=False).todo)
    none = MapWriter(tmp_path / "none", images, SETTINGS, bounded=False)
    none.create((2, 2))
    none.mark_unreadable(range(5))
    with pytest.raises(TrainingError, match="not one of the 5 images"):
        none.finish()


def test_a_full_disk_is_an_error_and_the_store_goes_on(tmp_path: Path, images: Dataset) -> None:
    maps, scores = draw(5, grid=(64, 64))
    writer = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    writer.create((64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # room for two maps
    try:
        writer.write([0, 1], maps[:2], scores[:2])
        with pytest.raises(TrainingError, match=r"cannot be written .*make room .* the same command again"):
            writer.write([2, 3, 4], maps[2:], scores[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    assert again.todo.tolist() == [2, 3, 4]
    again.write([2, 3, 4], maps[2:], scores[2:])
    np.testing.assert_array_equal(again.finish().maps, maps.astype(np.float16))


def test_a_folder_that_cannot_be_written(tmp_path: Path, images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((TrainingError, DataError), match="cannot be"):
        MapWriter(tmp_path / "file" / "store", images, SETTINGS, bounded=False).create((2, 2))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(TrainingError, match="Read-only file system"):
        MapWriter(tmp_path / "store", images, SETTINGS, bounded=False).create((2, 2))


# ---- rescaling


@pytest.mark.parametrize("seed", range(3))
def test_ranges_are_exact_quantiles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    maps = (rng.normal(size=(700, 5, 4)) * 10.0 ** rng.integers(-6, 4, (700, 1, 1))).astype(np.float16)
    rows = np.flatnonzero(rng.random(700) < 0.7)
    expected = np.quantile(maps[rows].astype(np.float64), (0.01, 0.999), method="inverted_cdf")
    assert map_range(maps, rows) == pytest.approx(tuple(expected), rel=1e-6)
    monkeypatch.setattr("agssp_zoo.training.anomaly.rescale._CHUNK", 100)  # in blocks the same
    assert map_range(maps, rows) == pytest.approx(tuple(expected), rel=1e-6)


def test_an_outlier_moves_no_range() -> None:
    maps = np.random.default_rng(0).random((100, 16, 16)).astype(np.float16)
    rows = np.arange(100)
    before = map_range(maps, rows)
    maps[3, 2, 1] = 60000
    assert map_range(maps, rows) == pytest.approx(before, abs=2e-3)
    scores = np.append(np.linspace(0, 1, 2000), 1e6).astype(np.float32)
    assert score_range(scores)[1] < 1.1


@pytest.mark.parametrize("value", [0.0, -0.0, 0.25, -3.0])
def test_flat_values_become_zero(value: float) -> None:
    maps = np.full((4, 3, 3), value, np.float16)
    span = map_range(maps, np.arange(4))
    assert span == (value, value)
    assert not rescale(maps, span).any()
    assert not rescale(np.full(4, value, np.float32), score_range(np.full(4, value, np.float32))).any()


def test_nearly_flat_values_take_their_extremes() -> None:
    maps = np.full((200, 8, 8), 0.5, np.float16)
    maps[7, 3, 3] = 0.75  # one cell in 12800
    span = map_range(maps, np.arange(200))
    assert span == (0.5, 0.75)
    assert rescale(maps, span).max() == 1 and rescale(maps, span).sum() == 1
    maps[7, 3, 3] = 0.25
    assert map_range(maps, np.arange(200)) == (0.25, 0.5)


def test_flat_stores_have_no_nan(tmp_path: Path, images: Dataset) -> None:
    writer = MapWriter(tmp_path / "store", images, SETTINGS, bounded=False)
    writer.write(range(5), np.full((5, 3, 3), 0.3), np.zeros(5))
    store = writer.finish()
    assert all((store.probability(key) == 0).all() for key in store)


# ---- combining


def test_a_combination_is_the_mean_of_rescaled_stores(tmp_path: Path, images: Dataset) -> None:
    one = write(tmp_path / "one", images, seed=1, grid=(4, 4))
    two = write(tmp_path / "two", images, seed=2, scale=100, settings={"method": "mutual"}, grid=(8, 8))
    both = combine([one, two], tmp_path / "both", images)
    assert both.grid == (8, 8) and both.settings["method"] == "own+mutual" and not both.bounded
    assert both.settings["parts"] == [SETTINGS, {"method": "mutual"}] and both.sources == one.sources
    for key, source in zip(both.keys, both.sources, strict=True):
        parts = []
        for store in (one, two):
            raw = store.map(key).astype(np.float64)
            low, high = store.ranges[source]["map"]
            parts.append(enlarge(((raw - low) / (high - low)).astype(np.float32), (8, 8)))
        np.testing.assert_allclose(both.map(key), np.mean(parts, axis=0), rtol=1e-3, atol=1e-3)
        expected = [
            (store.score(key) - store.ranges[source]["score"][0]) / np.ptp(store.ranges[source]["score"])
            for store in (one, two)
        ]
        assert both.score(key) == pytest.approx(np.mean(expected), abs=1e-5)
    # Called again it is there already; with other parts it is refused.
    assert combine([one, two], tmp_path / "both", images).fingerprint == both.fingerprint
    with pytest.raises(TrainingError, match="other settings: method"):
        combine([two, one], tmp_path / "both", images)


def test_a_flat_part_changes_no_order(tmp_path: Path, images: Dataset) -> None:
    one = write(tmp_path / "one", images)
    flat = MapWriter(tmp_path / "flat", images, {"method": "mutual"}, bounded=True)
    flat.write(range(5), np.full((5, 4, 3), 0.5), np.full(5, 0.5))
    both = combine([one, flat.finish()], tmp_path / "both", images)
    for key in both:
        assert (np.argsort(both.map(key).ravel()) == np.argsort(one.map(key).ravel())).all()


def test_images_that_a_part_could_not_read_are_left_out(tmp_path: Path, images: Dataset) -> None:
    one = write(tmp_path / "one", images)
    writer = MapWriter(tmp_path / "two", images, {"method": "mutual"}, bounded=False)
    maps, scores = draw(5)
    writer.write([0, 1, 3, 4], maps[[0, 1, 3, 4]], scores[[0, 1, 3, 4]])
    writer.mark_unreadable([2])
    for order in ([one, writer.finish()], [MapStore.open(tmp_path / "two"), one]):
        both = combine(order, tmp_path / f"both{len(order[0])}", images)
        assert both.unreadable == {"tiles/a"} and len(both) == 4
        assert both.sources == ("strip", "strip", "tiles", "tiles")


def test_stores_that_do_not_go_together(tmp_path: Path, images: Dataset) -> None:
    one = write(tmp_path / "one", images)
    with pytest.raises(InvalidArgumentError, match="at least two"):
        combine([one], tmp_path / "both", images)
    other = MapWriter(tmp_path / "two", images, SETTINGS, bounded=False, sources=["all"] * 5)
    other.write(range(5), *draw(5))
    with pytest.raises(DataError, match="has other data sets"):
        combine([one, other.finish()], tmp_path / "both", images)
    fewer = replace(images, records=images.records[:3])
    with pytest.raises(DataError, match="no maps of 2 of 5 images"):
        combine([one, write(tmp_path / "three", fewer)], tmp_path / "both", images)
