"""The whole chain: killed in every step and finished by the same command, with models and a report that are whole."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomaly_stores import make_store, write_images
from PIL import Image
from training_runs import environment, python, state

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("timm")
pytest.importorskip("scipy")

from test_report import Page  # noqa: E402

import agssp_zoo  # noqa: E402
from agssp_zoo import cli  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError, TrainingError  # noqa: E402
from agssp_zoo.folder import sha256_file  # noqa: E402
from agssp_zoo.training.anomaly.boxes import pseudo_boxes  # noqa: E402
from agssp_zoo.training.anomaly.layout import DONE  # noqa: E402
from agssp_zoo.training.pretrain.chain import open_chain, run_chain  # noqa: E402
from agssp_zoo.training.pretrain.chain_pictures import map_sheets  # noqa: E402
from agssp_zoo.training.pretrain.chain_settings import ChainSettings, read_options, small_recipe  # noqa: E402
from agssp_zoo.training.pretrain.figures import curves  # noqa: E402
from agssp_zoo.training.pretrain.settings import PretrainSettings  # noqa: E402
from agssp_zoo.training.pretrain.stage2_settings import DetectorSettings  # noqa: E402
from agssp_zoo.training.settings import given_settings  # noqa: E402
from agssp_zoo.training.synthetic import write_dataset  # noqa: E402

SETTINGS: dict[str, Any] = {
    "method": "own", "encoder": "vit_tiny_patch16_224", "encoder_weights": "none", "size": 64, "device": "cpu",
    "threads": 1, "workers": 0, "backbone_epochs": 2, "detector_epochs": 2, "pictures": 2, "quantile": 0.8,
    "license": "apache-2.0",
    "maps": ("batch=1",),
    "backbone": ("size=64", "resize=64", "scale_min=1.0", "batch=4", "save_every=1", "precision=no", "pictures=2"),
    "detector": ("batch=4", "save_every=1", "precision=no", "val_fraction=0.25"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pool"
    write_dataset(folder / "metal", 8, size=(64, 96), seed=1)
    write_dataset(folder / "neu", 8, size=(64, 64), seed=2, style="neu")
    return folder


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = run_chain(images=str(pool), out=str(run), **SETTINGS)
    assert outcome.finished and outcome.report == run / "report.html"
    assert [line[:3] for line in said.getvalue().splitlines() if line[1:3] == "/3"] == ["1/3", "2/3", "3/3"]
    return run


def words(**values: Any) -> list[str]:
    found = ["-m", "agssp_zoo", "agssp"]
    for name, value in values.items():
        found += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found


def kill_when(ready: Callable[[], bool], command: list[str]) -> None:
    """Starts a run and kills it, with all that it has started, as soon as something is so."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(python(*command), env=environment(), start_new_session=True, **options) as process:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, EOFError):
                if ready():
                    break
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_in_every_step_and_finished_by_the_same_command(pool: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "broken"
    command = words(images=pool, out=run, **SETTINGS)

    def finished() -> list[str]:
        return list(json.loads((run / "chain.json").read_text())["finished"])

    kill_when(lambda: bool((np.load(run / "maps" / "done.npy") == DONE).any()), command)
    assert finished() == [] and not (run / "backbone").exists()
    kill_when(lambda: state(run / "backbone")["step"] >= 2, command)
    assert finished() == ["maps"] and state(run / "backbone")["step"] < 8
    kill_when(lambda: state(run / "detector")["step"] >= 2, command)
    assert finished() == ["maps", "backbone"] and state(run / "detector")["step"] < 6
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(command[2:]) == 0
    text = said.getvalue()
    assert "1/3 anomaly maps: done already" in text and "2/3 backbone (AGBP): done already" in text
    assert "3/3 detector (AGDP): agssp-zoo pretrain-detector" in text and "resuming" in text
    assert f"next: agssp-zoo finetune --data YOUR_DATA --model {run / 'detector' / 'best'}" in text
    for name in ("backbone/last", "detector/best", "detector/last"):
        one, two = (sha256_file(folder / name / "model.safetensors") for folder in (run, whole))
        assert one == two, name
    one, two = (np.load(folder / "maps" / "maps.npy") for folder in (run, whole))
    np.testing.assert_array_equal(one, two)
    assert (run / "report.html").is_file() and not list(run.rglob(".*.tmp"))


def test_both_models_can_be_used(whole: Path) -> None:
    backbone = ModelConfig.load(whole / "backbone" / "last")
    detector = ModelConfig.load(whole / "detector" / "best")
    assert (backbone.name, detector.name) == ("cspdarknet_n.agbp", "yolov8_n.agssp")
    assert detector.class_names == ("anomaly",)
    for config in (backbone, detector):
        assert config.provenance["license"] == "apache-2.0" and config.provenance["datasets"] == ["metal", "neu"]
    assert len(detector.provenance["commands"]) == 2
    image = np.full((64, 64, 3), 120, np.uint8)
    assert agssp_zoo.load_detector(whole / "detector" / "best").predict([image])[0].boxes.shape[1] == 4
    assert len(agssp_zoo.load_backbone(whole / "backbone" / "last").feature_info) == 3


def test_the_report_holds_all_of_itself(whole: Path) -> None:
    text = (whole / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"result", "maps", "backbone", "detector", "made"} <= set(page.ids)
    assert all(link.startswith(("#", "data:")) for link in page.links) and "<script" not in text
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    names = [attributes["alt"] for attributes in pictures]
    assert names == ["Maps of metal", "Maps of neu", "Activations before and after", "Pseudo-boxes and detections"]
    for attributes in pictures:
        encoded = attributes["src"].removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
            assert opened.format == "JPEG" and str(opened.width) == attributes["width"]
            assert np.asarray(opened.convert("L")).std() > 5
    assert text.count("<svg") == 5
    # What it says is what the steps have left.
    record = json.loads((whole / "detector" / "config.json").read_text())
    statistics = {entry["source"]: entry for entry in record["boxes"]["statistics"]}
    for name in ("metal", "neu"):
        assert f"<td>{name}</td><td>8</td>" in text
        assert f"<td>{statistics[name]['boxes_per_image']:.2f}</td>" in text
    assert str(record["boxes"]["train"] + record["boxes"]["val"]) in page.text
    assert "No figure here is measured on labels" in page.text
    for command in json.loads((whole / "chain.json").read_text())["commands"].values():
        assert command in page.text


def test_a_data_set_without_a_box_has_a_sheet_of_its_own(tmp_path: Path) -> None:
    images = write_images(tmp_path, {"blank/a": (64, 64), "steel/b": (64, 64), "steel/c": (64, 64)})
    peak = np.zeros((4, 4), np.float32)
    peak[1, 1] = 1.0
    maps = {record.key: peak * record.key.endswith("b") for record in images}
    names = ["blank" if key.startswith("blank") else "steel" for key in maps]
    store = make_store(tmp_path / "maps", images, maps, sources=names)
    boxed = tuple(record for record in images if record.key.endswith("b"))
    kept = {"train": pseudo_boxes(store, replace(images, records=boxed))}  # as stage 2 keeps them
    assert len(kept["train"].of(boxed[0].key)[0]) == 1
    sheets = map_sheets(store, images, kept, ["blank", "steel"], tmp_path / "pictures", 4)
    drawn = sorted(file.stem for file in (tmp_path / "pictures").rglob("*/*.png"))
    assert drawn == ["blank__a", "steel__b", "steel__c"]
    for name, sheet in sheets.items():
        with Image.open(tmp_path / "pictures" / f"{name}.png") as file:
            assert sheet.tobytes() == file.convert("RGB").tobytes()


def test_the_same_command_again_does_nothing_but_the_report(pool: Path, whole: Path) -> None:
    files = [whole / "backbone" / "last" / "model.safetensors", whole / "detector" / "best" / "model.safetensors"]
    times = [file.stat().st_mtime_ns for file in files]
    (whole / "report.html").unlink()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_chain(out=str(whole)).finished  # nothing else has to be said again
    assert said.getvalue().count("done already") == 3
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (whole / "report.html").is_file()


def test_other_settings_and_other_images_are_refused(pool: Path, whole: Path, tmp_path: Path) -> None:
    for values, said in (
        ({"detector_epochs": 3}, r"other settings: --detector-epochs 3 \(was 2\)"),
        ({"model": "yolov8_s"}, r"--model yolov8_s \(was yolov8_n\)"),
        ({"maps": ("batch=1", "size=96")}, r"--maps"),
        ({"method": "mutual"}, r"--method mutual \(was own\)"),
        ({"method": "auto"}, r"--method auto \(was own\)"),
        ({"quantile": None}, r"--quantile None \(was 0\.8\)"),
    ):
        with pytest.raises(TrainingError, match=said):
            run_chain(images=str(pool), out=str(whole), **{**SETTINGS, **values})
    # What does not shape the result may change, also among the options of a step.
    chain = open_chain({"out": str(whole), "threads": 2, "detector": (*SETTINGS["detector"], "log_every=1")})
    assert chain.settings.threads == 2 and chain.settings.method == "own"
    more = tmp_path / "pool"
    shutil.copytree(pool, more)
    Image.new("RGB", (64, 64)).save(more / "neu" / "images" / "new.png")
    with pytest.raises(DataError, match=r"have changed since .*16 images then, 17 now"):
        run_chain(images=str(more), out=str(whole))
    (tmp_path / "chain.json").write_text("{")
    with pytest.raises(TrainingError, match="is not the record of a run"):
        run_chain(images=str(pool), out=str(tmp_path))


def test_a_step_whose_result_is_gone_is_made_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "detector")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_chain(out=str(run)).finished
    assert said.getvalue().count("done already") == 2
    one, two = (sha256_file(folder / "detector" / "best" / "model.safetensors") for folder in (run, whole))
    assert one == two


