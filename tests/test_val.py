"""`agssp-zoo val`: a detector run over a split, by Python and by the command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from random_cases import NAMES, random_case

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import DataError, MissingDependencyError
from agssp_zoo.geometry import nms
from agssp_zoo.training.evaluation import Prediction, evaluate, quick_map, validate
from agssp_zoo.training.evaluation.cli import advice
from agssp_zoo.training.evaluation.settings import ValidationSettings
from agssp_zoo.training.evaluation.suppression import Stricter

# --- a detector over a split ----------------------------------------------------------------------------------------


class FakeDetector:
    """Answers with what it was told for images of that brightness."""

    def __init__(self, answers, names):
        self.config = ModelConfig("fake", "yolov8_n", "detector", class_names=tuple(names))
        self.answers = answers
        self.batches = []

    def predict(self, source, *, conf, size, batch, iou):
        self.batches.append([image.shape for image in source])
        picked = [self.answers[int(image[0, 0, 0])] for image in source]
        return [
            SimpleNamespace(
                boxes=p.boxes[p.scores > conf], scores=p.scores[p.scores > conf], labels=p.labels[p.scores > conf],
                timing={"read": 9.0, "preprocess": 1.0, "inference": 2.0},
            )
            for p in picked
        ]  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """30 images of two shapes, number i of brightness i, 4 of them in another split."""
    from agssp_zoo.training.data import Dataset, Record

    truth, answers = random_case(20, images=30)
    records = []
    for index, labels in enumerate(truth):
        width, height = (300, 300) if index % 3 else (320, 300)
        path = tmp_path / f"{index:02d}.png"
        Image.new("RGB", (width, height), (index, 80, 80)).save(path)
        split = "train" if index < 4 else "val"
        records.append(
            Record(f"{index:02d}", str(path), split, width, height, labels.boxes, labels.labels, labels.crowd,
                   labels.difficult)
        )  # fmt: skip
    return Dataset(NAMES, tuple(records), path=str(tmp_path)), truth, answers


def test_validate_scores_the_split_whatever_the_order_of_the_classes(dataset):
    data, truth, answers = dataset
    expected = evaluate(truth[4:], answers[4:], NAMES, conf=0.05)
    straight = FakeDetector(answers, NAMES)
    result = validate(straight, data, settings=ValidationSettings(conf=0.05, batch=5), command="agssp-zoo val")
    assert result.metrics.map50_95 == expected.map50_95 and result.metrics.images == 26
    assert sum(map(len, straight.batches)) == 26
    assert all(len(set(shapes)) == 1 for shapes in straight.batches[:-1]) or len(straight.batches) == 6
    assert result.about.ms_per_image >= 0 and result.about.ms_per_stage == {"preprocess": 1.0, "inference": 2.0}

    turned = [Prediction(a.boxes, a.scores, (a.labels + 2) % 6) for a in answers]
    names = [NAMES[(label - 2) % 6] for label in range(6)]
    mapped = validate(FakeDetector(turned, names), data, settings=ValidationSettings(conf=0.05))
    assert mapped.metrics.to_dict() == result.metrics.to_dict()

    values = result.to_dict()
    assert values["data"]["fingerprint"] == data.split("val").fingerprint() and values["data"]["split"] == "val"
    assert values["versions"]["numpy"] == np.__version__ and values["machine"]["cores"] >= 1
    assert values["settings"]["conf"] == 0.05 and values["command"] == "agssp-zoo val"


def test_validate_says_what_a_stricter_suppression_would_score(dataset):
    data, _, _ = dataset
    # Each labelled box is found exactly, and again by a worse scored box that overlaps it by 65 percent.
    answers = [Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))] * 30
    for record in data.records:
        kept = ~record.crowd
        boxes, labels = record.boxes[kept], record.labels[kept]
        narrow = boxes.copy()
        narrow[:, 2] -= 0.35 * (boxes[:, 2] - boxes[:, 0])
        scores = np.linspace(0.9, 0.8, len(boxes), dtype=np.float32)
        place = int(record.load_image()[0, 0, 0])
        answers[place] = Prediction(np.concatenate([boxes, narrow]), np.concatenate([scores, scores - 0.3]),
                                    np.tile(labels, 2))  # fmt: skip
    detector = FakeDetector(answers, NAMES)
    result = validate(detector, data)
    suppressed = [Prediction(a.boxes[k], a.scores[k], a.labels[k]) for a in answers
                  for k in [nms(a.boxes, a.scores, a.labels, 0.5)]]  # fmt: skip
    records = data.split("val").records
    order = [int(record.load_image()[0, 0, 0]) for record in records]
    expected = quick_map(records, [suppressed[place] for place in order], 6)
    assert result.stricter == Stricter(0.5, expected.map50, expected.map50_95)
    assert result.to_dict()["stricter_nms"]["map50"] == expected.map50
    assert sum(len(one.scores) for one in suppressed) < sum(len(one.scores) for one in answers)
    for own in (0.5, 1.0):
        strict = validate(detector, data, settings=ValidationSettings(iou=own))
        assert strict.stricter is None and "stricter_nms" not in strict.to_dict()

    better = replace(result, stricter=Stricter(0.5, result.metrics.map50 + 0.02, 0.3))
    (line,) = advice(better)
    assert "agssp-zoo thresholds MODEL --iou 0.5" in line
    assert advice(replace(better, stricter=Stricter(0.5, result.metrics.map50 + 0.005, 0.9))) == []
    assert advice(replace(better, stricter=None)) == [] == advice(replace(better, stricter=Stricter(0.5, math.nan, 0)))


def test_classes_that_no_image_shows_may_be_missing_where_boxes_name_them(dataset):
    data, _, answers = dataset
    few = [replace(r, boxes=r.boxes[keep], labels=r.labels[keep], crowd=r.crowd[keep], difficult=r.difficult[keep])
           for r in data.records for keep in [r.labels < 5]]  # fmt: skip
    data = replace(data, class_names=NAMES[:5], records=tuple(few), format="voc")
    turned = [Prediction(a.boxes, a.scores, 5 - a.labels) for a in answers]
    result = validate(FakeDetector(turned, NAMES[::-1]), data)
    full = validate(FakeDetector(answers, NAMES), replace(data, class_names=NAMES))
    assert result.metrics.to_dict() == full.metrics.to_dict()
    assert result.metrics.classes_without_boxes == ("inclusion",)
    with pytest.raises(DataError, match=r"The data lack inclusion: list these, too, .*classes\.txt"):
        validate(FakeDetector(answers, NAMES), replace(data, format="coco"))
    with pytest.raises(DataError, match=r"Data \(5\): crack, pit, scale, scratch, rust\. Fine-tune"):
        validate(FakeDetector(answers, NAMES), replace(data, class_names=(*NAMES[:4], "rust")))
    with pytest.raises(DataError, match=r"a model that knows patch, too, evaluate both with --single-class"):
        validate(FakeDetector(answers, NAMES[:4]), data)


def test_validate_as_one_class(dataset):
    data, _, answers = dataset
    merged = [Prediction(a.boxes, a.scores, np.zeros_like(a.labels)) for a in answers]
    result = validate(FakeDetector(merged, ["anomaly"]), data, settings=ValidationSettings(single_class=True))
    assert [c.name for c in result.metrics.classes] == ["defect"]
    assert result.metrics.boxes == sum((~r.crowd).sum() for r in data.split("val").records)
    # A box that answers with two classes is one detection here.
    twice = [
        Prediction(np.concatenate([a.boxes] * 2), np.concatenate([a.scores] * 2), np.tile(a.labels, 2)) for a in answers
    ]
    again = validate(FakeDetector(twice, NAMES), data, settings=ValidationSettings(single_class=True))
    assert again.metrics.to_dict() == result.metrics.to_dict()


def test_validate_refuses_what_cannot_be_measured(dataset):
    from agssp_zoo.training.data import Dataset

    data, _, answers = dataset
    with pytest.raises(DataError, match=r"Model \(2\): crack, rust\. Data \(6\)"):
        validate(FakeDetector(answers, ["crack", "rust"]), data)
    with pytest.raises(DataError, match="no split 'test'"):
        validate(FakeDetector(answers, NAMES), data, split="test")
    bare = [r for r in data.records if not len(r.labels)]
    with pytest.raises(DataError, match=r"has a label.* Sound surfaces are measured as a split.*--split test"):
        validate(FakeDetector(answers, NAMES), Dataset(NAMES, tuple(bare)))
    # Defect-free images alone can be measured when the data set has labels elsewhere.
    labelled_training = [r for r in data.records if len(r.labels) and r.split == "train"]
    clean = [r for r in bare if r.split == "val"]
    assert clean and labelled_training
    result = validate(FakeDetector(answers, NAMES), Dataset(NAMES, (*labelled_training, *clean)))
    assert result.metrics.boxes == 0 and result.metrics.clean_images == len(clean)
    Path(data.records[10].path).write_bytes(b"no image")
    with pytest.raises(Exception, match=r"10\.png"):
        validate(FakeDetector(answers, NAMES), data)


def test_unreadable_images_within_the_tolerance_are_left_out_and_named(dataset, tmp_path):
    data, truth, answers = dataset
    for number in (10, 20):
        Path(data.records[number].path).write_bytes(b"no image")
    detector = FakeDetector(answers, NAMES)
    with pytest.raises(DataError, match=r"2 of 26 images cannot be read, more than the tolerance of 5.00%: .*10\.png"):
        validate(detector, data, settings=ValidationSettings(tolerance=0.05))
    result = validate(detector, data, settings=ValidationSettings(tolerance=0.1, batch=1))
    kept = [number for number in range(4, 30) if number not in (10, 20)]
    expected = evaluate([truth[i] for i in kept], [answers[i] for i in kept], NAMES, conf=0.001)
    assert result.metrics.map50_95 == expected.map50_95 and result.metrics.images == 24
    assert result.to_dict()["data"]["unreadable"] == ["10", "20"]
    _, page = result.save(tmp_path / "out")
    assert "2 images cannot be read and are left out: 10, 20." in page.read_text()


# --- the command ----------------------------------------------------------------------------------------------------


def write_onnx(path, config, answer):
    """A detector's ONNX file that answers every image alike, as the contract of inputs and outputs has it."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    found = len(answer.scores)
    n = config.postprocess.max_det
    answer = Prediction(
        np.pad(answer.boxes, ((0, n - found), (0, 0))), np.pad(answer.scores, (0, n - found)),
        np.pad(answer.labels, (0, n - found)),
    )  # fmt: skip
    constants = {
        "b": answer.boxes.astype(np.float32)[None], "s": answer.scores.astype(np.float32)[None],
        "l": answer.labels.astype(np.int64)[None], "c": np.array([found], np.int64),
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "n": np.array([n], np.int64),
        "four": np.array([4], np.int64), "conf_threshold": np.array([0.25], np.float32),
        "iou_threshold": np.array([0.7], np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "n", "four"], ["bn4"], axis=0),
        helper.make_node("Concat", ["batch", "n"], ["bn"], axis=0),
        helper.make_node("Expand", ["b", "bn4"], ["boxes"]),
        helper.make_node("Expand", ["s", "bn"], ["scores"]),
        helper.make_node("Expand", ["l", "bn"], ["labels"]),
        helper.make_node("Expand", ["c", "batch"], ["count"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "constant",
        [value("images", TensorProto.UINT8, ["batch", "height", "width", 3]),
         value("conf_threshold", TensorProto.FLOAT, [1]), value("iou_threshold", TensorProto.FLOAT, [1])],
        [value("boxes", TensorProto.FLOAT, ["batch", n, 4]), value("scores", TensorProto.FLOAT, ["batch", n]),
         value("labels", TensorProto.INT64, ["batch", n]), value("count", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, text in (("config", config.to_json()), ("contract_version", "1"), ("outputs", "detections")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    onnx.save(model, path)


def yolo_folder(path, names, boxes):
    """A YOLO data set whose images, 64 x 64, all hold the same boxes: (class, x1, y1, x2, y2)."""
    for kind in ("images/val", "labels/val"):
        (path / kind).mkdir(parents=True)
    lines = [
        f"{label} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}"
        for label, x1, y1, x2, y2 in boxes
    ]
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path / f"images/val/{index}.png")
        (path / f"labels/val/{index}.txt").write_text("\n".join(lines))
    listed = "\n".join(f"  {i}: {name}" for i, name in enumerate(names))
    (path / "data.yaml").write_text(f"path: .\nval: images/val\nnames:\n{listed}\n")
    return path


def test_the_command_measures_an_onnx_model(tmp_path, capsys, monkeypatch):
    from agssp_zoo.cli import main
    from agssp_zoo.folder import sha256_file, write_folder

    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24), (1, 32, 32, 56, 56)])
    config = ModelConfig("toy", "yolov8_n", "detector", class_names=("crack", "pit"))  # the other order
    answer = Prediction(np.array([[8, 8, 24, 24], [32, 32, 56, 40]]), np.array([0.9, 0.6]), np.array([1, 0]))
    model = write_folder(tmp_path / "model", config, {"model.onnx": lambda path: write_onnx(path, config, answer)})
    arguments = ["val", "--data", str(data), "--model", str(model), "--size", "64", "--out", str(tmp_path / "out")]

    assert main([*arguments, "--batch", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "crack" in printed.out and str(tmp_path / "out" / "report.html") in printed.out
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(c["name"], c["ap50"]) for c in values["classes"]] == [("pit", 1.0), ("crack", 0.0)]
    assert values["images"] == 5 and values["engine"] == "onnx" and values["map50"] == 0.5
    assert values["model"] == {
        "name": "toy", "path": str(model), "file": "model.onnx", "sha256": sha256_file(model / "model.onnx"),
    }  # fmt: skip
    assert [c["advice"]["reachable"] for c in values["classes"]] == [True, False]
    assert values["classes"][0]["advice"]["false_alarms_per_image"] == 0.0

    assert main([*arguments, "--json", "--model", str(model / "model.onnx")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["map50"] == 0.5 and again["model"]["sha256"] == values["model"]["sha256"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert main([*arguments, "--json", "--model=~/model/model.onnx"]) == 0, "no shell expands it behind an ="
    assert json.loads(capsys.readouterr().out)["model"]["sha256"] == values["model"]["sha256"]


@pytest.mark.parametrize("out", ["file", "file/deeper/still", "link"])
def test_the_command_asks_first_whether_it_can_write(tmp_path, capsys, out):
    from agssp_zoo.cli import main

    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    # Before the data and the model are looked for.
    assert main(["val", "--data", "no/data", "--model", "no/model", "--out", str(tmp_path / out)]) == 2
    message = capsys.readouterr().err
    assert "--out" in message and ("is a link to nothing" if out == "link" else "file is a file") in message


def test_the_command_refuses_other_classes(tmp_path, capsys):
    from agssp_zoo.cli import main
    from agssp_zoo.folder import write_folder

    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24)])
    config = ModelConfig("toy", "yolov8_n", "detector", class_names=("anomaly",))
    answer = Prediction(np.array([[8, 8, 24, 24]]), np.array([0.9]), np.array([0]))
    model = write_folder(tmp_path / "model", config, {"model.onnx": lambda path: write_onnx(path, config, answer)})
    arguments = ["val", "--data", str(data), "--model", str(model), "--size", "64", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "Model (1): anomaly" in message and "Data (2): pit, crack" in message and "--single-class" in message
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--single-class", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map50"] == 1.0
    assert main([*arguments, "--miss-rate", "5"]) == 2 and "miss_rate" in capsys.readouterr().err
    assert (
        main([*arguments, "--images", "-1"]) == 2 and "--images is -1; it must be at least 0" in capsys.readouterr().err
    )


def test_the_command_measures_a_torch_model(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from agssp_zoo import models
    from agssp_zoo.cli import main
    from agssp_zoo.folder import write_folder

    torch.manual_seed(0)
    data = yolo_folder(tmp_path / "data", ["pit", "crack"], [(0, 8, 8, 24, 24)])
    config = models.default_config("yolov8_n", class_names=("pit", "crack"), name="toy")
    module = models.build(config)
    write_folder(tmp_path / "model", config, {"model.safetensors": lambda p: models.save_weights(module, p, config)})
    code = main(
        ["val", "--data", str(data), "--model", str(tmp_path / "model"), "--engine", "pytorch", "--size", "64",
         "--out", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    values = json.loads(capsys.readouterr().out)
    assert code == 0 and values["engine"] == "pytorch" and values["model"]["file"] == "model.safetensors"
    assert values["detections"] > 0 and values["classes_without_boxes"] == ["crack"]


def test_a_missing_library_is_told_before_the_run(dataset, monkeypatch):
    data, _, answers = dataset
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    detector = FakeDetector(answers, NAMES)
    with pytest.raises(MissingDependencyError, match=r"agssp-zoo\[train\]"):
        validate(detector, data)
    assert not detector.batches
    assert quick_map(*random_case(0), 6).map50 > 0  # needs numpy alone


def test_scoring_imports_no_torch_and_the_command_no_numpy():
    code = (
        "import sys, agssp_zoo.training.evaluation.cli as cli, argparse\n"
        "cli.add_arguments(argparse.ArgumentParser())\n"
        "assert 'numpy' not in sys.modules\n"
        "from agssp_zoo.training.evaluation import evaluate, quick_map, write_report, validate\n"
        "assert 'torch' not in sys.modules and 'faster_coco_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
