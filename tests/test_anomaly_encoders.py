"""Encoders for maps without text: their features, their weights, what they refuse, and that defects are found."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("accelerate")

from anomaly_features import pool  # noqa: E402

from agssp_zoo.cli import main  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    AgsspZooError,
    CheckpointError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnsafeCheckpointError,
)
from agssp_zoo.training.anomaly import MapStore  # noqa: E402
from agssp_zoo.training.anomaly.boxes import pseudo_boxes  # noqa: E402
from agssp_zoo.training.anomaly.encoders import CnnEncoder, Encoder, VitEncoder, load_encoder  # noqa: E402
from agssp_zoo.training.anomaly.maps import make_maps  # noqa: E402
from agssp_zoo.training.anomaly.methods import build_method  # noqa: E402
from agssp_zoo.training.anomaly.settings import MapSettings  # noqa: E402
from agssp_zoo.training.synthetic import Sample, draw_sample  # noqa: E402

VIT, CNN = "vit_tiny_patch16_224", "cspdarknet_n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def encoder(name: str, size: int = 64) -> Encoder:
    return load_encoder(name, "none", size=size)


@cache
def weights_file(folder: Path, name: str = "vit.safetensors", model: str = VIT, **changes: Any) -> Path:
    """Weights as timm has them, for inputs of 224 pixels."""
    from safetensors.torch import save_file

    torch.manual_seed(5)
    state = timm.create_model(model, **changes).state_dict()
    file = folder / name
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
        torch.save(wrapped if file.suffix == ".pth" else state, file)
    return file


def noise(count: int, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# ---- features


def test_a_layer_of_a_vit_is_what_its_block_gives() -> None:
    found = encoder(VIT)
    assert isinstance(found, VitEncoder) and (found.grid, found.depth, found.size) == ((4, 4), 12, 64)
    assert found.pick(0.25, 0.5, 0.75, 1.0) == (3, 6, 9, 12) and found.pick(0.01, 0.02) == (1,)
    batch, module = noise(2), found.module
    tokens = module._pos_embed(module.patch_embed(batch))
    expected = []
    for number, block in enumerate(module.blocks, 1):
        tokens = block(tokens)
        if number in (3, 12):
            expected.append(torch.nn.functional.normalize(module.norm(tokens)[:, module.num_prefix_tokens :], dim=-1))
    for layer, wanted in zip(found.features(batch, (3, 12)), expected, strict=True):
        torch.testing.assert_close(layer, wanted, rtol=1e-4, atol=1e-5)
    # Patch 5 lies in row 1, column 1: only what is there moves its own embedding.
    other = batch.clone()
    other[:, :, 16:32, 16:32] += 1
    moved = (module.patch_embed(other) - module.patch_embed(batch)).abs().sum(-1)
    assert (moved[0] > 0).nonzero().flatten().tolist() == [5]


def test_blocks_beyond_the_last_layer_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_encoder(VIT, "none", size=64)
    monkeypatch.setattr(found.module.blocks[9], "forward", lambda *_, **__: pytest.fail("block 10 ran"))
    assert len(found.features(noise(1), (6, 9))) == 2


def test_a_layer_of_a_cnn_is_its_stage_smoothed() -> None:
    found = encoder(CNN)
    assert isinstance(found, CnnEncoder) and (found.grid, found.depth) == ((4, 4), 4) and found.pick(0.5) == (2, 3)
    batch = noise(2)
    found.module.set_out_indices([0, 1, 2, 3])
    stages = [stage.numpy() for stage in found.module(batch)]
    assert [stage.shape[-1] for stage in stages] == [16, 8, 4, 2]
    for layer, stage in zip(found.features(batch, (1, 2, 3)), stages, strict=False):
        side = stage.shape[-1]
        smooth = np.zeros_like(stage)
        for y in range(side):
            for x in range(side):
                smooth[:, :, y, x] = stage[:, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean(axis=(2, 3))
        cell = side // 4
        cells = smooth.reshape(*smooth.shape[:2], 4, cell, 4, cell).mean(axis=(3, 5)).reshape(2, -1, 16)
        wanted = cells / np.linalg.norm(cells, axis=1, keepdims=True)
        np.testing.assert_allclose(layer.numpy(), wanted.transpose(0, 2, 1), rtol=1e-3, atol=1e-5)
    last = found.features(batch, (4,))[0]
    assert last.shape[1] == 16  # enlarged onto the grid
    torch.testing.assert_close(last.norm(dim=-1), torch.ones(2, 16))


@pytest.mark.parametrize("name", [VIT, CNN])
def test_preprocessing(name: str) -> None:
    found = encoder(name)
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    before = image.copy()
    result = found.preprocess(image)
    assert result.shape == (3, 64, 64) and result.dtype == torch.float32 and (image == before).all()
    mean, std = ((0.5,) * 3, (0.5,) * 3) if name == VIT else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    wanted = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC), np.float64) / 255
    np.testing.assert_allclose(result.numpy(), ((wanted - mean) / std).transpose(2, 0, 1), atol=1e-4)


def test_networks_are_the_same_each_time() -> None:
    """Processes, and a run that goes on, must not differ; and the user's random numbers are left alone."""
    for name in (VIT, CNN):
        torch.manual_seed(2)
        first = load_encoder(name, "none", size=64)
        torch.manual_seed(1)
        second = load_encoder(name, "none", size=64)
        assert first.sha256 == second.sha256 and len(first.sha256) == 64
        assert not any(p.requires_grad for p in first.parameters()) and not first.module.training
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


