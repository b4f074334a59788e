"""``agssp-zoo predict`` with a small hand-made ONNX detector: bright images hold one detection, dark ones none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agssp_zoo import cli

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bright_detector import write_model

    return write_model(tmp_path_factory.mktemp("model") / "bright")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a bright and a dark image, a TIFF of two pages, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (320, 64), "white").save(folder / "s10.png")
    Image.new("L", (64, 64), 5).save(folder / "s2.jpg")
    (folder / "s3.png").write_bytes(b"no image")
    pages = [Image.new("L", (64, 48), 255), Image.new("L", (64, 48), 0)]
    pages[0].save(folder / "t.tif", save_all=True, append_images=pages[1:])
    (folder / "notes.txt").write_text("ignored")
    return folder


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["predict", *map(str, arguments)])
    return (code, *capsys.readouterr())


def test_a_mistyped_path_costs_no_earlier_answers(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(capsys, images / "s10.png", "-m", model, "--out", out)
    before = (out / "predictions.json").read_bytes()
    code, stdout, stderr = predict(capsys, tmp_path / "imagse", "-m", model, "--out", out)
    assert code == 1 and "imagse" in stderr and "nothing written" in stdout
    assert (out / "predictions.json").read_bytes() == before and len(before) > 50
    code, stdout, _ = predict(capsys, images / "s3.png", "-m", model, "--out", tmp_path / "new", "--json")
    assert code == 1 and json.loads(stdout)["predictions"] is None and not list((tmp_path / "new").glob("*.json"))


def test_a_bad_file_is_reported_at_the_end_and_the_others_are_done(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = predict(capsys, images, "-m", model, "--out", out, "--batch", 2, "--json")
    assert code == 1 and stderr.count("\n") == 1 and "s3.png" in stderr
    summary = json.loads(stdout)
    assert (summary["images"], summary["detections"]) == (4, 2)
    assert [Path(one["path"]).name for one in summary["failed"]] == ["s3.png"]
    entries = json.loads((out / "predictions.json").read_text())
    assert [(Path(e["path"]).name, e["page"], e["size"], e["names"]) for e in entries] == [
        ("s2.jpg", None, [64, 64], []),
        ("s10.png", None, [64, 320], ["scratch"]),
        ("t.tif", 0, [48, 64], ["scratch"]),
        ("t.tif", 1, [48, 64], []),
    ]
    assert entries[1]["boxes"] == [[4.0, 4.0, 20.0, 12.0]], "from 640 pixels to 320"
    assert entries[1]["labels"] == [1] and entries[1]["scores"] == [pytest.approx(1.0, abs=0.01)]
    assert (out / "predictions.json").read_text().count("\n") == 6, "an entry a line"
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [
        *("predictions.json", "s10.jpg", "s2.jpg", "t_page0.jpg", "t_page1.jpg")
    ]
    with Image.open(out / "annotated" / "s10.jpg") as drawn:
        assert drawn.size == (320, 64) and np.asarray(drawn).min() < 128, "a box is drawn"


def test_a_file_is_decoded_once_for_its_answer_and_its_picture(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agssp_zoo.sources.load", lambda *_: pytest.fail("read again"))
    code, _, _ = predict(capsys, images / "s10.png", images / "t.tif", "-m", model, "--out", tmp_path / "out")
    assert code == 0 and len(list((tmp_path / "out" / "annotated").iterdir())) == 3


def test_options_reach_the_detector(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    color = tmp_path / "other" / "s10.png"
    Image.new("RGB", (64, 64), (250, 120, 20)).save(color)
    sources = (images / "s10.png", color)

    def run(*options: object, expect: int = 0) -> list[dict[str, Any]]:
        code, _, stderr = predict(capsys, *sources, "-m", model, "--out", tmp_path / "out", *options)
        assert code == expect, stderr
        entries: list[dict[str, Any]] = json.loads((tmp_path / "out" / "predictions.json").read_text())
        return entries

    assert [len(e["boxes"]) for e in run()] == [1, 1]
    assert {p.name for p in (tmp_path / "out" / "annotated").iterdir()} == {"s10.jpg", "s10_2.jpg"}
    assert [len(e["boxes"]) for e in run("--conf", 0.9)] == [1, 0]
    assert run("--size", 320)[0]["boxes"] == [[8.0, 8.0, 40.0, 24.0]]
    assert run("--size", "320x64", "--engine", "onnx")[0]["boxes"] == [[8.0, 8.0, 40.0, 24.0]]
    assert len(run("--tile", 64, "--overlap", 0, "--batch", 3, "--max-det", 2)[0]["boxes"]) == 2
    entries = run("--channel-order", "bgr")
    assert [Path(e["path"]) for e in entries] == list(sources)
    with Image.open(tmp_path / "out" / "annotated" / "s10_2.jpg") as drawn:
        assert np.abs(np.asarray(drawn)[60, 60].astype(int) - (20, 120, 250)).max() < 12, "red and blue swapped back"

    code, _, stderr = predict(capsys, images / "none.png", images / "s2.jpg", "-m", model, "--out", tmp_path / "out")
    assert code == 1 and "none.png" in stderr and stderr.count("\n") == 1
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1

    out = tmp_path / "bare"
    code, stdout, _ = predict(capsys, images / "s2.jpg", "-m", model, "--out", out, "--no-images")
    assert code == 0 and stdout == f"0 detections in 1 images: {out / 'predictions.json'}\n"
    assert [p.name for p in out.iterdir()] == ["predictions.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_name_that_is_no_utf8(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, odd = tmp_path / "images", os.fsdecode(b"Bl\xe4ch.png")
    folder.mkdir()
    for name in ("a.png", odd, "z.png"):
        Image.new("L", (64, 64), 250).save(folder / name)
    (folder / os.fsdecode(b"\xe4.png")).write_bytes(b"no image")
    code, stdout, stderr = predict(capsys, folder, "-m", model, "--out", tmp_path / "out", "--json")
    assert code == 1 and json.loads(stdout)["failed"][0]["path"] == str(folder / os.fsdecode(b"\xe4.png")), stderr
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert {Path(entry["path"]).name for entry in entries} == {"a.png", odd, "z.png"}
    assert len(list((tmp_path / "out" / "annotated").iterdir())) == 3


def test_on_the_command_line_the_width_comes_first() -> None:
    """As in `benchmark --sizes`; in Python sizes are (height, width)."""
    for command in (["predict", "a.png"], ["watch", "line"]):
        args = cli._parse([*command, "--out", "o", "--size", "1600x256", "--tile", "640X320"])
        assert (args.size, args.tile) == ((256, 1600), (320, 640))
        assert cli._parse([*command, "--out", "o", "--size", "640"]).size == 640


def test_a_picture_that_cannot_be_written_is_reported_and_the_answers_stand(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    long = [f"{'b' * 250}{i}.png" for i in range(2)]
    for name in ("a.png", *long, "c.png"):
        Image.new("L", (64, 64), 250).save(folder / name)
    code, _, stderr = predict(capsys, folder, "-m", model, "--out", out)
    assert code == 0, stderr
    drawn = [path.name for path in (out / "annotated").iterdir()]
    assert len(drawn) == 4 and len([name for name in drawn if name.startswith("bbb")]) == 2

    from agssp_zoo.detections import Detections

    def fail(found: Detections, path: Path) -> None:
        if found.path and found.path.endswith("a.png"):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Detections, "save", fail)
    code, stdout, stderr = predict(capsys, folder, "-m", model, "--out", out, "--json")
    assert code == 1 and json.loads(stdout)["images"] == 4 and json.loads(stdout)["failed"][0]["path"].endswith("a.png")
    assert stderr == f"agssp-zoo: no picture of {folder / 'a.png'}: No space left on device\n"
    assert len(json.loads((out / "predictions.json").read_text())) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--conf", 3), 2, "conf=3.0"),
        (("--size", "big"), 2, "--size"),
        (("--size", "64x"), 2, "give a side or WIDTHxHEIGHT"),
        (("--tile", "64x64x3"), 2, "give a side or WIDTHxHEIGHT"),
        (("--max-det", 9), 2, "at most 2"),
        (("--provider", "NoneExecutionProvider"), 1, "NoneExecutionProvider"),
        (("--device", "cuda"), 1, "cuda"),
        (("--engine", "pytorch"), 1, "model.safetensors"),
        (("-m", "yolov8_z"), 1, "'yolov8_s'"),
    ],
)
def test_errors_are_one_line_and_leave_what_was_there(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, code: int, words: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text("old")
    got, _, stderr = predict(capsys, images / "s2.jpg", "-m", model, "--out", out, *arguments)
    assert got == code and words in stderr
    assert stderr.strip().splitlines()[-1] == stderr.strip() or "usage:" in stderr
    assert [p.name for p in out.iterdir()] == ["predictions.json"]
    assert (out / "predictions.json").read_text() == "old"


def test_an_output_folder_that_cannot_be_made(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "annotated").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "full"):
        code, _, stderr = predict(capsys, images / "s2.jpg", "-m", model, "--out", out)
        assert code == 1 and stderr.startswith(f"agssp-zoo: {out} cannot be made (") and "another --out" in stderr


def test_the_originals_are_never_drawn_over(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "annotated"
    folder.mkdir()
    Image.new("L", (64, 64), 255).save(folder / "a.jpg")
    before = (folder / "a.jpg").read_bytes()
    code, _, stderr = predict(capsys, folder, "-m", model, "--out", tmp_path)
    assert code == 2 and "would be drawn over" in stderr and (folder / "a.jpg").read_bytes() == before


def test_predicting_with_onnx_never_imports_torch_nor_the_hub(model: Path, images: Path, tmp_path: Path) -> None:
    heavy = ["torch", "torchvision", "onnx", "huggingface_hub", "safetensors", "scipy", "cv2", "importlib.metadata"]
    image, folder, out = str(images / "s10.png"), str(model), str(tmp_path / "out")
    code = (
        "import sys; from agssp_zoo.cli import main; import agssp_zoo\n"
        f"code = main(['predict', {image!r}, '-m', {folder!r}, '--out', {out!r}])\n"
        f"agssp_zoo.load_detector({folder!r}).predict({image!r}, tile=64)\n"
        f"print([m for m in {heavy} if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[] 0"], done.stdout + done.stderr
