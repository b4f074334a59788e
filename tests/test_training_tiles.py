"""Training and measuring on tiles of large images: which labels and tiles there are, the same in training and after."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import SMALL, command, environment, python, wait_for_step, write_yaml

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from agssp_zoo.errors import DataError, TrainingError  # noqa: E402
from agssp_zoo.tiling import Tiling, tiles  # noqa: E402
from agssp_zoo.training.data import Dataset, Record, read_dataset  # noqa: E402
from agssp_zoo.training.evaluation.cli import add_arguments, run  # noqa: E402
from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402
from agssp_zoo.training.tiled import cut, tile_dataset  # noqa: E402


def record(tmp_path: Path, *boxes: tuple[int, int, int, int], size: tuple[int, int] = (100, 300)) -> Record:
    rng = np.random.default_rng(len(boxes))
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file)
    none = np.zeros(len(boxes), bool)
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    return Record(file.stem, str(file), "train", size[1], size[0], rows, np.arange(len(boxes)), none, none)


def test_boxes_are_cut_at_the_border_and_remnants_dropped(tmp_path: Path) -> None:
    whole = record(
        tmp_path,
        (80, 10, 130, 30),  # 20 of 50 columns in the first tile: 40 %
        (60, 40, 120, 60),
        (94, 70, 180, 80),  # 6 of 86 columns: dropped
        (40, 85, 299, 90),  # a long scratch, 23 % of it: kept
        (70, 92, 299, 96),  # 30 of 229 pixels, 13 %, but 30 % of the tile's side: kept
        (10, 97, 11, 98),  # one pixel from the start
    )
    first, second = cut(whole, [(0, 0, 100, 100), (0, 100, 100, 200)])
    assert first.labels.tolist() == [0, 1, 3, 4, 5] and second.labels.tolist() == [0, 1, 2, 3, 4]
    assert first.boxes[0].tolist() == [80, 10, 100, 30] and second.boxes[0].tolist() == [0, 10, 30, 30]
    assert (first.width, first.height, first.key) == (100, 100, f"{whole.key}@0,0")
    assert (second.load_image() == whole.load_image()[:, 100:200]).all()
    again = pickle.loads(pickle.dumps(second))
    assert (again.load_image() == second.load_image()).all(), "a worker reads it, too"


def test_tiles_without_defects_are_drawn_by_the_seed(tmp_path: Path) -> None:
    records = [record(tmp_path, (10, 10, 30, 30), (90, 40, 260, 60), size=(100, 1000)) for _ in range(4)]
    data = Dataset(("a", "b"), tuple(records))

    def keys(empty: float, seed: int) -> list[str]:
        return [tile.key for tile in tile_dataset(data, Tiling(100, 0.0), empty=empty, seed=seed)]

    labelled = keys(0.0, 0)
    assert len(labelled) == 4 * 3 and all(key.split("@")[1] in ("0,0", "100,0", "200,0") for key in labelled)
    some, others = keys(0.5, 0), keys(0.5, 1)
    assert len(some) == len(others) == 18 and set(labelled) < set(some) and set(some) != set(others)
    assert some == keys(0.5, 0) and len(keys(99.0, 0)) == 4 * 10
    dropped = Dataset(("a", "b"), (record(tmp_path, (10, 10, 130, 12), (94, 40, 180, 60), size=(100, 200)),))
    assert [t.labels.tolist() for t in tile_dataset(dropped, Tiling(100, 0.0), empty=1.0, seed=0)] == [[0], [0, 1]]
    far = Dataset(("a",), (record(tmp_path, (98, 0, 198, 5), size=(100, 300)),))
    tiled = tile_dataset(far, Tiling(100, 0.0), empty=9.0, seed=0)
    assert [t.key.split("@")[1] for t in tiled] == ["100,0", "200,0"], "what shows a remnant is not sound"
    with pytest.raises(DataError, match="no tile of 32 pixels has a label"):
        tile_dataset(Dataset(("a",), (record(tmp_path),)), Tiling(32), empty=1.0, seed=0)


@pytest.mark.parametrize(("values", "words"), [({"tile": 16}, "--tile"), ({"overlap": 0.95}, "--overlap")])
def test_wrong_settings(values: dict, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        TrainSettings(data="x", **values)


def write_strips(folder: Path) -> Path:
    """Strips of 64x300 with bright and dark rectangles, labelled in YOLO's format."""
    rng, size = np.random.default_rng(5), (64, 300)
    for split, count in (("train", 6), ("val", 3)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            image = rng.normal(128, 10, size)
            lines = ""
            for k in range(2):
                w, h = rng.integers(16, 60), rng.integers(12, 30)
                x, y = rng.integers(150 * k, 150 * k + 90), rng.integers(0, 34)
                image[y : y + h, x : x + w] = (30, 225)[k]
                lines += f"{k} {(x + w / 2) / 300} {(y + h / 2) / 64} {w / 300} {h / 64}\n"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / split / f"{i}.png")
            (folder / "labels" / split / f"{i}.txt").write_text(lines)
    write_yaml(folder, ("dark", "bright"))
    return folder


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(run / "last" / "model.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_on_tiles_goes_on_exactly_and_is_measured_as_val_does(tmp_path: Path, capsys) -> None:
    data = write_strips(tmp_path / "strips")
    settings = {**SMALL, "tile": 64, "overlap": 0.25, "lr": 0.004, "mosaic": 0.5, "save_every": 1, "report": True}
    outcome = finetune(data=str(data), out=str(tmp_path / "whole"), **settings)
    capsys.readouterr()
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    windows = len(list(tiles((64, 300), 64, 0.25)))
    assert saved["settings"]["tile"] == 64 and 6 < saved["data"]["train_images"] <= 6 * windows
    assert saved["data"]["val_images"] == 3 and outcome.finished

    stopped = tmp_path / "stopped"
    words = python(*command(data=data, out=stopped, **settings))
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(stopped, 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(TrainingError, match=r"--tile 96 \(was 64\)"):
        finetune(out=str(stopped), resume=True, tile=96)
    assert finetune(out=str(stopped), resume=True).finished
    assert same_weights(tmp_path / "whole", stopped)

    # The trainer's own score, the report at the end and the command come to one figure.
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--data", data, "--model", tmp_path / "whole" / "best", "--out", tmp_path / "val", "--tile", 64]
    assert run(parser.parse_args([*map(str, words), "--overlap", "0.25", "--engine", "pytorch"])) == 0
    by_command = json.loads((tmp_path / "val" / "metrics.json").read_text())
    report = json.loads((tmp_path / "whole" / "val" / "metrics.json").read_text())
    figures = json.loads((tmp_path / "whole" / "best" / "config.json").read_text())["provenance"]["metrics"]
    assert by_command["map50_95"] == report["map50_95"] and by_command["settings"]["tile"] == 64
    assert by_command["settings"]["overlap"] == 0.25 and by_command["settings"]["tile_whole"] is False
    assert by_command["map50"] == pytest.approx(figures["map50"], abs=0.02)


def test_tolerance_is_of_images_not_of_tiles(tmp_path: Path) -> None:
    data = write_strips(tmp_path / "strips")
    for name in ("0", "1"):
        file = data / "images" / "train" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:-2000])
    settings = {**SMALL, "tile": 64, "tolerance": 0.12, "tile_empty": 1.0}
    with pytest.raises(TrainingError, match=r"2 images cannot be read, more than the tolerated 1 of 9"):
        finetune(data=str(data), out=str(tmp_path / "run"), **settings)


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_score_in_training_is_that_of_the_detector_on_tiles(multi_label: bool, tmp_path: Path) -> None:
    """With a network that finds something: random weights, those of the classes shaken.

    A box answers with as many classes as in the finished model.
    """
    from agssp_zoo import models
    from agssp_zoo.config import Preprocess
    from agssp_zoo.detector import Detector
    from agssp_zoo.engines.pytorch import PyTorchEngine
    from agssp_zoo.training.evaluation.runner import predict_records
    from agssp_zoo.training.evaluation.settings import ValidationSettings
    from agssp_zoo.training.validation import Validator

    records = read_dataset(write_strips(tmp_path / "strips")).split("val").records
    torch.manual_seed(0)
    preprocess = Preprocess(size=192)  # boxes of untrained networks are 120 pixels at least
    config = models.default_config("yolov8_n", class_names=("dark", "bright")).replace(preprocess=preprocess)
    assert config.postprocess is not None
    config = config.replace(postprocess=dataclasses.replace(config.postprocess, multi_label=multi_label))
    module = models.build(config)
    for name, parameter in module.named_parameters():
        if name.startswith(module.class_layers):  # scores that differ from place to place
            parameter.data += 0.3 * torch.randn_like(parameter)
    module.eval()
    tiling = Tiling(64, 0.25)
    found = {}
    for rank in range(2):
        own = Validator(
            records, config.class_names, preprocess, batch=3, cache_bytes=0, rank=rank, processes=2, tiling=tiling
        ).predict(module, torch.device("cpu"))
        assert not set(own) & set(found)
        found |= own
    detector = Detector(PyTorchEngine(module))
    chosen = ValidationSettings(engine="pytorch", tile=64, overlap=0.25)
    expected, _, _ = predict_records(detector, records, chosen)
    assert sorted(found) == [0, 1, 2]
    for index, answer in enumerate(expected):
        assert len(answer.scores) > 5
        assert len(found[index].scores) == pytest.approx(len(answer.scores), abs=1)
        assert found[index].scores[:5] == pytest.approx(answer.scores[:5], abs=1e-4)