def test_a_model_that_is_gone_is_written_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone" / "last")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_chain(out=str(run)).finished
    assert said.getvalue().count("done already") == 2 and "last was not there any more" in said.getvalue()
    one, two = (sha256_file(folder / "backbone" / "last" / "model.safetensors") for folder in (run, whole))
    assert one == two


def test_a_run_that_is_stopped_says_how_it_goes_on(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = {**SETTINGS, "backbone": (*SETTINGS["backbone"], "time_limit=0.001")}
    command = words(images=pool, out=tmp_path / "run", **limited)[2:]
    assert cli.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["finished"], answer["step"], answer["reason"]) == (False, "backbone", "time limit")
    assert cli.main(command) == 0
    assert f"agssp-zoo agssp --out {tmp_path / 'run'}" in capsys.readouterr().out


def test_a_run_that_an_image_has_stopped_goes_on_with_more_tolerance(pool: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pool"
    shutil.copytree(pool, broken)
    file = sorted((broken / "neu").rglob("*.png"))[0]
    file.write_bytes(file.read_bytes()[:-200])
    limited = {**SETTINGS, "backbone": (*SETTINGS["backbone"], "time_limit=0.001")}
    with pytest.raises(TrainingError, match="give a higher --tolerance to go on without it"):
        run_chain(images=str(broken), out=str(tmp_path / "run"), **limited)
    outcome = run_chain(images=str(broken), out=str(tmp_path / "run"), **limited, tolerance=0.1)
    assert (outcome.step, outcome.reason) == ("backbone", "time limit")


def test_the_plan_is_what_the_steps_do(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(images=pool, out=tmp_path / "run", **{**SETTINGS, "seed": 5})[2:]
    assert cli.main([*command, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[1] for line in lines] == ["anomaly-maps", "pretrain-backbone", "pretrain-detector"]
    assert not (tmp_path / "run").exists()
    chain = open_chain({"images": str(pool), "out": str(tmp_path / "run"), **SETTINGS, "seed": 5})
    steps = chain.steps()
    for line, cls, expected in (
        (lines[1], PretrainSettings, PretrainSettings(**steps["backbone"])),
        (lines[2], DetectorSettings, DetectorSettings(**steps["detector"])),
    ):
        assert cls(**given_settings(cli._parse(shlex.split(line)[1:]), cls)) == expected
        assert expected.seed == 5
    args = cli._parse(shlex.split(lines[0])[1:])
    assert args.data == [str(pool)] and args.encoder == "vit_tiny_patch16_224" and args.batch == 1
    assert args.workers == 0


def test_one_data_set_has_no_names_to_learn(pool: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "images": str(pool / "neu"), "out": str(tmp_path / "run")}
    assert open_chain(dict(values)).steps()["backbone"]["task"] == "none"
    named = {**values, "backbone": (*SETTINGS["backbone"], "labels=folder", "task=simmim")}
    assert open_chain(named).steps()["backbone"]["task"] == "simmim"
    assert "task" not in open_chain({**values, "images": str(pool)}).steps()["backbone"]


def test_the_small_recipe_is_chosen_and_kept(whole: Path) -> None:
    assert small_recipe("cspdarknet_n", "cpu") == small_recipe("cspdarknet_s", "cpu") == "cspdarknet_cpu"
    assert small_recipe("resnet50", "cuda") == "resnet50_gpu_hour" and small_recipe("swin_b", "cuda") == ""
    assert json.loads((whole / "chain.json").read_text())["settings"]["recipe"] == "cspdarknet_cpu"
    assert json.loads((whole / "backbone" / "config.json").read_text())["settings"]["recipe"] == "cspdarknet_cpu"


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"model": "resnet50"}, TrainingError, r"is a backbone; give a detector"),
        ({"model": "yolov9"}, AgsspZooError, r"yolov9"),
        ({"model": "yolov8_resnet50"}, TrainingError, r"2 stages of resnet50 are frozen, so they need weights"),
        ({"recipe": "nothing"}, TrainingError, r"--recipe nothing: there is no such recipe"),
        ({"images": ()}, TrainingError, r"--images"),
        ({"images": ("nowhere",)}, DataError, r"nowhere"),
        ({"size": 8}, InvalidArgumentError, r"--size is 8"),
        ({"backbone": ("size=64", "taps=7,4", "resize=64", "scale_min=1")}, TrainingError, r"ascending"),
        ({"backbone": ("size=640",)}, TrainingError, r"--resize is 512; .* less than --size"),
        ({"maps": ("sise=64",)}, InvalidArgumentError, r"--maps sise=64: did you mean size=\.\.\.\?"),
        ({"maps": ("size",)}, InvalidArgumentError, r"--maps size: give it as NAME=VALUE"),
        ({"maps": ("size=big",)}, InvalidArgumentError, r"--maps: .*size.*invalid int value"),
        ({"maps": ("method=own",)}, InvalidArgumentError, r"the chain sets method itself"),
        ({"detector": ("optimizer=adam",)}, InvalidArgumentError, r"--detector: .*invalid choice"),
        ({"detector": ("plots=yes",)}, InvalidArgumentError, r"--detector plots=yes: give true or false"),
        ({"detector": ("val_fraction=1",)}, TrainingError, r"--val-fraction is 1"),
        ({"method": "nothing"}, InvalidArgumentError, r"--method nothing: choose of"),
        ({"normal": "good"}, InvalidArgumentError, r"--normal: --method own does not use it"),
        ({"weights": "nowhere/model"}, AgsspZooError, r"nowhere/model"),
        ({"backbone": ("size=80",)}, TrainingError, r"needs a multiple of 32"),
        ({"backbone": ("mask_ratio=0.3",)}, TrainingError, r"--mask-ratio has no effect without --task simmim"),
        ({"detector": ("margin=0.2",)}, InvalidArgumentError, r"give one of them"),
    ],
)  # fmt: skip
def test_bad_input_is_said_before_any_work(
    values: dict[str, Any], error: type[Exception], said: str, pool: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        run_chain(**{**SETTINGS, "images": (str(pool),), "out": str(tmp_path / "run"), **values})
    assert not (tmp_path / "run").exists()


def test_places_and_processes(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="lies in the folder of the images"):
        run_chain(**{**SETTINGS, "images": str(pool), "out": str(pool / "run")})
    assert not (pool / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"--plan print .*accelerate launch -m MODULE` .*stage2_cli"):
        run_chain(**{**SETTINGS, "images": str(pool), "out": str(tmp_path / "run")})


def test_options_are_read_as_the_commands_read_them() -> None:
    read = read_options(PretrainSettings, ("taps=2,3", "lr=3e-4", "plots=false", "scale-min=1"), "backbone", ())
    assert read == {"taps": (2, 3), "lr": 3e-4, "plots": False, "scale_min": 1.0}
    assert ChainSettings(backbone=("task=none",)).options("backbone") == {"task": "none"}
    named = ChainSettings(method="kead+own", encoder="vit", maps=("clip=folder", "clip-weights=f.pt")).map_settings()
    assert (named.encoder, named.clip, named.clip_weights) == ("vit", "folder", "f.pt")


def test_axes_hold_their_curves() -> None:
    for highest in (0.0, 3e-4, 0.07, 0.999, 1.0, 13.2, 4e5):
        rows = [
            {"epoch": 1.0, "loss": highest / 2},
            {"epoch": 2.0, "loss": highest},
            {"epoch": 3.0, "loss": float("nan")},
        ]
        svg = curves("t", "loss", rows)
        ticks = [float(part.partition("<")[0]) for part in svg.split('text-anchor="end">')[1:]]
        assert ticks[0] == 0 and 3 <= len(ticks) <= 8 and ticks[-1] >= highest * 0.999
        assert ticks[-1] <= max(1.0, 2 * highest) or highest == 0