# ---- weights


def test_weights_of_a_file(tmp_path: Path) -> None:
    files = [weights_file(tmp_path, name) for name in ("a.safetensors", "b.pth", "c.pt", "d.bin")]
    found = [load_encoder(VIT, str(file), size=224) for file in files]
    assert len({each.sha256 for each in found}) == 1 != encoder(VIT, 224).sha256
    torch.manual_seed(5)
    expected = timm.create_model(VIT).eval().forward_features(noise(1, 224))[:, 1:]
    layer = found[0].features(noise(1, 224), (12,))[0]
    torch.testing.assert_close(layer, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-3, atol=1e-4)
    small = load_encoder(VIT, str(files[0]), size=64)  # what is learnt of places is resized
    assert small.grid == (4, 4) and small.features(noise(1), (1,))[0].isfinite().all()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_weights_that_do_not_serve(tmp_path: Path) -> None:
    def refuse(file: Path, kind: type[AgsspZooError], message: str) -> None:
        with pytest.raises(kind, match=message) as caught:
            load_encoder(VIT, str(file), size=64)
        assert file.name in str(caught.value) and "\n" not in str(caught.value)

    refuse(tmp_path / "missing.safetensors", CheckpointError, "there is no such file")
    refuse(tmp_path, CheckpointError, "there is no such file")
    refuse(weights_file(tmp_path, "wide.pth", "vit_small_patch16_224"), CheckpointError, f"cannot be read as .* {VIT}")
    refuse(weights_file(tmp_path, "short.pth", depth=6), CheckpointError, "72 tensors are missing and 0 unknown")
    refuse(weights_file(tmp_path, "long.pth", depth=13), CheckpointError, "0 tensors are missing and 12 unknown")
    refuse(weights_file(tmp_path, "cnn.pth", "resnet18"), CheckpointError, "resnet|missing|cannot be read")
    (tmp_path / "half.safetensors").write_bytes(weights_file(tmp_path).read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("half.safetensors", "text.pt"):
        refuse(tmp_path / name, CheckpointError, "cannot be read as weights|holds more than tensors, or is damaged")
    done = tmp_path / "executed"
    torch.save({"state_dict": Evil(done)}, tmp_path / "evil.pth")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(done)))
    for name in ("evil.pth", "evil.pt"):
        refuse(tmp_path / name, UnsafeCheckpointError, "more than tensors.*nothing of it was executed")
    assert not done.exists()


