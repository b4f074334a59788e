"""Pretraining runs: they learn, leave a model, stop, and go on with the same result."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrain_runs import SMALL, write_maps, write_pool
from training_runs import environment, python, rows, state, wait_for_step

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

import agssp_zoo  # noqa: E402
from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.folder import ModelFolder, sha256_file, write_folder  # noqa: E402
from agssp_zoo.training.pretrain.cli import pretrain_backbone  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.transfer import build_start  # noqa: E402

WORDS = ["-m", "agssp_zoo.training.pretrain.cli"]


@dataclass(frozen=True)
class Drawn:
    pool: Path
    maps: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {**SMALL, "images": str(self.pool), "maps": str(self.maps)}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("drawn")
    return Drawn(write_pool(folder / "pool"), write_maps(folder / "pool", folder / "maps"))


def command(**values: object) -> list[str]:
    words = list(WORDS)
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded


def random_model(folder: Path, architecture: str = "cspdarknet_n", **config: Any) -> Path:
    made = models.default_config(architecture).replace(**config)
    torch.manual_seed(11)
    module = models.build(made)
    return write_folder(folder, made, {"model.safetensors": lambda path: models.save_weights(module, path, made)})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("many")
    return Drawn(write_pool(folder / "pool", 24), write_maps(folder / "pool", folder / "maps"))


@pytest.fixture(scope="module")
def learned(many: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "learned"
    more = {"epochs": 14, "plots": True, "pictures": 3, "license": "apache-2.0", "scale_max": 1.0, "pixels": "unit"}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = pretrain_backbone(out=str(run), **{**many.settings, **more}, contrast=0.1, brightness=0.1)
    assert outcome.finished and outcome.epochs == 14
    assert "48 images (steel 24, tile 24), anomaly maps drawn (8, 8)" in said.getvalue()
    return run


@pytest.mark.slow
def test_activations_come_to_lie_where_the_anomalies_are(many: Drawn, learned: Path) -> None:
    history = rows(learned)
    for name in ("stage3_loss", "stage4_loss"):
        losses = [float(row[name]) for row in history]
        assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:3]), name
    first = history[0]
    parts = sum(float(first[name]) for name in ("stage3_loss", "stage4_loss", "task_loss"))
    assert float(first["loss"]) == pytest.approx(parts, rel=1e-4)
    # What is seen in the saved model, in the pictures' figures and by hand is the same.
    from agssp_zoo.training.anomaly.store import MapStore
    from agssp_zoo.training.pretrain.activation import resize_maps, squared_activation

    backbone = agssp_zoo.load_backbone(learned / "last", out_indices=(2, 3))
    untrained = agssp_zoo.load_backbone("cspdarknet_n", weights=False, out_indices=(2, 3))
    store = MapStore.open(many.maps)
    agreement = {}
    for name, module in (("trained", backbone), ("untrained", untrained)):
        module.eval()
        found = []
        for key in store.keys:
            with torch.no_grad():
                maps = [squared_activation(m) for m in module(backbone.preprocess(many.pool / f"{key}.png"))]
            targets = resize_maps(torch.tensor(store.map(key))[None, None], [m.shape[-2:] for m in maps])
            found += [
                float(torch.cosine_similarity(m.flatten(), t.flatten(), dim=0))
                for m, t in zip(maps, targets, strict=True)
            ]
        agreement[name] = np.mean(found)
    assert agreement["trained"] > 0.7 > agreement["untrained"] + 0.1, agreement


@pytest.mark.slow
def test_the_model_says_where_it_comes_from(many: Drawn, learned: Path) -> None:
    assert {"metrics.csv", "config.json", "last", "loss.png", "activations.png", "activations.npz", "state"} <= {
        path.name for path in learned.iterdir()
    }
    config = ModelConfig.load(learned / "last")
    assert config.name == "cspdarknet_n.agbp" and config.task == "backbone"
    assert config.preprocess.mean == (0, 0, 0) and config.preprocess.size == (64, 64)
    origin = config.provenance
    assert origin["datasets"] == ["steel", "tile"] and origin["license"] == "apache-2.0"
    assert origin["pretrained_on"]["images_by_source"] == {"steel": 24, "tile": 24}
    assert origin["anomaly_maps"]["settings"]["method"] == "drawn" and origin["epoch"] == 14
    assert "--images pool --maps maps" in origin["command"]
    assert str(many.pool.parent) not in json.dumps(origin)
    folder = ModelFolder.open(learned / "last")
    for name in folder.names:
        folder.file(name)  # checked against its checksum
    record = json.loads((learned / "config.json").read_text())
    assert record["data"]["class_names"] == ["steel", "tile"] and record["settings"]["taps"] == [3, 4]


@pytest.mark.slow
def test_the_model_starts_a_detector(learned: Path) -> None:
    start = build_start(TrainSettings(data="x", weights="none", backbone_weights=str(learned / "last")), ("a", "b"))
    own, source = start.module.backbone.state_dict(), tensors(learned / "last")
    assert all(torch.equal(own[name], value) for name, value in source.items())
    assert start.loaded == len(source) and start.source == "cspdarknet_n.agbp"


@pytest.mark.slow
def test_killed_and_terminated_run_ends_with_the_same_weights(drawn: Drawn, tmp_path: Path) -> None:
    settings = {
        **drawn.settings, "save_every": 1, "accumulate": 2, "epochs": 4, "workers": 1, "ema_decay": 0.9,
        "ema_ramp": 3.0, "sampling": "balanced",
    }  # fmt: skip
    pretrain_backbone(out=str(tmp_path / "whole"), **settings)
    broken = tmp_path / "broken"
    words = python(*command(out=broken, **settings))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen(words, **options, start_new_session=True) as process:
        wait_for_step(broken, 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    killed_at = state(broken)["step"]
    with subprocess.Popen([*words, "--resume"], **options, start_new_session=True) as process:
        wait_for_step(broken, killed_at + 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "SIGTERM" in out and "pretrain-backbone" in out and "--resume" in out
    assert state(broken)["step"] < 12
    assert pretrain_backbone(out=str(broken), resume=True).finished
    one, two = (sha256_file(run / "last" / "model.safetensors") for run in (broken, tmp_path / "whole"))
    assert one == two
    timed = ("train_seconds", "data_wait_seconds", "images_per_second")
    first, second = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows(run)] for run in (broken, tmp_path / "whole")
    )
    assert first == second and len(first) == 4
    assert not list(broken.glob(".*"))


def test_workers_and_caches_do_not_change_the_result(drawn: Drawn, tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("workers", {"workers": 2, "cache_mb": 0})):
        pretrain_backbone(out=str(tmp_path / name), **{**drawn.settings, "epochs": 1, **more})
    one, two = (sha256_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "workers"))
    assert one == two


def test_pictures_show_images_in_their_proportions(drawn: Drawn, tmp_path: Path) -> None:
    shapes = {}
    for aspect in ("keep", "square"):
        run = tmp_path / aspect
        pretrain_backbone(
            out=str(run), **{**drawn.settings, "epochs": 1, "pictures": 2, "size": 128, "resize": 128, "aspect": aspect}
        )
        assert (run / "activations.png").stat().st_size > 10_000
        with np.load(run / "activations.npz") as stored:
            shapes[aspect] = {name: stored[name].shape for name in stored.files}
    # 64 x 64 and 64 x 128 images; the stages' strides are 16 and 32.
    long = {"stage3.1": (6, 12), "stage4.1": (3, 6)}
    assert shapes["keep"] == {"stage3.0": (8, 8), "stage4.0": (4, 4), **long}
    assert shapes["square"] == {f"stage{n}.{row}": (side, side) for n, side in ((3, 8), (4, 4)) for row in (0, 1)}


def test_pictures_of_another_number_when_a_run_goes_on(drawn: Drawn, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {**drawn.settings, "out": str(run), "pictures": 2}
    assert not pretrain_backbone(**settings, time_limit=1e-3).finished
    with np.load(run / "activations.npz") as stored:
        before = {name: stored[name] for name in stored.files}
    assert pretrain_backbone(out=str(run), resume=True, pictures=4, time_limit=0.0).finished
    with np.load(run / "activations.npz") as stored:
        assert len(stored.files) == 2 * len(before)
        for name, values in before.items():
            np.testing.assert_array_equal(stored[name], values)


def test_pictures_of_files_with_unusual_names(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pool = write_pool(tmp_path / "pool", 2)
    for number, name in enumerate(("p$_{x$-y", "\u30c6")):
        (pool / "steel" / f"{number}.png").rename(pool / "steel" / f"{name}.png")
    maps = write_maps(pool, tmp_path / "maps")
    run = tmp_path / "run"
    pretrain_backbone(images=str(pool), maps=str(maps), out=str(run), **{**SMALL, "epochs": 1, "pictures": 4})
    assert (run / "activations.png").is_file()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_activations_of_a_run_that_never_saved_a_state_are_measured_anew(drawn: Drawn, tmp_path: Path) -> None:
    settings = {**drawn.settings, "epochs": 1, "pictures": 2}
    pretrain_backbone(out=str(tmp_path / "one"), **settings, seed=1)
    pretrain_backbone(out=str(tmp_path / "other"), **settings, seed=2)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(tmp_path / "other" / "activations.npz", again)
    pretrain_backbone(out=str(again), **settings, seed=1)
    with np.load(tmp_path / "one" / "activations.npz") as wanted, np.load(again / "activations.npz") as found:
        for name in wanted.files:
            np.testing.assert_array_equal(found[name], wanted[name])


def test_frozen_stages_keep_weights_and_statistics(drawn: Drawn, tmp_path: Path) -> None:
    start = random_model(tmp_path / "start")
    settings = {**drawn.settings, "weights": str(start), "freeze": 2, "epochs": 1, "ema_decay": 0.5}
    pretrain_backbone(out=str(tmp_path / "run"), **settings)
    before, after = tensors(start), tensors(tmp_path / "run" / "last")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("stem", "stage1.", "stage2."))}
    assert len(frozen) > 20 and any("running_mean" in name for name in frozen) and not changed & frozen
    rest = before.keys() - frozen
    assert changed == rest and any("running_mean" in name for name in rest)
    origin = ModelConfig.load(tmp_path / "run" / "last").provenance
    assert origin["start"]["source"] == "cspdarknet_n.scratch"
    assert str(tmp_path) not in json.dumps(origin) and origin["settings"]["weights"] == "start"


def test_frozen_stages_run_without_autograd() -> None:
    from agssp_zoo.models import Backbone
    from agssp_zoo.training.pretrain.stages import StageRunner

    backbone = models.build(models.default_config("cspdarknet_n"))
    assert isinstance(backbone, Backbone)
    backbone.freeze_stages(2)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)  # would make autograd follow if it could
    maps = StageRunner(backbone, 4)(images)
    assert [m.requires_grad for m in maps] == [False, False, True, True]
    torch.testing.assert_close(maps[3], backbone(images)[2])  # the same answers, in training mode too


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("none", {"taps": (2, 3), "resizing": "direct", "form": "l2", "map_weight": 2.0, "channels_last": False}),
        ("cls", {"labels": "folder", "label_smoothing": 0.1, "precision": "bf16", "map_power": 2.0}),
        ("simmim", {"task_weight": 1.0, "mask_ratio": 0.5, "optimizer": "sgd", "nesterov": True, "freeze": 1}),
        ("mocov3", {"task_weight": 1.0, "schedule": "step", "milestones": (1,), "ema_decay": 0.9, "freeze": 1}),
    ],
)
def test_every_task_trains(task: str, more: dict[str, Any], drawn: Drawn, tmp_path: Path) -> None:
    start = random_model(tmp_path / "start")
    settings = {**drawn.settings, "weights": str(start), "task": task, "clip_norm": 5.0, **more}
    run = tmp_path / "run"
    assert pretrain_backbone(out=str(run), **settings).finished
    history = rows(run)
    assert len(history) == 2 and all(np.isfinite(float(row["loss"])) for row in history)
    assert (float(history[0]["task_loss"]) > 0) == (task != "none")
    before, after = tensors(start), tensors(run / "last")
    assert set(after) == set(before)  # the backbone and nothing else
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    expected = {"stem", "stage1", "stage2", "stage3", "stage4"}
    if task == "none":
        expected -= {"stage4"}  # nothing asks for it
    if more.get("freeze"):
        expected -= {"stem", "stage1"}
    assert changed == expected


@pytest.mark.parametrize("task", ["cls", "simmim", "mocov3"])
def test_a_task_of_weight_0_is_as_none(task: str, drawn: Drawn, tmp_path: Path) -> None:
    settings = {**drawn.settings, "taps": (2, 3), "epochs": 1}
    pretrain_backbone(out=str(tmp_path / "none"), **settings, task="none")
    pretrain_backbone(out=str(tmp_path / task), **settings, task=task, task_weight=0.0)
    one, two = (sha256_file(tmp_path / name / "last" / "model.safetensors") for name in ("none", task))
    assert one == two


def test_shards_train_to_the_same_weights(drawn: Drawn, tmp_path: Path) -> None:
    from agssp_zoo.training.data import pack, read_dataset

    dataset = read_dataset(drawn.pool, format="images")
    shards = pack(dataset, tmp_path / "shards")
    for name, source in (("folder", drawn.pool), ("shards", shards)):
        pretrain_backbone(out=str(tmp_path / name), **{**drawn.settings, "images": str(source), "epochs": 1})
    one, two = (sha256_file(tmp_path / name / "last" / "model.safetensors") for name in ("folder", "shards"))
    assert one == two


def test_time_limit_and_json(drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from agssp_zoo.cli import main

    words = command(out=tmp_path / "run", **drawn.settings)[2:]
    assert main(["pretrain-backbone", *words, "--time-limit", "0.001", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["finished"], answer["reason"], answer["epochs"]) == (False, "time limit", 0)
    assert pretrain_backbone(out=str(tmp_path / "run"), resume=True, time_limit=0.0).finished
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2"]
