"""Training runs: they learn, start from other models, stop, and go on with the same result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from training_runs import NAMES, SMALL, command, environment, python, rows, state, wait_for_step, write_data, write_yaml

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

import agssp_zoo  # noqa: E402
from agssp_zoo import models  # noqa: E402
from agssp_zoo.cli import main as zoo  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import TrainingError  # noqa: E402
from agssp_zoo.folder import ModelFolder, sha256_file, write_folder  # noqa: E402
from agssp_zoo.training.checkpoint import Checkpoint  # noqa: E402
from agssp_zoo.training.data import pack, read_dataset  # noqa: E402
from agssp_zoo.training.ema import AveragedModel  # noqa: E402
from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.optimizer import build_optimizer, set_rates  # noqa: E402
from agssp_zoo.training.position import Position  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.transfer import build_start  # noqa: E402


@dataclass(frozen=True)
class Trained:
    data: Path
    run: Path
    said: str


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, threads: None) -> Trained:
    """A model that has learned, with all that a run writes."""
    import contextlib
    import io

    data = write_data(tmp_path_factory.mktemp("drawn") / "marks", train=16, val=8)
    run = tmp_path_factory.mktemp("runs") / "learned"
    settings = {
        **SMALL, "epochs": 32, "val_every": 16, "lr": 0.006, "mosaic": 0.0, "scale": 0.1, "translate": 0.0,
        "brightness": 0.0, "contrast": 0.0, "ema_decay": 0.5, "ema_ramp": 10.0, "report": True, "export": True,
        "plots": True, "license": "apache-2.0",
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = finetune(data=str(data), out=str(run), **settings)
    assert outcome.finished and outcome.epochs == 32
    return Trained(data, run, said.getvalue())


@pytest.mark.slow
def test_a_run_learns_and_leaves_a_model_that_says_where_it_comes_from(trained: Trained) -> None:
    run = trained.run
    losses = [float(row["loss"]) for row in rows(run)]
    assert len(losses) == 32 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[2:7])
    assert [row["epoch"] for row in rows(run) if row["map50"]] == ["16", "32"]
    assert {"loss.png", "map.png", "metrics.csv", "config.json", "events", "last", "best", "val"} <= {
        path.name for path in run.iterdir()
    }
    config = ModelConfig.load(run / "best")
    assert config.class_names == NAMES and config.preprocess.size == 64
    figures = config.provenance["metrics"]
    assert figures["map50"] > 0.8
    # The report runs the saved model as users do, and comes to the trainer's figures.
    report = json.loads((run / "val" / "metrics.json").read_text())
    assert report["map50"] == pytest.approx(figures["map50"], abs=0.02)
    assert report["map50_95"] == pytest.approx(figures["map50_95"], abs=0.02)
    assert "report:" in trained.said and (run / "val" / "report.html").stat().st_size > 10_000

    origin = config.provenance
    assert origin["license"] == "apache-2.0" and origin["datasets"] == ["marks"] and origin["seed"] == 0
    assert "--data marks " in origin["command"] and str(trained.data.parent) not in json.dumps(origin)
    assert origin["settings"]["lr"] == 0.006 and origin["settings"]["momentum"] == 0.9  # chosen ones too
    assert origin["versions"]["agssp-zoo"] == agssp_zoo.__version__
    card = (run / "best" / "README.md").read_text()
    assert 'license: "apache-2.0"' in card and '- "marks"' in card and '- "map50"' in card and "model.onnx" in card

    record = json.loads((run / "config.json").read_text())
    assert record["data"]["train_boxes"] == {"dark": 8, "bright": 8}
    assert record["data"]["fingerprint"].startswith(read_dataset(trained.data).split("train").fingerprint()[:32])

    folder = ModelFolder.open(run / "best")
    assert folder.config.postprocess.iou == 0.5 == record["settings"]["nms_iou"], "what suits defects"
    assert {"model.safetensors", "model.onnx"} <= set(folder.names)
    for name in folder.names:
        folder.file(name)  # checked against its checksum
    image = read_dataset(trained.data).split("val")[0]
    answers = [
        agssp_zoo.load_detector(run / "best", engine=engine).predict(image.load_image(), conf=0.3)[0]
        for engine in ("onnx", "pytorch")
    ]
    assert answers[0].names == NAMES and answers[0].labels[0] == image.labels[0]
    np.testing.assert_allclose(answers[0].boxes, answers[1].boxes, atol=0.5)
    assert np.abs(answers[0].boxes[0] - image.boxes[0]).max() < 8


def assert_same_files(first: Path, second: Path) -> None:
    for model in ("last", "best"):
        one, two = (sha256_file(run / model / "model.safetensors") for run in (first, second))
        assert one == two, model


def test_models_that_are_lost_are_written_again_from_the_state(
    tmp_path: Path, threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    finetune(data=str(write_data(tmp_path / "data")), out=str(run), **{**SMALL, "epochs": 2, "val_every": 2})
    figures = ModelConfig.load(run / "best").provenance["metrics"]
    shutil.copytree(run, tmp_path / "whole")
    for name in ("last", "best"):
        shutil.rmtree(run / name)
    capsys.readouterr()
    assert finetune(out=str(run), resume=True).best_epoch == 2
    assert capsys.readouterr().out.count("not there any more: written again from the state") == 2
    assert_same_files(run, tmp_path / "whole")
    assert ModelConfig.load(run / "best").provenance["metrics"] == figures != {}
    # The best model of an earlier epoch is in no state.
    file = run / "state" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "best_epoch": 1}))
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "last")
    with pytest.raises(TrainingError, match=r"best is lost: it was the model of epoch 1, .* Take .*last in its place"):
        finetune(out=str(run), resume=True)
    assert (run / "last" / "model.safetensors").is_file()
    record = json.loads((run / "config.json").read_text())
    record["settings"]["epochs"] = 3  # as if the run had been stopped
    (run / "config.json").write_text(json.dumps(record))
    assert finetune(out=str(run), resume=True).best_epoch == 3
    assert "is lost" in capsys.readouterr().out and (run / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_killed_and_terminated_run_ends_with_the_same_weights(tmp_path: Path, threads: None) -> None:
    data = write_data(tmp_path / "data")
    settings = {**SMALL, "data": str(data), "save_every": 1, "accumulate": 2, "epochs": 4, "workers": 1}
    finetune(out=str(tmp_path / "whole"), **settings)
    broken = tmp_path / "broken"
    words = python(*command(out=broken, **settings))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen(words, **options, start_new_session=True) as process:
        wait_for_step(broken, 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    killed_at = state(broken)["step"]
    # SIGTERM to the whole group, as batch systems send it: the state is saved, the exit code says that it is not done.
    with subprocess.Popen([*words, "--resume"], **options, start_new_session=True) as process:
        wait_for_step(broken, killed_at + 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "SIGTERM" in out and "--resume" in out
    stopped = state(broken)
    assert stopped["step"] < 12
    assert finetune(out=str(broken), resume=True).finished
    assert_same_files(broken, tmp_path / "whole")
    timed = ("train_seconds", "data_wait_seconds", "val_seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(broken)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows(tmp_path / "whole")
    ]
    # The epoch that was left in the middle has the time of both sittings.
    if stopped["epoch_step"]:
        assert float(rows(broken)[stopped["epoch"]]["train_seconds"]) > stopped["seconds"] > 0
    # Three steps an epoch, two of which move the weights: the second, and the last although it is alone.
    assert state(broken)["average_steps"] == 8
    assert not list(broken.glob(".*"))


def test_time_limit_stops_with_the_state_saved(tmp_path: Path, threads: None) -> None:
    data = write_data(tmp_path / "data", train=8, val=2)
    run = tmp_path / "run"
    outcome = finetune(data=str(data), out=str(run), **SMALL, time_limit=1e-3)
    assert not outcome.finished and outcome.reason == "time limit"
    assert state(run)["step"] == 1 and not (run / "last").exists()
    assert finetune(out=str(run), resume=True, time_limit=0.0).finished
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


def test_states_between_epochs_wait_for_the_weights_to_move(
    tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third step of six never is a fourth one, but the state is saved at the move after it."""
    data = write_data(tmp_path / "data", train=12, val=2)
    saved: list[int] = []
    save = Checkpoint.save

    def noted(self: Checkpoint, position: Position, bad_images: list[str]) -> None:
        saved.append(position.step)
        save(self, position, bad_images)

    monkeypatch.setattr(Checkpoint, "save", noted)
    settings = {**SMALL, "batch": 2, "accumulate": 4, "save_every": 3}
    finetune(data=str(data), out=str(tmp_path / "run"), **settings)
    assert saved == [4, 6, 10, 12]


