"""The network's input has the proportions of the images that it is to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("timm")

from anomaly_method import Gray  # noqa: E402
from torch import Tensor  # noqa: E402

from agssp_zoo.errors import TrainingError  # noqa: E402
from agssp_zoo.training.anomaly import MapStore  # noqa: E402
from agssp_zoo.training.anomaly.encoders import load_encoder, shape_of  # noqa: E402
from agssp_zoo.training.anomaly.maps import make_maps  # noqa: E402
from agssp_zoo.training.anomaly.methods import METHODS  # noqa: E402
from agssp_zoo.training.anomaly.preparing import mean_aspect  # noqa: E402
from agssp_zoo.training.anomaly.settings import MapSettings  # noqa: E402
from agssp_zoo.training.data import read_images  # noqa: E402

VIT, CNN = "vit_tiny_patch16_224", "cspdarknet_n"
CELL = 8


class Shaped(Gray):
    """The gray of cells of 8 pixels, in an input that follows the images."""

    name = "shaped"
    shape = (32, 32)

    def fit(self, aspect: float) -> None:
        self.shape = shape_of(aspect, 32, CELL)

    def preprocess(self, image: np.ndarray) -> Tensor:
        large = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        return torch.nn.functional.interpolate(large, self.shape, mode="bilinear", antialias=True)[0]

    def maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        cells = torch.nn.functional.avg_pool2d(batch.mean(1), CELL)
        return cells, cells.amax((1, 2))


def build(options: MapSettings) -> Shaped:
    return Shaped(options)


def test_shapes_have_as_many_patches_as_the_square() -> None:
    assert shape_of(1.0, 224, 14) == (224, 224)
    assert shape_of(1.05, 224, 14) == (224, 224)  # not half a row more
    assert shape_of(2.5, 224, 14) == (350, 140)
    assert shape_of(0.4, 224, 14) == (140, 364)
    assert shape_of(1000.0, 224, 14) == shape_of(16.0, 224, 14) == (896, 56)
    assert shape_of(1e-9, 64, 32) == (32, 128)
    for aspect in np.geomspace(0.1, 10, 41):
        height, width = shape_of(float(aspect), 224, 14)
        assert height % 14 == width % 14 == 0
        assert abs(height * width / 224**2 - 1) < 0.13
        assert abs(np.log(height / width / aspect)) < 0.22


@pytest.mark.parametrize("name", [VIT, CNN])
def test_an_encoder_takes_other_shapes_and_returns(name: str) -> None:
    encoder = load_encoder(name, "none", size=128)
    batch = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    before, digest = encoder.features(batch, (2, 3)), encoder.sha256
    encoder.fit(4.0)
    assert (encoder.shape, encoder.grid, encoder.size) == ((256, 64), (16, 4), 128)
    image = np.random.default_rng(0).integers(0, 256, (300, 70, 3), np.uint8)
    pixels = encoder.preprocess(image)
    assert pixels.shape == (3, 256, 64)
    wanted = np.asarray(Image.fromarray(image).resize((64, 256), Image.Resampling.BICUBIC), np.float64)
    for channel in range(3):  # normalised, each by itself
        assert np.corrcoef(pixels[channel].numpy().ravel(), wanted[..., channel].ravel())[0, 1] > 0.9999
    for layer in encoder.features(pixels[None], (2, 3)):
        assert layer.shape[:2] == (1, 64)
        torch.testing.assert_close(layer.norm(dim=-1), torch.ones(1, 64))
    encoder.fit(0.25)
    assert encoder.grid == (4, 16)
    encoder.fit(1.0)
    assert (encoder.grid, encoder.sha256) == ((8, 8), digest)
    for now, then in zip(encoder.features(batch, (2, 3)), before, strict=True):
        assert torch.equal(now, then)  # what was learnt of places has not been resized twice


def test_places_keep_their_order() -> None:
    """A patch's own features follow the pixels at its place, row by row, in an input that is not square."""
    encoder = load_encoder(VIT, "none", size=64)
    encoder.fit(0.25)
    module: Any = encoder.module
    batch = torch.zeros(1, 3, *encoder.shape)
    other = batch.clone()
    other[:, :, 16:32, 80:96] = 1
    moved = (module.patch_embed(other) - module.patch_embed(batch)).abs().sum(-1)
    assert encoder.grid == (2, 8) and (moved[0] > 0).nonzero().flatten().tolist() == [8 + 5]


