"""What a training run says when its data, settings, disk or arithmetic are bad, and what it keeps."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import resource
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_runs import NAMES, SMALL, rows, state, write_data, write_yaml

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from agssp_zoo.cli import main as zoo  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    AgsspZooError,
    ConfigError,
    DataError,
    InvalidArgumentError,
    ModelNotFoundError,
    TrainingError,
    WeightsNotPublishedError,
)
from agssp_zoo.folder import ModelFolder, write_folder  # noqa: E402
from agssp_zoo.training.checkpoint import Checkpoint  # noqa: E402
from agssp_zoo.training.data import read_dataset  # noqa: E402
from agssp_zoo.training.devices import settle_precision, settle_workers  # noqa: E402
from agssp_zoo.training.ema import AveragedModel  # noqa: E402
from agssp_zoo.training.failures import explain  # noqa: E402
from agssp_zoo.training.finetune import finetune, main, read_splits  # noqa: E402
from agssp_zoo.training.loader import epoch_order  # noqa: E402
from agssp_zoo.training.outputs import finish  # noqa: E402
from agssp_zoo.training.position import Outcome, Position  # noqa: E402
from agssp_zoo.training.record import command  # noqa: E402
from agssp_zoo.training.settings import TrainSettings, merge_for_resume  # noqa: E402


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", train=8, val=2)


def without_labels(data: Path) -> None:
    for file in data.glob("labels/*/*.txt"):
        file.write_text("")


def without_val(data: Path) -> None:
    (data / "data.yaml").write_text("train: images/train\nnames: [dark, bright]\n")


def with_too_few_classes(data: Path) -> None:
    write_yaml(data, NAMES[:1])


def with_one_class_twice(data: Path) -> None:
    write_yaml(data, ("dark", "dark"))


def unchanged(data: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "values", "error", "message"),
    [
        (without_labels, {}, DataError, "not one of the 10 images has a label"),
        (without_val, {}, DataError, "no split 'val'.*--val-fraction"),
        (with_too_few_classes, {}, DataError, r"(?s)errors in 10 images.*class.*check-data"),
        (with_one_class_twice, {}, DataError, "'dark' stands twice"),
        (unchanged, {"model": "yolov9_q"}, ModelNotFoundError, "yolov9_q"),
        (unchanged, {"model": "no/such/folder"}, ModelNotFoundError, "no/such/folder"),
        (unchanged, {"model": "resnet50"}, TrainingError, "resnet50 is a backbone; --model takes a detector"),
        (unchanged, {"model": "yolov8_s", "weights": "auto"}, WeightsNotPublishedError, "--weights none"),
        (unchanged, {"device": "cuda:7"}, TrainingError, "--device cuda:7: this machine has . usable CUDA devices"),
        (unchanged, {"device": "gpu"}, TrainingError, "choose auto, cpu, cuda, cuda:N or mps"),
        (unchanged, {"freeze": 9}, InvalidArgumentError, "the backbone has 4 stages"),
        (unchanged, {"size": 100}, TrainingError, "--size 100: yolov8_n needs a multiple of 32 .* are 96 and 128"),
        (unchanged, {"freeze": 9}, TrainingError, r"--freeze 9: the backbone has 4 stages \(.*stage4\)"),
        (unchanged, {"drop_path": 0.1}, TrainingError, "--drop-path 0.1: cspdarknet_n leaves out no residual branches"),
        (unchanged, {"checkpointing": True}, TrainingError, "--checkpointing: cspdarknet_n cannot compute its blocks"),
        (unchanged, {"val_fraction": 1.0}, TrainingError, "--val-fraction is 1.0; it must be at least 0 and below 1"),
        (unchanged, {"data": ""}, TrainingError, "give the folder of labelled images with --data"),
        (unchanged, {"data": "no/such/data"}, DataError, "no/such/data"),
        (unchanged, {"momentum": 1.5}, TrainingError, "--momentum is 1.5; it must lie in 0-1"),
        (unchanged, {"momentum": 1.0}, TrainingError, "--momentum is 1.0; it must be below 1"),
        (unchanged, {"hue": 0.7}, TrainingError, "--hue is 0.7; it is in turns of the colour circle .* 0-0.5"),
        (unchanged, {"out": "/dev/null/run"}, TrainingError, "cannot be written"),
    ],
)
def test_a_run_that_cannot_start_says_why(
    change: Callable[[Path], None],
    values: dict[str, Any],
    error: type[AgsspZooError],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AGSSP_ZOO_HOME", raising=False)
    change(data)
    with pytest.raises(error, match=message):
        finetune(**{"data": str(data), "out": str(tmp_path / "run"), **SMALL, **values})
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_it_in_one_line(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    without_labels(data)
    monkeypatch.setattr("sys.argv", ["finetune", "--data", str(data), "--out", str(tmp_path / "run")])
    assert main() == 1
    assert re.fullmatch(r"error: .* not one of the 10 images has a label.*\n", capsys.readouterr().err)


def test_the_command_answers_in_json(data: Path, tmp_path: Path, capsys) -> None:
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--weights", "none", "--size", "64", "--batch", "8"]
    more = ["--time-limit", "0.001", "--workers", "0", "--threads", "1", "--no-report", "--device", "cpu", "--json"]
    assert zoo(["finetune", *words, *more]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert (
        answer["finished"] is False and answer["reason"] == "time limit" and answer["folder"] == str(tmp_path / "run")
    )
    assert "8 training and 2 validation images" in said.err


def test_a_run_says_where_its_input_makes_boxes_too_thin(data: Path, tmp_path: Path, capsys) -> None:
    first, second = sorted((data / "labels" / "train").iterdir())[:2]
    first.write_text("0 0.5 0.5 0.5 0.1\n")  # 6.4 of 64 pixels high
    words = ["--data", str(data), "--weights", "none", "--time-limit", "0.001", "--workers", "0", "--device", "cpu"]
    words += ["--threads", "1", "--size", "64", "--no-report"]
    assert zoo(["finetune", *words, "--out", str(tmp_path / "one")]) == 0
    assert "thinner" not in capsys.readouterr().out, "one of eight boxes"
    second.write_text("0 0.5 0.5 0.1 0.5\n")
    assert zoo(["finetune", *words, "--out", str(tmp_path / "two")]) == 0
    said = capsys.readouterr().out
    assert "note: at --size 64 2 of 8 boxes to train on are thinner than 8 pixels" in said


def test_a_run_says_where_a_class_lies_the_other_way_in_validation(tmp_path: Path, capsys) -> None:
    data = write_data(tmp_path / "data", train=4, val=4)
    for split, box in (("train", "0.5 0.1 0.2 0.8"), ("val", "0.5 0.1 0.8 0.2")):
        for file in (data / "labels" / split).iterdir():
            rows = [f"0 0.5 {0.12 + 0.15 * row:.2f} {' '.join(box.split()[2:])}" for row in range(6)]
            file.write_text("\n".join(rows) + "\n")
    words = ["--data", str(data), "--weights", "none", "--time-limit", "0.001", "--workers", "0", "--device", "cpu"]
    words += ["--threads", "1", "--size", "64", "--no-report"]
    assert zoo(["finetune", *words, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "note: class" in said and "100% upright" in said
    assert f"--quarter-turn 0.5 --turn-classes {NAMES[0]} teaches the network both" in said
    for number, more in enumerate(([], ["--turn-classes", NAMES[0]], ["--turn-classes", NAMES[1]])):
        assert zoo(["finetune", *words, "--quarter-turn", "0.5", *more, "--out", str(tmp_path / f"{number}")]) == 0
        said = capsys.readouterr().out
        assert ("note: class" in said) == (more[1:] == [NAMES[1]]), "only what is turned needs no note"
    assert (
        f"--turn-classes {NAMES[0]} {NAMES[1]} teaches" in said
        or f"--turn-classes {NAMES[1]} {NAMES[0]} teaches" in said
    )

    words += ["--quarter-turn", "0.5", "--turn-classes", "dent", "--out", str(tmp_path / "no")]
    assert zoo(["finetune", *words]) != 0
    assert "--turn-classes dent: the data have no such class" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_resuming_with_other_settings_or_data_is_refused(data: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    settings = {**SMALL, "data": str(data), "out": run}
    with pytest.raises(TrainingError, match="holds no run to resume"):
        finetune(out=run, resume=True)
    assert not finetune(**settings, time_limit=1e-3).finished
    kept = state(tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already; add --resume"):
        finetune(**settings)
    with pytest.raises(TrainingError, match=r"other settings: --size 96 \(was 64\), --lr 0.1 \(was 0.001\); leave"):
        finetune(**{**settings, "size": 96, "lr": 0.1}, resume=True)
    (data / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(TrainingError, match="the labels or splits have changed"):
        finetune(out=run, resume=True)
    assert state(tmp_path / "run") == kept
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match="is not the record of a run"):
        finetune(out=run, resume=True)


def test_settings_of_a_stored_run() -> None:
    stored = TrainSettings(data="d", out="o", precision="bf16", lr=0.01).settled("bf16").to_dict()
    for name in ("val_fraction", "report", "export", "license", "plots"):
        del stored[name]  # a run of an earlier version
    given = {"precision": "auto", "lr": None, "threads": 3, "report": False, "turn_classes": []}
    merged = merge_for_resume(stored, given, "config.json")
    assert merged == TrainSettings(data="d", out="o", lr=0.01, threads=3, report=False).settled("bf16")
    # Of what was not settled "auto" is a value as any other.
    with pytest.raises(TrainingError, match=r"other settings: --weights auto \(was none\); leave them out"):
        merge_for_resume({**stored, "weights": "none"}, {"weights": "auto"}, "config.json")
    # Names in a list, as Python callers give them, are those of a tuple, and in the command that is noted.
    turned = TrainSettings(data="d", out="o", quarter_turn=0.5, turn_classes=["a b", "c"])
    assert command(turned).endswith("--quarter-turn 0.5 --turn-classes 'a b' c")
    assert merge_for_resume(turned.to_dict(), {"turn_classes": ["a b", "c"]}, "config.json") == turned
    with pytest.raises(ConfigError, match="unknown key 'sice'; did you mean 'size'"):
        merge_for_resume({**stored, "sice": 3}, {}, "config.json")


def test_what_is_left_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    import agssp_zoo.training.devices as devices

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    settings = TrainSettings(data="d", device="cpu")
    state = torch.get_rng_state()
    assert 0.01 < devices._bf16_gain() < 100
    assert torch.equal(torch.get_rng_state(), state), "whoever drew before goes on as if nothing had been"
    for there, gain, precision in ((True, 1.5, "bf16"), (True, 0.5, "no"), (False, 1.5, "no")):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda answer=there: answer)
        monkeypatch.setattr(devices, "_bf16_gain", lambda answer=gain: answer)
        assert settle_precision(settings) == precision
        half = TrainSettings(data="d", device="cpu", precision="bf16")
        with contextlib.nullcontext() if there else pytest.warns(UserWarning, match="bf16: this processor has no such"):
            assert settle_precision(half) == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert settle_precision(settings) == "bf16"
    assert settle_precision(TrainSettings(data="d", precision="no")) == "no"
    monkeypatch.setattr(devices, "_cores", lambda: 16)
    assert (settle_workers(settings, "cpu"), settle_workers(settings, "cuda")) == (1, 8)
    assert settle_workers(TrainSettings(data="d", workers=0), "cuda") == 0
    sgd = TrainSettings(data="d", optimizer="sgd").settled("no")
    assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.precision) == (0.01, 0.937, 5e-4, "no")


def truncate(file: Path) -> None:
    """The header stays, so that only decoding finds out."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("cache_mb", [64, 0])