def test_events_of_a_resumed_run_have_every_step_once(tmp_path: Path, threads: None) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = write_data(tmp_path / "data", train=8, val=2)
    run = tmp_path / "run"
    for number in range(4):
        given = {} if number else {"data": str(data), **SMALL}
        finetune(out=str(run), **given, resume=bool(number), time_limit=1e-3)  # a step a sitting
    events = EventAccumulator(str(run / "events"))
    events.Reload()
    assert [entry.step for entry in events.Scalars("loss/total")] == [1, 2, 3, 4]
    assert [entry.step for entry in events.Scalars("epoch/map50")] == [2, 4]


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, threads: None) -> None:
    data = write_data(tmp_path / "data", train=4, val=2)
    outcome = finetune(data=str(data), out=str(tmp_path / "run"), **{**SMALL, "epochs": 9, "patience": 2, "lr": 1e-9})
    assert outcome.finished and outcome.epochs == 3 and outcome.best_epoch == 1
    assert outcome.reason == "no better map50_95 for a while"
    # Whether the run was killed right after that state or had finished: the state says that patience has run out.
    before = [file.read_bytes() for file in sorted((tmp_path / "run").rglob("*.safetensors"))]
    assert finetune(out=str(tmp_path / "run"), resume=True) == outcome
    assert [file.read_bytes() for file in sorted((tmp_path / "run").rglob("*.safetensors"))] == before
    assert len(rows(tmp_path / "run")) == 3
    # Without a score there is nothing to be impatient about.
    late = {**SMALL, "epochs": 3, "patience": 1, "val_every": 3, "lr": 1e-9}
    assert finetune(data=str(data), out=str(tmp_path / "late"), **late).epochs == 3