def test_a_square_encoder_stays_square() -> None:
    encoder = load_encoder(VIT, "none", size=64, square=True)
    encoder.fit(4.0)
    assert encoder.shape == (64, 64)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three data sets of other proportions, each with a bright spot three quarters along the longer side."""
    monkeypatch.setitem(METHODS, "shaped", __name__)
    for name, (height, width) in {"plate": (64, 64), "strip": (32, 128), "tube": (160, 40)}.items():
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 20, (height, width, 3), np.uint8)
            pixels[height * 3 // 4 - 4 : height * 3 // 4 + 4, width * 3 // 4 - 4 : width * 3 // 4 + 4] = 255
            (tmp_path / "pool" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "pool" / name / f"{number}.png")
    return tmp_path / "pool"


def make(data: Path, out: Path, **values: Any) -> MapStore:
    told = {"object": "pool"} if values.get("method", "shaped") == "shaped" else {}  # ours use none
    how = {"method": "shaped", **told, "batch": 4, "device": "cpu", "threads": 1, **values}
    store = make_maps(MapSettings(data=(str(data),), out=str(out), **how)).store
    assert store is not None
    return store


def test_mean_proportions(pool: Path) -> None:
    images = read_images(pool)
    rows = [
        np.array([i for i, record in enumerate(images) if name in record.key]) for name in ("plate", "strip", "tube")
    ]
    assert [mean_aspect(images, row) for row in rows] == pytest.approx([1.0, 0.25, 4.0])
    assert mean_aspect(images, np.concatenate([rows[1], rows[2]])) == pytest.approx(1.0)
    assert mean_aspect(images, np.zeros(0, np.int64)) == 1.0


@pytest.mark.parametrize("kind", ["pool", ""])
def test_each_data_set_has_its_own_shape_and_the_store_one_grid(tmp_path: Path, pool: Path, kind: str) -> None:
    store = make(pool, tmp_path / "out", object=kind)
    # Learnt apart: 4x4, 2x8 and 8x2 cells; looked at together, the proportions cancel out.
    assert store.grid == ((8, 8) if kind else (4, 4))
    for key in store.keys:
        values = store.map(key)
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        spot = (np.array([row, column]) + 0.5) / store.grid
        finest = (4, 4) if "plate" in key or not kind else (2, 8) if "strip" in key else (8, 2)
        assert (np.abs(spot - 0.75) <= 0.5 / np.array(finest) + 0.5 / np.array(store.grid)).all()


def test_one_data_set_keeps_its_grid_and_squares_are_squares(tmp_path: Path, pool: Path) -> None:
    assert make(pool / "strip", tmp_path / "strip").grid == (2, 8)
    for method in ("own", "mutual", "gaussian", "consensus", "auto", "memory"):
        values: dict[str, Any] = {
            "method": method,
            "encoder": VIT,
            "encoder_weights": "none",
            "size": 64,
            "layers": (1,),
        }
        if method == "memory":
            values["normal"] = str(pool / "plate")  # they take the shape of the images that get maps
        long = make(pool / "strip", tmp_path / method, **values)
        assert long.grid == (2, 8) and long.settings["aspect"] == "keep"
        squashed = make(pool / "strip", tmp_path / f"{method}_square", aspect="square", **values)
        assert squashed.grid == (4, 4) and "aspect" not in squashed.settings
        assert all(np.isfinite(store.maps).all() for store in (long, squashed))


def test_the_shape_is_part_of_what_a_store_is(tmp_path: Path, pool: Path) -> None:
    how = {"method": "own", "encoder": VIT, "encoder_weights": "none", "size": 64, "layers": (1,)}
    make(pool / "strip", tmp_path / "out", aspect="square", **how)
    with pytest.raises(TrainingError, match=r'aspect "keep" \(was null\)'):
        make(pool / "strip", tmp_path / "out", **how)


def test_a_run_that_goes_on_has_the_same_shapes(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(pool, tmp_path / "whole")
    make_one, made = Shaped.maps, []

    def stop(method: Shaped, batch: Tensor) -> tuple[Tensor, Tensor]:
        made.append(len(batch))
        if len(made) == 6:  # three gray images that tell the grid, then one and a half data sets
            raise KeyboardInterrupt
        return make_one(method, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shaped, "maps", stop)
        make(pool, tmp_path / "out")
    again = make(pool, tmp_path / "out")
    assert again.grid == whole.grid and (np.asarray(again.maps) == np.asarray(whole.maps)).all()


def test_two_methods_of_other_shapes_make_one_grid(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "gray", "anomaly_method")  # of 4x4 cells, whatever the images are
    both = make(pool / "strip", tmp_path / "out", method="gray+shaped")
    assert both.grid == (4, 8)
    for key in both.keys:
        row, column = np.unravel_index(int(both.map(key).argmax()), both.grid)
        assert abs((column + 0.5) / 8 - 0.75) <= 0.125 and abs((row + 0.5) / 4 - 0.75) <= 0.25