def test_encoders_that_there_are_not(tmp_path: Path) -> None:
    for name, kind, message in (
        ("vit_tiny_patch15_224", InvalidArgumentError, r"timm .* has no such model; there are .*vit_"),
        ("vit_nothing", InvalidArgumentError, "has no such model"),
        (f"{VIT}.nothing", InvalidArgumentError, "cannot be built as a Vision Transformer .*nothing"),
        ("timm/resnet18", InvalidArgumentError, "cannot be built as a Vision Transformer"),
        ("nothing", ModelNotFoundError, "no model named 'nothing'.* called as in timm: vit_"),
        (str(tmp_path / "no_folder"), AgsspZooError, "no_folder"),
    ):
        with pytest.raises(kind, match=message):
            load_encoder(name, "none")
    for name, message in ((VIT, "takes multiples of 16, as 64"), (CNN, "takes multiples of 32, as 64")):
        with pytest.raises(InvalidArgumentError, match=f"--size 70: {name} {message}"):
            load_encoder(name, "none", size=70)
    with pytest.raises(InvalidArgumentError, match="takes multiples of 14, as 42"):  # 28 would be refused
        load_encoder("vit_small_patch14_dinov2", "none", size=40)
    with pytest.raises(InvalidArgumentError, match="--encoder-weights is for models of timm"):
        load_encoder(CNN, "some.pth")
    assert load_encoder(CNN, "none").size == 224 and load_encoder("vit_tiny_patch16_384", "none").size == 224
    for layers in ((13,), (1, 99)):
        with pytest.raises(InvalidArgumentError, match=rf"--layers .*: {VIT} has layers 1 to 12"):
            build_method("own", MapSettings(encoder=VIT, encoder_weights="none", size=64, layers=layers))


def test_weights_that_are_not_there_and_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    with pytest.raises(AgsspZooError, match=r"cannot be downloaded \(no route to host.*--encoder-weights FILE"):
        load_encoder(VIT, size=64)


# ---- methods on encoders


@cache
def samples(all_defective: bool = False) -> tuple[Sample, ...]:
    """Brushed steel, with scale upon every third image, or every one."""
    return tuple(
        draw_sample(n, size=(128, 128), surface="brushed", defects=["scale"] if all_defective or n % 3 == 0 else [])
        for n in range(24)
    )