def test_packed_shards_train_to_the_same_weights(tmp_path: Path, threads: None) -> None:
    data = write_data(tmp_path / "data", train=8, val=2)
    shards = pack(read_dataset(data), tmp_path / "shards")
    settings = {**SMALL, "epochs": 1, "cache_mb": 0}
    for name, source in (("folder", data), ("shards", shards)):
        finetune(data=str(source), out=str(tmp_path / name), **settings)
    assert_same_files(tmp_path / "folder", tmp_path / "shards")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded


@pytest.mark.slow
def test_frozen_stages_keep_weights_and_statistics(trained: Trained, tmp_path: Path) -> None:
    settings = {**SMALL, "weights": "auto", "model": str(trained.run / "best"), "freeze": 2, "epochs": 1}
    run = tmp_path / "run"
    finetune(data=str(trained.data), out=str(run), **settings)
    before, after = tensors(trained.run / "best"), tensors(run / "last")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("backbone.stem", "backbone.stage1.", "backbone.stage2."))}
    assert len(frozen) > 20 and any("running_mean" in name for name in frozen)
    assert not changed & frozen
    rest = before.keys() - frozen
    # What a step leaves as it was is the odd bias of a class that was not in the batch.
    assert len(changed) > 0.95 * len(rest) and any("running_mean" in name for name in changed)