def test_a_corrupt_image_stops_the_run_or_is_left_out(cache_mb: int, data: Path, tmp_path: Path, capsys) -> None:
    """With memory for all images it is found before the first step, else when it is drawn, in the second one."""
    settings = {**SMALL, "data": str(data), "cache_mb": cache_mb, "mosaic": 0.0, "epochs": 1, "save_every": 1}
    sixth = int(epoch_order(0, 0, 8)[5])
    truncate(data / "images" / "train" / f"{sixth}.png")
    run = tmp_path / "run"
    kept = "nothing had been saved yet" if cache_mb else "the state of step 1 is kept"
    with pytest.raises(TrainingError, match=rf"1 images cannot be read.*tolerated 0.*{sixth}\.png.*{kept}"):
        finetune(out=str(run), **settings)
    assert not (run / "last").exists()
    assert finetune(out=str(run), resume=True, tolerance=0.1).finished, "as the message says"
    capsys.readouterr()
    outcome = finetune(out=str(tmp_path / "tolerant"), **settings, tolerance=0.1)
    assert outcome.finished
    told = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert len(told) == 2 and all(line.startswith("note: 1 image cannot be read and is left out: ") for line in told)
    assert all(f"{sixth}.png" in line for line in told), "after its epoch, and at the end"
    (problem,) = state(tmp_path / "tolerant")["bad_images"]
    assert f"{sixth}.png" in problem