def run(
    name: str, network: str, images: Sequence[np.ndarray], shown: Sequence[np.ndarray], size: int = 128
) -> tuple[Any, torch.Tensor]:
    """A method that has looked at some images, and its maps of others."""
    options = MapSettings(method=name, encoder=network, encoder_weights="none", size=size)
    method: Any = build_method(name, options)

    def loader(indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for at in range(0, len(indices), 8):
            yield torch.stack([method.preprocess(images[i]) for i in indices[at : at + 8]])

    method.prepare(loader, pool(len(images)))
    return method, torch.cat([method.maps(method.preprocess(image)[None])[0] for image in shown])


def pixel_auroc(maps: torch.Tensor, drawn: Sequence[Sample]) -> float:
    from sklearn.metrics import roc_auc_score

    large = torch.nn.functional.interpolate(maps[:, None], (128, 128), mode="bilinear")[:, 0]
    return float(roc_auc_score(np.stack([s.masks.any(axis=0) for s in drawn]).ravel(), large.flatten().numpy()))


BOUNDS = {
    (VIT, "own"): 0.8, (VIT, "consensus"): 0.65, (VIT, "gaussian"): 0.9, (VIT, "mutual"): 0.8, (VIT, "memory"): 0.8,
    (VIT, "auto"): 0.8, (CNN, "own"): 0.7, (CNN, "consensus"): 0.7, (CNN, "gaussian"): 0.9, (CNN, "mutual"): 0.85,
    (CNN, "memory"): 0.85, (CNN, "auto"): 0.85,
}  # fmt: skip


@pytest.mark.parametrize(("network", "name"), BOUNDS)
def test_planted_defects_are_found(network: str, name: str) -> None:
    """Networks of newly drawn weights tell textures apart already, so the maps must be far better than chance."""
    drawn = samples(name in ("own", "consensus"))
    images = [sample.image for sample in drawn]
    normal = [draw_sample(100 + n, size=(128, 128), surface="brushed", defects=[]).image for n in range(8)]
    method, maps = run(name, network, normal if name == "memory" else images, images)
    found = pixel_auroc(maps, drawn)
    assert found > BOUNDS[network, name], f"{found:.3f}"
    assert maps.shape == (24, 8, 8) and maps.isfinite().all()
    if name != "auto":
        again: Any = build_method(name, MapSettings(method=name, encoder=network, encoder_weights="none", size=128))
        again.load_state(method.state())
        batch = torch.stack([again.preprocess(image) for image in images[:3]])
        torch.testing.assert_close(again.maps(batch)[0], maps[:3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", [VIT, CNN])
@pytest.mark.parametrize("name", ["own", "consensus", "gaussian", "mutual", "memory", "auto"])
def test_images_of_one_colour(network: str, name: str) -> None:
    flat = [np.full((40, 30, 3), value, np.uint8) for value in (0, 0, 90, 90, 128, 255, 255, 255)]
    pictures = [sample.image for sample in samples()[:8]]
    for images in (flat, [*flat, *pictures]):
        _, maps = run(name, network, images, [*flat[::3], pictures[0]], size=64)
        assert maps.isfinite().all()


@pytest.mark.parametrize("name", ["own", "auto", "consensus"])
def test_images_of_one_colour_have_flat_maps_and_no_boxes(name: str, tmp_path: Path) -> None:
    for number in range(20):
        shade = (10 * number,) * 3
        Image.new("RGB", (40 + number % 3, 30), shade).save(tmp_path / f"{number}.png")
    made_by: dict[str, Any] = {"method": name, "encoder": VIT, "encoder_weights": "none", "size": 64}
    out = str(tmp_path.parent / f"{tmp_path.name}-maps")
    settings = MapSettings(data=(str(tmp_path),), out=out, device="cpu", threads=1, **made_by)
    outcome = make_maps(settings)
    assert outcome.store is not None and not outcome.store.maps.any() and not outcome.store.scores.any()
    assert not sum(len(record.boxes) for record in pseudo_boxes(outcome.store, outcome.images).images)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, sample in enumerate(samples()[:10]):
        folder = tmp_path / "data" / ("normal" if number % 3 else "images")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(folder / f"{number}.png")
    words = ["anomaly-maps", str(tmp_path / "data" / "images"), "--encoder", VIT, "--encoder-weights", "none"]
    words += ["--size", "64", "--device", "cpu", "--threads", "1", "--batch", "3", "--out"]
    memory = [*words, str(tmp_path / "memory"), "--method", "memory", "--normal", str(tmp_path / "data" / "normal")]
    assert main([*memory, "--shots", "2"]) == 0
    store = MapStore.open(tmp_path / "memory")
    assert store.settings["normal"]["images"] == 2 and store.settings["shots"] == 2 and store.grid == (4, 4)
    assert store.settings["encoder"] == VIT and store.settings["layers"] == [6, 9]
    from safetensors.torch import load_file

    learnt = load_file(tmp_path / "memory" / "method.safetensors")
    assert {name: tuple(bank.shape) for name, bank in learnt.items()} == {  # k is honoured
        "memory.6": (2 * 16, 192), "memory.9": (2 * 16, 192),
    }  # fmt: skip
    assert main([*memory, "--shots", "3"]) == 1 and "other settings: normal" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none"), "--method", "memory"]) == 2
    assert "--method memory needs normal images" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "half"), "--method", "own+gaussian", "--precision", "bf16"]) == 0
    half = MapStore.open(tmp_path / "half")
    assert half.settings["parts"][0]["precision"] == "bf16" and np.isfinite(half.maps).all()
    wrong = [(("--layers", "13"), "vit_tiny_patch16_224 has layers 1 to 12"), (("--size", "70"), "multiples of 16")]
    for more, message in (*wrong, (("--encoder-weights", str(tmp_path / "no.pth")), "there is no such file")):
        assert main([*words, str(tmp_path / "wrong"), "--method", "own", *more]) in (1, 2)
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said and said.count("\n") == 1