def test_weights_are_taken_over_where_they_fit(trained: Trained) -> None:
    best = trained.run / "best"
    source = tensors(best)
    settings = TrainSettings(data="x", model=str(best))

    def taken(class_names: tuple[str, ...]) -> tuple[set[str], tuple[str, ...]]:
        start = build_start(settings, class_names)
        assert start.module.config.class_names == class_names
        own = start.module.state_dict()
        equal = {n for n, v in source.items() if own[n].shape == v.shape and torch.equal(own[n], v)}
        assert start.loaded == len(source) - len(start.left)
        return equal, start.left

    prediction = {f"head.cls_branches.{i}.2.{part}" for i in range(3) for part in ("weight", "bias")}
    assert taken(NAMES) == (source.keys(), ())
    for other in (("a", "b", "c"), NAMES[::-1]):  # another number of classes, and other classes in that number
        equal, left = taken(other)
        assert set(left) == prediction and equal == source.keys() - prediction
    # Random weights depend on the seed alone.
    name = next(name for name in source if name.endswith("conv.weight"))
    first, again, other = (
        build_start(TrainSettings(data="x", weights="none", seed=s), NAMES).module.state_dict()[name] for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_backbone_starts_a_detector(tmp_path: Path) -> None:
    def backbone_folder(architecture: str) -> Path:
        config = models.default_config(architecture)
        # As the detector takes pixels, so that nothing has to be rewritten.
        config = config.replace(preprocess=models.default_config("yolov8_n").preprocess)
        torch.manual_seed(5)
        module = models.build(config)
        writers = {"model.safetensors": lambda path: models.save_weights(module, path, config)}
        return write_folder(tmp_path / architecture, config, writers)

    folder = backbone_folder("cspdarknet_n")
    start = build_start(TrainSettings(data="x", weights="none", backbone_weights=str(folder)), NAMES)
    own, source = start.module.backbone.state_dict(), tensors(folder)
    assert all(torch.equal(own[name], value) for name, value in source.items())
    assert start.loaded == len(source) and start.source == "cspdarknet_n.scratch"
    assert start.left and not any(name.startswith("backbone.") for name in start.left)
    other = backbone_folder("cspdarknet_s")
    with pytest.raises(TrainingError, match="no weight fits the backbone of yolov8_n"):
        build_start(TrainSettings(data="x", weights="none", backbone_weights=str(other)), NAMES)
    with pytest.raises(TrainingError, match="is a backbone; --model takes a detector"):
        build_start(TrainSettings(data="x", model=str(folder)), NAMES)


def test_a_part_of_the_images_can_be_kept_for_validation(tmp_path: Path, threads: None, capsys) -> None:
    data = write_data(tmp_path / "data", train=10, val=0)
    write_yaml(data, NAMES)
    (data / "data.yaml").write_text((data / "data.yaml").read_text().replace("val: images/val\n", ""))
    run = tmp_path / "run"
    finetune(
        data=str(data), out=str(run), **{**SMALL, "epochs": 1, "report": True, "precision": "bf16"}, val_fraction=0.2
    )
    record = json.loads((run / "config.json").read_text())
    assert (record["data"]["train_images"], record["data"]["val_images"]) == (8, 2)
    assert record["data"]["val_boxes"] == {"dark": 1, "bright": 1}
    assert (run / "val" / "report.html").is_file()
    # `val` draws the same images, and without being told to it says how.
    words = ["val", "--data", str(data), "--model", str(run / "best"), "--out", str(tmp_path / "val")]
    assert zoo(words) == 1 and "--val-fraction 0.2 does the same" in capsys.readouterr().err
    assert zoo([*words, "--val-fraction", "0.2"]) == 0
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (run / "val", tmp_path / "val")]
    assert figures[0]["data"]["fingerprint"] == figures[1]["data"]["fingerprint"]
    capsys.readouterr()
    assert zoo([*words, "--val-fraction", "0.2", "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["fingerprint"] != figures[0]["data"]["fingerprint"]


def test_averaged_weights_and_rates_follow_their_formulas() -> None:
    module = torch.nn.BatchNorm1d(1)
    average = AveragedModel(module, 0.9, 2.0)
    expected = 1.0
    for step in range(1, 5):
        with torch.no_grad():
            module.weight.fill_(float(step))
            module.num_batches_tracked += 1
        average.update(module)
        decay = 0.9 * (1 - math.exp(-step / 2))
        expected = decay * expected + (1 - decay) * step
        assert float(average.module.weight) == pytest.approx(expected, rel=1e-6)
    assert int(average.module.num_batches_tracked) == 4 and not average.module.training

    settings = TrainSettings(data="x", epochs=10, warmup=2.0, final_lr=0.1, lr=0.02, momentum=0.95)
    optimizer = build_optimizer(torch.nn.Conv2d(1, 1, 3), settings)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]  # the kernel, the bias
    rates = [set_rates(optimizer, step, 5, settings) for step in range(50)]
    assert rates[0] == pytest.approx(0.02 / 10, rel=0.01) and max(rates) == pytest.approx(rates[9])
    cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 30 / 50))
    assert rates[30] == pytest.approx(0.02 * cosine) and rates[49] == pytest.approx(0.002, rel=0.05)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.999)
    set_rates(optimizer, 0, 5, settings)
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.8 + 0.15 / 10)
    straight = dataclasses.replace(settings, schedule="linear", warmup=0.0, optimizer="sgd")
    sgd = build_optimizer(torch.nn.Conv2d(1, 1, 3), straight)
    assert set_rates(sgd, 25, 5, straight) == pytest.approx(0.02 * 0.55)
    assert sgd.param_groups[0]["nesterov"] and sgd.param_groups[0]["momentum"] == 0.95