@pytest.mark.parametrize("cache_mb", [64, 0])
def test_a_corrupt_image_for_validation(cache_mb: int, data: Path, tmp_path: Path) -> None:
    truncate(data / "images" / "val" / "1.png")
    settings = {**SMALL, "data": str(data), "cache_mb": cache_mb, "epochs": 1}
    with pytest.raises(TrainingError, match=r"1 images cannot be read.*val/1\.png"):
        finetune(out=str(tmp_path / "run"), **settings)
    run = tmp_path / "tolerant"
    assert finetune(out=str(run), **{**settings, "report": not cache_mb}, tolerance=0.1).finished
    assert rows(run)[0]["map50"]
    if not cache_mb:
        measured = json.loads((run / "val" / "metrics.json").read_text())
        assert measured["images"] == 1 and measured["data"]["unreadable"] == ["val/1"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("finetune", "training.finetune"),
        ("pretrain-backbone", "training.pretrain.cli"),
        ("pretrain-detector", "training.pretrain.stage2_cli"),
    ],
)
def test_the_command_that_goes_on_can_be_copied(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the folder's name has a space."""
    stopped = Outcome(Path("runs/my line"), False, "stopped by SIGINT", 0.0, 0, 3, signal.SIGINT)
    monkeypatch.setattr(importlib.import_module(f"agssp_zoo.{module}"), name.replace("-", "_"), lambda **_: stopped)
    assert zoo([name]) == 130, "what follows by && would take a model that is not ready"
    advice = capsys.readouterr().out.partition("go on with: ")[2]
    assert shlex.split(advice) == ["agssp-zoo", name, "--out", "runs/my line", "--resume"]


def test_a_report_that_fails_names_the_command_with_all_its_options(data: Path, tmp_path: Path) -> None:
    best = tmp_path / "my run" / "best"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"no weights")
    given = {"data": str(data), "val_fraction": 0.3, "seed": 4, "format": "yolo", "tile": 64, "tolerance": 0.1}
    (said,) = finish(best.parent, read_dataset(data).split("val"), TrainSettings(**given), device="cpu", command="")
    assert said.startswith("no report: ") and said.endswith(
        f" Again with: agssp-zoo val --data {data} --model '{best}' --out '{best.parent / 'val'}' --val-fraction 0.3 "
        "--seed 4 --format yolo --tile 64 --overlap 0.2 --tolerance 0.1"
    )
    # All images together, as `val --split all` has them.
    train, val = read_splits(TrainSettings(data=str(data), val_split="all"))
    assert (len(train), len(val)) == (8, 10)
    (said,) = finish(best.parent, val, TrainSettings(data=str(data), val_split="all"), device="cpu", command="")
    assert said.endswith(" --split all")


