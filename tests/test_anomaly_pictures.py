"""Pictures of maps: what is drawn where, which images are chosen, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from anomaly_stores import make_store, write_images, write_mask
from PIL import Image

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.anomaly.boxes import pseudo_boxes
from agssp_zoo.training.anomaly.visualize import Shown, colour, draw_overlay, draw_sheet, write_pictures
from agssp_zoo.training.data.unlabelled import read_images

GREEN = np.array([0, 255, 120])


def shown(size: tuple[int, int] = (100, 100), **changes: object) -> Shown:
    values = np.zeros((10, 10), np.float32)
    values[2:4, 6:8] = 1.0
    mask = np.zeros((size[1], size[0]), bool)
    mask[20:40, 60:80] = True
    parts: dict[str, object] = {
        "image": np.full((size[1], size[0], 3), 120, np.uint8),
        "values": values,
        "size": size,
        "caption": "a: score 0.9",
        "boxes": np.array([[60, 20, 80, 40]], np.float32),
        "scores": np.array([0.9], np.float32),
        "mask": mask,
    }
    return Shown(**{**parts, **changes})  # type: ignore[arg-type]


def panels(picture: Image.Image) -> list[np.ndarray]:
    """The three panels of a square image: 400 pixels each, 6 between, below a caption of 18."""
    pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (18 + 6 + 400 + 6, 3 * 406 + 6, 3)
    return [pixels[24:424, 6 + 406 * number : 406 + 406 * number] for number in range(3)]


def test_an_overlay_shows_mask_map_and_boxes_in_their_places() -> None:
    image, heat, boxed = panels(draw_overlay(shown()))
    rows, columns = np.nonzero((image == GREEN).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (79, 160, 239, 320)  # just around the mask
    assert (image[200, 200] == 120).all() and (image[90:150, 250:310] == 120).all()
    inside, outside = heat[100:140, 260:300].mean(axis=(0, 1)), heat[300:, :200].mean(axis=(0, 1))
    assert inside[0] > 180 > 80 > outside[0]
    changed = (boxed != 120).any(axis=2)
    assert changed[80:160, 240].all() and changed[80:160, 319].all() and not changed[200:].any()
    assert not changed[100:140, 260:300].any()


def test_what_is_not_known_is_not_drawn() -> None:
    image, _, boxed = panels(
        draw_overlay(shown(mask=None, boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32)))
    )
    assert (image == 120).all() and (boxed == 120).all()


def test_a_crack_of_one_pixel_in_a_large_image_is_seen() -> None:
    mask = np.zeros((4000, 4000), bool)
    mask[2000, 500:3500] = True
    image = np.full((4000, 4000, 3), 120, np.uint8)
    first = panels(draw_overlay(shown((4000, 4000), image=image, mask=mask)))[0]
    assert (first == GREEN).all(axis=2).sum() > 500


@pytest.mark.parametrize(("size", "order"), [((400, 100), "below"), ((100, 400), "beside"), ((2000, 40), "below")])
def test_panels_of_strips_are_arranged_to_be_seen(size: tuple[int, int], order: str) -> None:
    picture = draw_overlay(shown(size, mask=None))
    assert picture.width < 1300 and picture.height < 1300
    assert (picture.height > 3 * picture.width / 8) == (order == "beside") or order == "below"


def test_an_image_that_cannot_be_read_says_so_in_its_picture() -> None:
    pixels = np.asarray(draw_overlay(shown(image="a.png: is corrupt", mask=None))).astype(int)
    assert ((pixels[..., 0] > 150) & (pixels[..., 1] < 80)).any()  # red ink


def test_colours_grow_lighter_with_the_value() -> None:
    ramp = colour(np.linspace(0, 1, 101, dtype=np.float32)[None]).astype(float)[0]
    luma = ramp @ (0.299, 0.587, 0.114)
    assert (np.diff(luma) > 0).all() and luma[0] < 20 and luma[-1] > 220


def test_a_sheet_fills_its_rows() -> None:
    tiles = [Image.new("RGB", (size, 100), (0, 0, 0)) for size in (700, 700, 700, 100)]
    sheet = draw_sheet(tiles)
    assert (sheet.width, sheet.height) == (2 * 706 + 6, 2 * 106 + 6)
    assert (np.asarray(sheet)[..., 0] == 0).sum() == 2200 * 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "data", {f"{place:02d}": (60, 40 + place) for place in range(12)})
    write_mask(tmp_path / "data", "11", np.pad(np.ones((10, 10), bool), ((0, 41), (0, 50))))
    return tmp_path / "data"


def _maps(keys: list[str]) -> dict[str, np.ndarray]:
    found = {}
    for key in keys:
        found[key] = np.full((8, 8), 0.05, np.float32)
        found[key][1, 2] = 0.1 + int(key[-2:]) / 20
    return found


def test_pictures_are_spread_over_the_scores(root: Path, tmp_path: Path) -> None:
    images = read_images(root)
    store = make_store(tmp_path / "maps", images, _maps([record.key for record in images]))
    files = write_pictures(store, images, tmp_path / "out", limit=4)
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        "data.png", "data/11.png", "data/07.png", "data/04.png", "data/00.png"
    ]  # fmt: skip
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and min(picture.size) > 60
    assert not list((tmp_path / "out").rglob("*.tmp"))
    with Image.open(tmp_path / "out" / "data" / "11.png") as picture:
        assert (np.asarray(picture) == GREEN).all(axis=2).any()  # its mask was found beside the image
    assert len(write_pictures(store, images, tmp_path / "all", limit=50)) == 13


def test_boxes_that_are_given_are_the_ones_drawn(root: Path, tmp_path: Path) -> None:
    images = read_images(root)
    store = make_store(tmp_path / "maps", images, _maps([record.key for record in images]))
    made = pseudo_boxes(store, images)
    write_pictures(store, images, tmp_path / "one", limit=1)
    write_pictures(store, images, tmp_path / "two", limit=1, boxes=made)
    nothing = pseudo_boxes(store, images.subset(1, seed=0))
    assert nothing.images[0].key != "11"
    write_pictures(store, images, tmp_path / "three", limit=1, boxes=nothing)
    one, two, three = (Path(tmp_path / name / "data" / "11.png").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_every_data_set_has_a_sheet_and_broken_images_do_not_end_it(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_images(tmp_path / name, {f"{place:02d}": (60, 50) for place in range(3)})
    images = read_images([tmp_path / "x", tmp_path / "y"])
    store = make_store(tmp_path / "maps", images, _maps([record.key for record in images]), bounded=False)
    broken = tmp_path / "x" / "images" / "02.png"
    broken.write_bytes(b"x" * broken.stat().st_size)
    files = write_pictures(store, images, tmp_path / "out", limit=3)
    assert [file.name for file in files[:2]] == ["x.png", "y.png"]
    assert sorted(file.name for file in files[2:5]) == ["x__00.png", "x__01.png", "x__02.png"]


def test_wrong_requests_are_refused(root: Path, tmp_path: Path) -> None:
    images = read_images(root)
    store = make_store(tmp_path / "maps", images, _maps([record.key for record in images]))
    with pytest.raises(InvalidArgumentError, match="limit is 0"):
        write_pictures(store, images, tmp_path / "out", limit=0)
    with pytest.raises(DataError, match="no maps"):
        write_pictures(store, write_images(tmp_path / "other", {"z": (50, 50)}), tmp_path / "out")


def test_the_command_draws(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = read_images(root)
    store = make_store(tmp_path / "maps", images, _maps([record.key for record in images]))
    assert main(["pseudo-boxes", str(store.path), "--data", str(root), "--visualize", "2", "--json"]) == 0
    written = [Path(name) for name in json.loads(capsys.readouterr().out)["written"]]
    assert [path.name for path in written] == ["yolo", "pseudo_boxes.json", "data.png", "11.png", "00.png"]
    assert all(path.exists() for path in written)
