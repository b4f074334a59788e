"""``agssp-zoo benchmark`` with the default detector on small canvases."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agssp_zoo import cli
from agssp_zoo.benchmark.process import Worker
from agssp_zoo.benchmark.results import Spread
from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import update_checksums

MODEL = Path(__file__).parents[1] / "model_cards" / "yolov8_n.agssp_neu_det"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="needs the checkout's model")
QUICK = ("--starts", "1", "--warmup", "1", "--threads", "1")
STAGES = ("decode", "preprocess", "inference", "postprocess")


def run(*arguments: object) -> int:
    return cli.main(["benchmark", *map(str, arguments)])


@pytest.fixture(scope="module")
def only_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without the weights that PyTorch would read."""
    folder = tmp_path_factory.mktemp("models") / "only_onnx"
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    update_checksums(folder)
    return folder


def test_engines_and_sizes_are_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sizes = ("--sizes", "64", "128x64")
    assert run(MODEL, "--engines", "onnx", "pytorch", *sizes, *QUICK, "--rounds", 4, "--batch", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    written = json.loads((out / "benchmark.json").read_text())
    assert written["complete"] and written["skipped"] == [] and written["schema_version"] == 1
    assert written["machine"]["processor"] and written["versions"]["onnxruntime"] and written["command"]
    rows = written["results"]
    assert [(row["engine"], row["size"]) for row in rows] == [
        ("onnx", [64, 64]), ("pytorch", [64, 64]), ("onnx", [128, 64]), ("pytorch", [128, 64]),
    ]  # fmt: skip
    for row in rows:
        spent = row["milliseconds"]
        assert set(spent) == {*STAGES, "end_to_end"}
        for one in (*spent.values(), row["cpu"]):
            assert 0 <= one["low"] <= one["median"] <= one["high"] and one["count"] == 4
        assert spent["decode"]["median"] > 0 and spent["inference"]["median"] > 0
        assert spent["end_to_end"]["high"] >= spent["inference"]["low"]
        parts = sum(one["median"] for one in row["start_stages"].values())
        assert row["cold_start"]["count"] == 1 and parts < row["cold_start"]["median"]
        assert row["images_per_second"] == pytest.approx(1e3 / spent["end_to_end"]["median"], rel=1e-3)
    onnx, pytorch = rows[:2]
    assert onnx["peak_memory_mb"] < pytorch["peak_memory_mb"]  # each has a process of its own
    assert onnx["cold_start_cpu"]["median"] < pytorch["cold_start_cpu"]["median"]
    assert printed.count("yolov8_n.agssp_neu_det") == 4 and "128x64" in printed and "quartiles" in printed
    with Image.open(out / "benchmark.png") as picture:
        colors = {tuple(color) for color in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert picture.width > 1000 and {(0x56, 0xB4, 0xE9), (0, 0x72, 0xB2)} <= colors  # decoding and inference
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.json", "benchmark.png"]


def test_own_image_and_size_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (100, 300), 128).save(tmp_path / "strip.png")
    code = run(MODEL / "model.onnx", "--image", tmp_path / "strip.png", *QUICK, "--rounds", 1, "--json")
    said = capsys.readouterr()
    answer = json.loads(said.out)
    side = ModelConfig.load(MODEL).preprocess.size
    short = 32 * math.ceil(side * 100 / 300 / 32)
    assert code == 0 and answer["results"][0]["size"] == [short, side]  # as predict() would take it
    assert answer["settings"]["image"].endswith("strip.png") and answer["results"][0]["model"] == "model.onnx"
    assert "pytorch skipped" in said.err and {one["engine"] for one in answer["skipped"]} >= {"pytorch"}


def test_an_engine_that_is_not_installed_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run(MODEL, "--engines", "pytorch", "onnx", "--sizes", 64, *QUICK, "--rounds", 1) == 0
    said = capsys.readouterr()
    assert "pytorch skipped" in said.err and "pip install 'agssp-zoo[torch]'" in said.err
    assert said.out.count("yolov8_n.agssp_neu_det") == 1
    assert run(MODEL, "--engines", "pytorch", "--sizes", 64, *QUICK) == 1
    assert "Nothing could be measured" in capsys.readouterr().err


def test_a_file_that_is_missing_is_skipped(only_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(only_onnx, "--engines", "onnx", "pytorch", "onnx:int8", "--sizes", 64, *QUICK, "--rounds", 1) == 0
    said = capsys.readouterr()
    assert (
        "onnx:int8 skipped" in said.err
        and "pytorch skipped" in said.err
        and "model.safetensors" in said.err
        and "64x64" in said.out
    )


def test_models_of_one_name_are_told_apart(only_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As two fine-tunings of one model are called; what is given twice is measured once."""
    models = (MODEL, only_onnx, MODEL, MODEL / "model.onnx")
    assert run(*models, "--engines", "onnx", "--sizes", 64, *QUICK, "--rounds", 1, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    name = ModelConfig.load(MODEL).name
    assert [row["model"] for row in rows] == [f"{name} ({MODEL})", f"{name} ({only_onnx})", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engines", "onnx", "tensorflow"), "--engines tensorflow: choose from onnx, openvino, pytorch."),
        (("--engines", "onnx:int9"), "--engines onnx:int9: after the colon give float32,"),
        (("--sizes", "64x64x3"), "--sizes 64x64x3: give a side or WIDTHxHEIGHT"),
        (("--sizes", "0"), "--sizes 0: give a side"),
        (("--sizes", "1000x250"), "--sizes 1000x250: sides must be multiples of 32, e.g. 1024x256."),
        (("--rounds", "0"), "--rounds 0: give at least 1."),
        (("--threads", "0"), "--threads 0: give at least 1."),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MODEL, *arguments) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MODEL.parent / "cspdarknet_n.agbp") == 2
    assert "benchmark measures detectors" in capsys.readouterr().err
    assert run(MODEL, "--image", tmp_path / "none.png") == 1
    assert "none.png" in capsys.readouterr().err
    assert run(tmp_path / "none.onnx") == 1
    assert "agssp-zoo export" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(MODEL, "--out", out) == 2
        assert "file is a file; give a folder." in capsys.readouterr().err


def test_a_benchmark_without_figures_keeps_the_one_before(
    only_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (only_onnx, "--sizes", 64, *QUICK, "--rounds", 1, "--out", tmp_path)
    assert run(*arguments, "--engines", "onnx") == 0
    before = (tmp_path / "benchmark.json").read_bytes()
    assert run(*arguments, "--engines", "pytorch") == 1, "there are no weights for it"
    assert (tmp_path / "benchmark.json").read_bytes() == before

    def interrupted(self: Worker, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "__init__", interrupted)
    assert run(*arguments, "--engines", "onnx") == 130
    assert (tmp_path / "benchmark.json").read_bytes() == before


def test_interrupted_it_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = 0

    def interrupted(self: Worker, usual: Any = Worker.run) -> dict[str, float]:
        nonlocal rounds
        rounds += 1
        if rounds > 3:
            raise KeyboardInterrupt
        answer: dict[str, float] = usual(self)
        return answer

    monkeypatch.setattr(Worker, "run", interrupted)
    assert run(MODEL, "--engines", "onnx", "--sizes", 64, 96, *QUICK, "--rounds", 50, "--out", tmp_path) == 130
    written = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = written["results"]
    assert not written["complete"] and row["size"] == [64, 64] and row["peak_memory_mb"] is None
    assert row["milliseconds"]["inference"]["count"] == 2  # one was for warming up
    assert "Interrupted" in capsys.readouterr().out and (tmp_path / "benchmark.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="ends a process by a signal")
def test_a_process_that_dies_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(self: Worker, usual: Any = Worker.run) -> dict[str, float]:
        self._process.kill()
        answer: dict[str, float] = usual(self)
        return answer

    monkeypatch.setattr(Worker, "run", dying)
    assert run(MODEL, "--engines", "onnx", "--sizes", 64, *QUICK, "--rounds", 2) == 0
    said = capsys.readouterr()
    assert "ended by signal 9; should memory be short" in said.err
    assert " - " in said.out  # its start was measured, no more


@pytest.mark.skipif(sys.platform == "win32", reason="ends a process by a signal")
def test_a_process_that_dies_at_the_end_keeps_its_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(self: Worker, usual: Any = Worker.finish) -> float | None:
        self._process.kill()
        self._process.wait()
        memory: float | None = usual(self)
        return memory

    monkeypatch.setattr(Worker, "finish", dying)
    assert run(MODEL, "--engines", "onnx", "--sizes", 64, *QUICK, "--rounds", 2, "--json") == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["results"]
    assert row["milliseconds"]["inference"]["count"] == 2 and row["peak_memory_mb"] is None
    assert "ended by signal 9" in said.err


def test_medians_and_quartiles() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 1)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