@pytest.mark.parametrize(("named", "device"), [("cpu:0", "cpu"), ("cuda:1", "cuda:1"), ("mps:0", "mps")])
def test_the_report_is_made_on_the_device_of_the_run(
    named: str, device: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are several processes, accelerate numbers CPUs, too."""
    import agssp_zoo.training.evaluation as evaluation

    def refuse(*_: object, settings: Any, **__: object) -> None:
        raise DataError(settings.device)

    monkeypatch.setattr(evaluation, "validate", refuse)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").touch()
    (said,) = finish(tmp_path, read_dataset(data).split("val"), TrainSettings(), device=named, command="")
    assert said.startswith(f"no report: {device} Again with")


def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agssp_zoo.training.losses import DetectionLoss, LossSums

    original, steps = DetectionLoss.__call__, []

    def broken(self: DetectionLoss, *args: Any, **options: Any) -> LossSums:
        steps.append(1)
        sums = original(self, *args, **options)
        return LossSums(sums.total * float("nan"), sums.parts * float("nan")) if len(steps) == 4 else sums

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(DetectionLoss, "__call__", broken)
        with pytest.raises(TrainingError) as caught:
            finetune(data=str(data), out=str(run), **{**SMALL, "mosaic": 0.0})
    # Two steps an epoch: the fourth is the second one of the second epoch.
    places = epoch_order(0, 1, 8)[4:]
    images = ", ".join(f"train/{i}" for i in places)
    assert f"at batch 2 of epoch 2 (step 4; images {images})" in str(caught.value)
    assert "the state of step 2 is kept" in str(caught.value) and "smaller --lr" in str(caught.value)
    assert finetune(out=str(run), resume=True).finished  # the state is good
    assert all(torch.isfinite(torch.tensor(float(row["loss"]))) for row in rows(run))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """A gradient can overflow although the loss is a number; then the weights are bad before any loss shows it."""
    from accelerate import Accelerator

    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    average = AveragedModel(module, 0.9, 0.0)
    checkpoint = Checkpoint(tmp_path, Accelerator(cpu=True), module, average, optimizer)
    assert checkpoint.restore() == (Position(), [])
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average.update(module)
    position = Position(step=3, seconds=1.5, history=[{"epoch": 1, "map50": float("nan")}])
    checkpoint.save(position, ["a.png: gone"])
    good = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"After step 4 .*model\.weight the first; the state of step 3 is kept"):
        checkpoint.save(Position(step=4), [])
    restored, bad_images = checkpoint.restore()
    assert (restored.step, restored.seconds, bad_images, average.steps) == (3, 1.5, ["a.png: gone"], 1)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in good.items())
    (tmp_path / "state" / "state-00000003.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="differs from its checksum"):
        checkpoint.restore()


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Files cannot grow beyond this, as if the disk were full; writing fails in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [20 << 20, 5 << 20])  # the state does not fit; the models do not either
def test_a_full_disk_leaves_the_checkpoint_before_whole(size: int, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {**SMALL, "data": str(data), "out": str(run)}
    finetune(**{**settings, "epochs": 1})
    record = json.loads((run / "config.json").read_text())
    record["settings"]["epochs"] = 2  # as if it had been stopped after its first epoch
    (run / "config.json").write_text(json.dumps(record))
    before = state(run)
    with no_file_above(size), pytest.raises(TrainingError, match=r"cannot be written.*File too large.*step 2 is kept"):
        finetune(out=str(run), resume=True)
    assert state(run) == before
    for name in ("best", "last"):
        folder = ModelFolder.open(run / name)
        assert all(folder.file(file) for file in folder.names)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.part"))
    assert finetune(out=str(run), resume=True).finished
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


def test_a_full_disk_leaves_the_model_folder_before_whole(tmp_path: Path) -> None:
    config = ModelConfig(name="yolov8_s.x", architecture="yolov8_s", task="detector", class_names=("pit",))
    out = write_folder(tmp_path / "model", config, {"a.bin.txt": lambda path: path.write_bytes(b"old")})
    with no_file_above(1 << 16), pytest.raises(OSError, match="too large"):
        write_folder(
            out, config, {"a.bin.txt": lambda path: path.write_bytes(bytes(1 << 20))}, overwrite=True, card="new"
        )
    folder = ModelFolder.open(out)
    assert folder.file("a.bin.txt").read_bytes() == b"old" and folder.file("README.md").read_text() != "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("error", "several", "message"),
    [
        (OSError(28, "No space left on device"), False, "No space left on device.*Make room"),
        (BrokenPipeError(32, "Broken pipe"), False, "Nobody reads .* --resume"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), False, "--cache-mb, or --workers 0"),
        (torch.OutOfMemoryError("CUDA out of memory"), False, "smaller --batch or --size"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True, "Another process"),
    ],
)
def test_failures_from_below_are_explained(error: Exception, several: bool, message: str) -> None:
    explained = explain(error, out="runs/x", kept="the state of step 3 is kept", several=several)
    assert isinstance(explained, TrainingError) and re.search(message, str(explained))
    assert "the state of step 3 is kept" in str(explained)
    own = RuntimeError("shapes differ")
    assert explain(own, out="runs/x", kept="", several=True) is own
