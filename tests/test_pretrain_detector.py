"""Stage 2: a detector learns pseudo-boxes, its backbone stays as it is, and fine-tuning takes over what it learned."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrain_runs import write_maps
from training_runs import SMALL, environment, python, rows, state, step_losses, wait_for_step, write_data

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("scipy")

from detector_runs import Drawn, tensors, write_drawn  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.folder import ModelFolder, sha256_file  # noqa: E402
from agssp_zoo.training.anomaly.boxes import BoxSettings, pseudo_boxes  # noqa: E402
from agssp_zoo.training.anomaly.store import MapStore  # noqa: E402
from agssp_zoo.training.data import read_dataset, read_images  # noqa: E402
from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.losses import DetectionLoss, Targets  # noqa: E402
from agssp_zoo.training.pretrain.stage2 import read_boxes  # noqa: E402
from agssp_zoo.training.pretrain.stage2_cli import pretrain_detector  # noqa: E402
from agssp_zoo.training.pretrain.stage2_settings import DetectorSettings  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.transfer import build_start  # noqa: E402

LAST_CLASS_LAYERS = tuple(f"head.cls_branches.{level}.2." for level in range(3))


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return write_drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def learned(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "learned"
    more = {
        "epochs": 30, "val_every": 30, "batch": 6, "optimizer": "adamw", "lr": 0.004, "warmup": 0.5, "ema_ramp": 10.0,
        "mosaic": 0.0, "translate": 0.05, "scale": 0.1, "license": "apache-2.0",
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = pretrain_detector(out=str(run), **{**drawn.settings, **more})
    assert outcome.finished and outcome.epochs == 30
    text = said.getvalue()
    assert "4 of 4 stages of the backbone frozen" in text and "not with labels" in text
    assert re.search(r"steel: threshold 0\.\d+; \d of 8 images have boxes", text)
    return run


def test_the_backbone_stays_and_the_rest_learns(drawn: Drawn, learned: Path) -> None:
    before = {f"backbone.{name}": value for name, value in tensors(drawn.folder / "backbone").items()}
    # The detector takes pixels in 0-1, so the first layer is rewritten; all else of the backbone is as it was given.
    rewritten = {"backbone.stem.conv.weight", "backbone.stem.bn.running_mean"}
    assert rewritten < before.keys()
    started = build_start(DetectorSettings(backbone_weights=str(drawn.folder / "backbone")), ("anomaly",)).module
    first = started.state_dict()
    for name in ("best", "last"):
        after = tensors(learned / name)
        assert all(torch.equal(after[key], value) for key, value in before.items() if key not in rewritten)
        same = {key for key in after if torch.equal(after[key], first[key])}
        assert before.keys() <= same
        # No box here is large enough for the coarsest level, so its box branch has nothing to learn from.
        learned_nothing = [key for key in same - before.keys() if not key.startswith("head.box_branches.2.")]
        assert not [key for key in learned_nothing if after[key].is_floating_point()] and len(after) > len(same) + 100
    losses = [float(row["loss"]) for row in rows(learned)]
    highest = max(np.convolve(losses[:15], np.ones(3) / 3, "valid"))  # low at first, as long as no box is recognised
    assert np.mean(losses[-4:]) < 0.85 * highest, losses
    assert float(rows(learned)[-1]["map50"]) > 0.005  # on images it has not seen; chance finds none


def test_the_model_says_where_it_comes_from(drawn: Drawn, learned: Path) -> None:
    config = ModelConfig.load(learned / "best")
    assert (config.name, config.architecture, config.task) == ("yolov8_n.agssp", "yolov8_n", "detector")
    assert config.class_names == ("anomaly",)
    origin = config.provenance
    assert origin["datasets"] == ["steel", "tile"] and origin["license"] == "apache-2.0"
    assert origin["anomaly_maps"]["settings"]["method"] == "drawn"
    assert origin["pseudo_boxes"]["thresholds"].keys() == {"steel", "tile"}
    assert origin["start"]["provenance"]["cspdarknet_n.agbp"]["license"] == "apache-2.0"
    assert origin["commands"][0] == "agssp-zoo pretrain-backbone ..."
    assert "--images pool" in origin["commands"][1] and "--backbone-weights cspdarknet_n.agbp" in origin["commands"][1]
    assert "not with labels" in origin["metrics_measured_on"] and origin["metrics"].keys() >= {"map50"}
    assert str(drawn.folder) not in json.dumps(origin)
    folder = ModelFolder.open(learned / "best")
    for name in folder.names:
        folder.file(name)  # checked against its checksum
    assert "anomaly_maps" in (learned / "best" / "README.md").read_text()


def test_a_model_folder_to_start_from_is_named_without_its_path(drawn: Drawn, learned: Path, tmp_path: Path) -> None:
    settings = {**drawn.settings, "model": str(learned / "best"), "weights": "auto", "epochs": 1}
    pretrain_detector(out=str(tmp_path / "run"), **settings)
    origin = ModelConfig.load(tmp_path / "run" / "last").provenance
    assert origin["settings"]["model"] == "best" and "--model best" in origin["commands"][-1]
    assert str(learned) not in json.dumps(origin)


def test_the_boxes_are_those_of_the_rule(drawn: Drawn, learned: Path) -> None:
    images = read_images(drawn.folder / "pool")
    made = pseudo_boxes(MapStore.open(drawn.folder / "maps"), images, BoxSettings(margin=0.4))
    kept = read_dataset(learned / "boxes").require_clean()
    assert kept.class_names == ("anomaly",) and set(kept.splits) == {"train", "val"} and kept.splits["val"] == 4
    by_path = {record.path: record.boxes for record in made.images}
    assert len(kept) == len(by_path) == 16
    for record in kept:
        np.testing.assert_allclose(np.sort(record.boxes, 0), np.sort(by_path[record.path], 0), atol=0.01)
    stored = json.loads((learned / "config.json").read_text())
    assert stored["settings"]["freeze"] == 4 and stored["settings"]["epochs"] == 30
    assert stored["boxes"]["train"] + stored["boxes"]["val"] == sum(len(record.boxes) for record in made.images)


def test_who_is_held_out_and_who_is_left_out(drawn: Drawn) -> None:
    def read(**more: Any) -> Any:
        values = {**drawn.settings, **more}
        return read_boxes(DetectorSettings(**{**values, "images": (values["images"],)}))

    one, again, other = read(), read(), read(seed=5)
    keys = [{record.key for record in pool.val} for pool in (one, again, other)]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 4
    assert not keys[0] & {record.key for record in one.train}
    # With a small margin images with a weaker square have none; they are dropped, or kept as examples of nothing.
    kept, dropped = read(margin=0.05, empty="keep"), read(margin=0.05)
    empty = sum(not len(record.boxes) for record in kept.boxes.images)
    assert 0 < empty < 16
    assert len(kept.train) + len(kept.val) == 16 and len(dropped.train) + len(dropped.val) == 16 - empty
    assert all(len(record.boxes) for record in (*dropped.train, *dropped.val))
    everywhere = read(quantile=0.9, margin=0.1)  # the default, which the quantile replaces
    assert all(len(record.boxes) for record in everywhere.train) and not everywhere.boxes.thresholds


@pytest.mark.parametrize("names", [("pit", "scratch"), ("dent",)])
def test_fine_tuning_takes_all_but_the_classes(names: tuple[str, ...], learned: Path) -> None:
    source = tensors(learned / "best")
    start = build_start(TrainSettings(data="x", model=str(learned / "best")), names)
    own = start.module.state_dict()
    new = {name for name in own if name.startswith(LAST_CLASS_LAYERS)} if len(names) > 1 else set()
    assert set(start.left) == new and start.source == "yolov8_n.agssp"
    assert all(torch.equal(own[name], source[name]) for name in source if name not in new)
    assert all(own[name].shape[0] == len(names) for name in own if name.startswith(LAST_CLASS_LAYERS))
    assert start.provenance["yolov8_n.agssp"]["datasets"] == ["steel", "tile"]
    assert start.module.config.name == "yolov8_n.finetuned" and start.module.config.class_names == names


def test_fine_tuning_thaws_the_backbone(learned: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=4, val=2)
    settings = {**SMALL, "weights": "auto", "epochs": 1, "warmup": 0.0}
    finetune(out=str(tmp_path / "run"), data=str(data), model=str(learned / "best"), **settings)
    before, after = tensors(learned / "best"), tensors(tmp_path / "run" / "last")
    moved = [name for name in after if name.startswith("backbone.") and not torch.equal(before[name], after[name])]
    assert len(moved) > 100
    config = ModelConfig.load(tmp_path / "run" / "last")
    assert config.class_names == ("dark", "bright")
    assert "--model best" in config.provenance["command"] and config.provenance["settings"]["model"] == "best"
    assert str(learned) not in json.dumps(config.provenance)


def test_a_frozen_backbone_costs_its_forward_pass_only() -> None:
    """What autograd keeps for the backward pass: nothing of the backbone."""
    kept: dict[int, int] = {}
    for frozen in (0, 4):
        module = models.build(models.default_config("yolov8_n", class_names=("anomaly",)))
        module.backbone.freeze_stages(frozen).train()
        loss = DetectionLoss(module.strides, 1, 16)
        sizes: list[int] = []

        def count(tensor: torch.Tensor, into: list[int] = sizes) -> torch.Tensor:
            into.append(tensor.nbytes)
            return tensor

        images = module.normalize(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            maps = module.backbone(images)
            of_backbone = sum(sizes)
            raw = module.head(module.neck(maps))
            box = torch.tensor([[[8.0, 8.0, 40.0, 40.0]]] * 2)
            targets = Targets(torch.zeros(2, 1, dtype=torch.int64), box, torch.ones(2, 1).bool())
            loss(raw, targets).total.backward()
        kept[frozen] = sum(sizes)
        assert (of_backbone == 0) == bool(frozen)
        assert [m.requires_grad for m in maps] == [not frozen] * 3
        assert all((p.grad is None) == bool(frozen) for p in module.backbone.parameters())
        assert all(p.grad is not None for p in module.neck.parameters())
    assert kept[4] < 0.6 * kept[0]


def test_thawed_stages_learn(drawn: Drawn, tmp_path: Path) -> None:
    pretrain_detector(out=str(tmp_path / "run"), **{**drawn.settings, "epochs": 1, "thaw": 1})
    start = build_start(DetectorSettings(backbone_weights=str(drawn.folder / "backbone")), ("anomaly",))
    before, after = start.module.state_dict(), tensors(tmp_path / "run" / "last")
    moved = {
        name.split(".")[1]
        for name in after
        if name.startswith("backbone.") and not torch.equal(before[name], after[name])
    }
    assert moved == {"stage4"}


def test_the_authors_rates_are_taken_where_none_is_given() -> None:
    stages = ("a", "b")
    for backbone, given, expected in (
        ("cspdarknet_n", {}, 0.01),
        ("resnet50", {}, 0.0025),
        ("resnet50", {"optimizer": "adamw"}, 0.001),
        ("cspdarknet_s", {"lr": 0.3}, 0.3),
    ):
        settled = DetectorSettings(**given).settled_for("no", backbone, stages)
        assert (settled.lr, settled.freeze) == (expected, 2)
    assert DetectorSettings(thaw=1).settled_for("no", "resnet50", stages).freeze == 1


def test_killed_run_ends_with_the_same_weights(drawn: Drawn, tmp_path: Path) -> None:
    settings = {**drawn.settings, "epochs": 3, "save_every": 1, "ema_ramp": 3.0, "export": False}
    pretrain_detector(out=str(tmp_path / "whole"), **settings)
    broken = tmp_path / "broken"
    words = ["-m", "agssp_zoo.training.pretrain.stage2_cli", "--out", str(broken)]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen(python(*words), **options, start_new_session=True) as process:
        wait_for_step(broken, 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert state(broken)["step"] < 9
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert pretrain_detector(out=str(broken), resume=True).finished
    assert f"resuming {broken}" in said.getvalue()
    for name in ("best", "last"):
        one, two = (sha256_file(run / name / "model.safetensors") for run in (broken, tmp_path / "whole"))
        assert one == two
    assert not list(broken.glob(".*"))


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(drawn: Drawn, tmp_path: Path) -> None:
    settings = {**drawn.settings, "epochs": 2, "batch": 8, "optimizer": "sgd", "lr": 0.002, "mosaic": 0.0}
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    words = [str(w) for k, v in settings.items() if v is not False for w in (f"--{k.replace('_', '-')}", v)]
    words += [f"--no-{k.replace('_', '-')}" for k, v in settings.items() if v is False]
    module = ("-m", "agssp_zoo.training.pretrain.stage2_cli", "--out", str(tmp_path / "two"), *words)
    done = subprocess.run(
        python("-m", "accelerate.commands.launch", *options, *more, *module),
        env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1  # one of them speaks
    pretrain_detector(out=str(tmp_path / "one"), **settings)
    one, two = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    # The same samples through the same backbone; neck and head normalise over the half of the batch that they see.
    assert two[0] == pytest.approx(one[0], rel=0.06)
    assert two == pytest.approx(one, rel=0.2)
    own = [tensors(tmp_path / name / "last") for name in ("one", "two")]
    assert all(torch.equal(own[0][name], own[1][name]) for name in own[0] if name.startswith("backbone."))


def test_shards_give_the_same_weights(drawn: Drawn, tmp_path: Path) -> None:
    from agssp_zoo.training.data import pack

    shards = pack(read_dataset(drawn.folder / "pool", format="images"), tmp_path / "shards")
    for name, source in (("folder", drawn.folder / "pool"), ("shards", shards)):
        pretrain_detector(out=str(tmp_path / name), **{**drawn.settings, "epochs": 1, "images": str(source)})
    one, two = (sha256_file(tmp_path / name / "last" / "model.safetensors") for name in ("folder", "shards"))
    assert one == two


def test_time_limit_json_and_report(drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from agssp_zoo.cli import main

    settings = {**drawn.settings, "time_limit": 0.001, "epochs": 1}
    words = [str(w) for k, v in settings.items() if v is not False for w in (f"--{k.replace('_', '-')}", v)]
    assert main(["pretrain-detector", *words, "--no-plots", "--report", "--out", str(tmp_path / "run"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["finished"], answer["reason"], answer["epochs"]) == (False, "time limit", 0)
    again = ["pretrain-detector", "--resume", "--time-limit", "0", "--out", str(tmp_path / "run")]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "next: agssp-zoo finetune" in said and "report: " in said
    assert (tmp_path / "run" / "val" / "report.html").is_file()
    assert main(again[:1] + again[2:]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_all_images_of_a_pool_are_divided(drawn: Drawn, tmp_path: Path) -> None:
    """A folder called test is a split to readers of labels; a pool has no such thing."""
    shutil.copytree(drawn.folder / "pool" / "steel", tmp_path / "pool" / "train")
    shutil.copytree(drawn.folder / "pool" / "tile", tmp_path / "pool" / "test")
    maps = write_maps(tmp_path / "pool", tmp_path / "maps")
    given = {"images": (str(tmp_path / "pool"),), "maps": str(maps), "val_fraction": 0.25, "margin": 0.4}
    pool = read_boxes(DetectorSettings(**given))
    assert len(pool.train) + len(pool.val) == 16
