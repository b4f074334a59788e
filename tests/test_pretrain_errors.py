"""What pretraining says when maps, images, settings or recipes are bad, and that recipes are what they should be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pretrain_runs import SMALL, write_maps, write_pool
from training_runs import state

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from agssp_zoo import models  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    AgsspZooError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelNotFoundError,
    TrainingError,
)
from agssp_zoo.training.pretrain.cli import pretrain_backbone  # noqa: E402
from agssp_zoo.training.pretrain.pool import read_pool  # noqa: E402
from agssp_zoo.training.pretrain.recipes import list_recipes, load_recipe, with_recipe  # noqa: E402
from agssp_zoo.training.pretrain.settings import PretrainSettings  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("drawn")
    write_pool(folder / "pool", 3)
    write_maps(folder / "pool", folder / "maps")
    write_pool(folder / "other", 3, size=128)
    write_maps(folder / "other", folder / "other_maps")
    write_pool(folder / "one", 1, names=("steel",))
    write_maps(folder / "one", folder / "one_maps")
    write_pool(folder / "single", 4, names=("steel",))
    write_maps(folder / "single", folder / "single_maps")
    write_pool(folder / "more", 4)
    (folder / "half_maps").mkdir()
    (folder / "half_maps" / "maps.npy").write_bytes(b"\x93NUMPY")
    (folder / "bad.toml").write_text('about = "x"\n[settings]\nmodle = "resnet50"\n')
    (folder / "place.toml").write_text('about = "x"\n[settings]\nout = "runs/x"\n')
    (folder / "range.toml").write_text('about = "x"\n[settings]\nepochs = 0\n')
    (folder / "text.toml").write_text("about = \n")
    return {"folder": folder, "images": str(folder / "pool"), "maps": str(folder / "maps")}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"maps": "other_maps"}, DataError, "pixels when its map was made, now .* the maps are of other images"),
        ({"images": "more"}, DataError, r"has no maps of 2 of 8 images: .*steel/3"),
        ({"maps": "half_maps"}, DataError, "holds unfinished maps; run the same"),
        ({"maps": "pool"}, DataError, "is not a store of anomaly maps"),
        ({"maps": ""}, TrainingError, "--maps; make them with: agssp-zoo anomaly-maps"),
        ({"images": ()}, TrainingError, "give the folder of images with --images"),
        ({"images": "nowhere"}, DataError, "nowhere"),
        ({"images": "one", "maps": "one_maps"}, TrainingError, "1 image to learn from; a pool needs two"),
        ({"images": "single", "maps": "single_maps"}, TrainingError, r"the same \('single'\); give --images several"),
        ({"freeze": 4}, TrainingError, r"--freeze 4: cspdarknet_n has 4 stages \(1 stage1, .*4 stage4\)"),
        ({"freeze": 3}, TrainingError, "--taps 3: with --freeze 3 this stage cannot learn"),
        ({"freeze": 2}, TrainingError, "--freeze 2: 2 stages of cspdarknet_n are frozen, so they need .*: --freeze 0"),
        ({"recipe": "resnet50_cpu"}, TrainingError, "--recipe resnet50_cpu: 2 stages of resnet50 .* give --weights"),
        ({"taps": (5,)}, TrainingError, "--taps 5: cspdarknet_n has 4 stages"),
        ({"taps": (4, 3)}, TrainingError, "--taps is 4 3; give each stage once"),
        ({"taps": (0, 3)}, TrainingError, "stages are numbered from 1"),
        ({"size": 80, "resize": 80}, TrainingError, "--size 80: cspdarknet_n needs a multiple of 32"),
        ({"hue": 0.6}, TrainingError, "--hue is 0.6; it is in turns of the colour circle .* 0-0.5"),
        ({"size": 96}, TrainingError, "--resize is 64; times --scale-min it gives 64, less than --size"),
        ({"task": "none", "map_weight": 0.0}, TrainingError, "nothing would be learned"),
        ({"schedule": "step"}, TrainingError, "--milestones is ; schedule step needs some"),
        ({"task": "simmim", "mask_patch": 16}, TrainingError, "--mask-patch 16 must be a multiple of .* stride 32"),
        (
            {"task": "simmim", "size": 48, "mask_patch": 32},
            TrainingError,
            "--size 48: cspdarknet_n needs a multiple",
        ),
        ({"drop_path": 0.1}, TrainingError, "--drop-path 0.1: cspdarknet_n leaves out no residual branches"),
        ({"checkpointing": True}, TrainingError, "--checkpointing: cspdarknet_n cannot compute its blocks"),
        ({"model": "yolov8_n"}, TrainingError, r"is a detector; give the name of its backbone \(cspdarknet_n\)"),
        ({"model": "resnet51"}, ModelNotFoundError, "did you mean 'resnet50'"),
        ({"weights": "no/such"}, ModelNotFoundError, "no/such"),
        ({"weights": "no.safetensors"}, TrainingError, "there is no such file"),
        ({"options": ("v1_strides=true",)}, TrainingError, "options of cspdarknet_n, with defaults: none"),
        ({"model": "resnet50", "options": ("v1_strides=yes",)}, TrainingError, "with defaults: v1_strides=false"),
        ({"recipe": "cspdarknet"}, TrainingError, "no such recipe; did you mean 'cspdarknet_cpu'"),
        ({"recipe": "bad.toml"}, ConfigError, "bad.toml: settings: unknown key 'modle'; did you mean 'model'"),
        ({"recipe": "place.toml"}, ConfigError, "out belongs on the command line"),
        ({"recipe": "range.toml"}, ConfigError, "--epochs is 0; it must be at least 1"),
        ({"recipe": "text.toml"}, ConfigError, "not valid TOML"),
        ({"out": "/dev/null/run"}, TrainingError, "cannot be written"),
        ({"exclude": "bad.toml"}, DataError, "Every line has to name one image"),
    ],
)
def test_a_run_that_cannot_start_says_why(
    values: dict[str, Any], error: type[AgsspZooError], message: str, drawn: dict[str, Any], tmp_path: Path
) -> None:
    folder = drawn["folder"]
    given: dict[str, Any] = {"images": drawn["images"], "maps": drawn["maps"], "out": str(tmp_path / "run"), **SMALL}
    for name, value in values.items():
        is_path = name in ("images", "maps", "exclude") or (name == "recipe" and value.endswith(".toml"))
        given[name] = str(folder / value) if is_path and value else value
    with pytest.raises(error, match=message):
        pretrain_backbone(**given)
    assert not (tmp_path / "run").exists()


def test_images_without_maps_can_be_tolerated(drawn: dict[str, Any], tmp_path: Path) -> None:
    """Images that could not be read when the maps were made have none."""
    from agssp_zoo.training.anomaly.store import MapStore

    store = tmp_path / "maps"
    shutil.copytree(drawn["maps"], store)
    values = json.loads((store / "store.json").read_text())
    keys = json.loads((store / values["files"]["keys"]).read_text())
    lost = keys["keys"][0]
    keys["keys"][0] = "nothing"
    values["unreadable"] = [lost]
    (store / "store.json").write_text(json.dumps(values))
    (store / values["files"]["keys"]).write_text(json.dumps(keys))
    assert lost not in MapStore.open(store)
    given = {**SMALL, "images": drawn["images"], "maps": str(store), "epochs": 1}
    with pytest.raises(DataError, match=f"1 of 6 images have no map.*{lost}"):
        pretrain_backbone(out=str(tmp_path / "run"), **given)
    assert pretrain_backbone(out=str(tmp_path / "run"), **given, tolerance=0.2).finished
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["images"] == 5


def test_resuming_with_other_settings_maps_or_images_is_refused(drawn: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(drawn["images"], folder / "pool")
    shutil.copytree(drawn["maps"], folder / "maps")
    run = str(tmp_path / "run")
    settings = {**SMALL, "images": str(folder / "pool"), "maps": str(folder / "maps"), "out": run}
    with pytest.raises(TrainingError, match="holds no run to resume"):
        pretrain_backbone(out=run, resume=True)
    assert not pretrain_backbone(**settings, time_limit=1e-3).finished
    kept = state(tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already; add --resume"):
        pretrain_backbone(**settings)
    changed = r"other settings: --batch 2 \(was 4\), --taps \(4,\) \(was \(3, 4\)\); leave"
    with pytest.raises(TrainingError, match=changed):
        pretrain_backbone(**{**settings, "batch": 2, "taps": (4,)}, resume=True)
    with pytest.raises(TrainingError, match=r"--weights auto \(was none\)"):
        pretrain_backbone(**{**settings, "weights": "auto", "precision": "auto"}, resume=True)
    write_maps(folder / "pool", folder / "flat", value=0.5)
    with pytest.raises(TrainingError, match="images or their anomaly maps have changed"):
        pretrain_backbone(out=run, resume=True, maps=str(folder / "flat"))
    assert state(tmp_path / "run") == kept
    # The same data in another place will do.
    folder.rename(tmp_path / "moved")
    moved = {"images": str(tmp_path / "moved" / "pool"), "maps": str(tmp_path / "moved" / "maps")}
    assert pretrain_backbone(out=run, resume=True, **moved, time_limit=0.0).finished


@pytest.mark.parametrize("cache_mb", [64, 0])
def test_a_corrupt_image_stops_the_run_or_is_left_out(cache_mb: int, drawn: dict[str, Any], tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 3)
    write_maps(pool, tmp_path / "maps")
    file = pool / "steel" / "1.png"
    whole = file.read_bytes()
    # Of the same length, so that only decoding finds out.
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    settings = {**SMALL, "images": str(pool), "maps": str(tmp_path / "maps"), "cache_mb": cache_mb, "epochs": 1}
    with pytest.raises(TrainingError, match=r"1 images cannot be read.*tolerated 0 of 6.*steel/1\.png"):
        pretrain_backbone(out=str(tmp_path / "run"), **settings)
    assert pretrain_backbone(out=str(tmp_path / "run"), resume=True, tolerance=0.2).finished, "as the message says"
    assert pretrain_backbone(out=str(tmp_path / "tolerant"), **settings, tolerance=0.2).finished


def test_unreadable_images_count_as_when_the_maps_were_made(tmp_path: Path) -> None:
    """As a share of all files, those that cannot even be listed and those found later together."""
    pool = write_pool(tmp_path / "pool", 5)
    write_maps(pool, tmp_path / "maps")
    for name in ("steel/1.png", "tile/2.png"):
        (pool / name).write_bytes(b"no image")
    settings = {**SMALL, "images": (str(pool),), "maps": str(tmp_path / "maps"), "tolerance": 0.2}
    assert len(read_pool(PretrainSettings(**settings))) == 8
    with pytest.raises(DataError, match=r"2 errors in 10 images, more than the tolerance of 19\.00%"):
        read_pool(PretrainSettings(**{**settings, "tolerance": 0.19}))
    values = json.loads((tmp_path / "maps" / "store.json").read_text())
    keys = json.loads((tmp_path / "maps" / values["files"]["keys"]).read_text())
    keys["keys"][keys["keys"].index("tile/4")] = "nothing"
    (tmp_path / "maps" / "store.json").write_text(json.dumps({**values, "unreadable": ["tile/4"]}))
    (tmp_path / "maps" / values["files"]["keys"]).write_text(json.dumps(keys))
    with pytest.raises(DataError, match=r"1 of 10 images have no map.*\(?tile/4\)?, and 2 cannot be read now"):
        read_pool(PretrainSettings(**settings))
    assert len(read_pool(PretrainSettings(**{**settings, "tolerance": 0.3}))) == 7


def test_flat_maps_and_gray_pictures_give_numbers(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for name in ("a", "b"):
        (pool / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (64, 64), 128).save(pool / name / f"{i}.png")
    for value in (0.0, 0.5):
        maps = write_maps(pool, tmp_path / f"maps{value}", value=value, bounded=value > 0)
        run = tmp_path / f"run{value}"
        outcome = pretrain_backbone(images=str(pool), maps=str(maps), out=str(run), **{**SMALL, "pictures": 2})
        assert outcome.finished and (run / "activations.png").is_file()


def test_a_loss_that_is_no_number_stops_the_run(drawn: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, "images": drawn["images"], "maps": drawn["maps"], "lr": 1e30, "warmup": 0.0, "epochs": 3}
    with pytest.raises(TrainingError, match=r"(is not a number \(stage3_loss|hold values that are no numbers)"):
        pretrain_backbone(out=str(tmp_path / "run"), **settings)


def test_weights_of_another_architecture_or_without_their_strides(tmp_path: Path, drawn: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    from agssp_zoo.folder import write_folder
    from agssp_zoo.training.pretrain.start import build_backbone

    def settings(**values: Any) -> PretrainSettings:
        return PretrainSettings(images=("x",), maps="y", **values)

    config = models.default_config("cspdarknet_n")
    module = models.build(config)
    folder = write_folder(
        tmp_path / "m", config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}
    )
    with pytest.raises(TrainingError, match="is a cspdarknet_n, not a cspdarknet_s"):
        build_backbone(settings(model="cspdarknet_s", weights=str(folder)))
    taken = build_backbone(settings(weights=str(folder)))
    assert torch.equal(taken.module.stem.conv.weight, module.stem.conv.weight)  # type: ignore[union-attr]
    other = build_backbone(settings(weights=str(folder), pixels="paper"))  # rewritten for these pixels
    assert float(other.module.pixel_mean[0, 0]) == pytest.approx(110.2955)
    red = other.module.stem.conv.weight[:, 0] / module.stem.conv.weight[:, 0]  # type: ignore[union-attr]
    torch.testing.assert_close(red, torch.full_like(red, 32.028 / 58.395))
    assert all(parameter.requires_grad for parameter in taken.module.parameters())

    v1 = models.default_config("resnet50", options={"v1_strides": True})
    file = tmp_path / "plain.safetensors"
    models.save_weights(models.build(v1), tmp_path / "full.safetensors", v1)
    save_file(load_file(tmp_path / "full.safetensors"), file)  # without what it says of itself
    with pytest.raises(CheckpointError, match=r"does not say with which v1_strides.*--options"):
        build_backbone(settings(model="resnet50", weights=str(file)))
    named = build_backbone(settings(model="resnet50", weights=str(file), options=("v1_strides=true",)))
    assert named.module.config.options == {"v1_strides": True} and named.source == "plain.safetensors"
    assert named.module.layer2[0].conv1.stride == (2, 2)  # type: ignore[union-attr,index]


@pytest.mark.skipif(not (SHARED / "weights" / "resnet50_imagenet.safetensors").is_file(), reason="needs ../shared")
def test_imagenet_weights_can_be_started_from() -> None:
    from agssp_zoo.training.pretrain.start import build_backbone

    file = SHARED / "weights" / "resnet50_imagenet.safetensors"
    values = {"model": "resnet50", "weights": str(file), "options": ("v1_strides=true",)}
    start = build_backbone(PretrainSettings(images=("x",), maps="y", **values))  # type: ignore[arg-type]
    assert start.module.config.preprocess.mean == (123.675, 116.28, 103.53)
    assert start.module.conv1.weight.dtype == torch.float32  # type: ignore[union-attr]
    start.module.eval()
    with torch.no_grad():
        maps = start.module(torch.randn(1, 3, 64, 64))
    assert all(torch.isfinite(m).all() for m in maps)


def test_every_recipe_is_whole_and_says_what_it_is() -> None:
    names = list_recipes()
    assert {"agbp_cspdarknet_s", "agbp_resnet50", "agbp_swin_b", "agbp_swin_b_simmim", "cspdarknet_cpu"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert len(recipe.about.strip()) > 80, name
        PretrainSettings(**recipe.settings)


def test_the_paper_s_recipes_are_the_reference_s() -> None:
    """The table of the reference's section 2."""
    cnn = ("cosine", (3, 4), 2, 1.0, "cls", 0.1, "sgd", 0.01, 1e-4, 1024, 200, (60, 90, 180), 0, 224)
    expected = {
        "agbp_cspdarknet_s": cnn,
        "agbp_resnet50": cnn,
        "agbp_swin_b": ("l2", (4,), 1, 2.0, "cls", 0.0, "adamw", 6.25e-4, 0.05, 640, 200, (), 20, 224),
        "agbp_swin_b_simmim": ("l2", (4,), 1, 2.0, "simmim", 1.0, "adamw", 8.75e-5, 0.05, 448, 200, (80,), 10, 192),
    }
    for name, values in expected.items():
        s = PretrainSettings(**load_recipe(name).settings)
        found = (
            *(s.form, s.taps, s.freeze, s.map_weight, s.task, s.task_weight, s.optimizer, s.lr, s.weight_decay),
            *(s.batch, s.epochs, s.milestones, s.warmup, s.size),
        )
        assert found == values, name
        assert s.pixels == "paper" and s.seed == 2024 and not s.nesterov and s.resizing == "cumulative"


def test_what_is_given_comes_before_the_recipe() -> None:
    merged = with_recipe({"recipe": "cspdarknet_cpu", "epochs": 7, "model": "cspdarknet_s"})
    assert merged["epochs"] == 7 and merged["model"] == "cspdarknet_s" and merged["pixels"] == "unit"
    assert with_recipe({"epochs": 7}) == {"epochs": 7}


def test_the_command_line_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from agssp_zoo.cli import main

    assert main(["pretrain-backbone", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--taps", "--recipe", "--milestones", "--no-channels-last", "--resume", "--exclude"):
        assert flag in text
    assert re.search(r"--taps INT \[INT ...\]", text) and "default: 3 4" in " ".join(text.split())
