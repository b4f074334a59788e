"""Thresholds of single classes: chosen by `val`, in config.json and the ONNX file, applied alike by every engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from random_cases import NAMES, random_case
from test_engines import write_onnx as write_old_onnx
from test_evaluation import greedy
from test_val import yolo_folder

from agssp_zoo import models
from agssp_zoo.cli import main
from agssp_zoo.config import ModelConfig, Postprocess, Preprocess
from agssp_zoo.detector import load_detector
from agssp_zoo.engines.onnx import OnnxEngine
from agssp_zoo.errors import AgsspZooError, ConfigError, EngineError, InvalidArgumentError
from agssp_zoo.export.exporter import _describe, _with_selection
from agssp_zoo.folder import ModelFolder, write_folder
from agssp_zoo.thresholds import ThresholdFile, check_fits, set_thresholds
from agssp_zoo.training.evaluation import evaluate
from agssp_zoo.training.evaluation.thresholds import Wish, outcome

CLASSES = ("red", "green", "blue")
CONFIG = ModelConfig(
    "yolov8_n.pixels",
    "yolov8_n",
    "detector",
    class_names=CLASSES,
    preprocess=Preprocess(size=32, upscale=False),
    postprocess=Postprocess(max_det=4),
)
# Every pixel of a 32x32 image is a candidate: its channels are the scores, its box is one pixel large.
NETWORK = """
<ir_version: 9, opset_import: ["" : 18]>
pixels (uint8[batch, height, width, 3] images) => (float[batch, n, 4] boxes, float[batch, n, 3] scores)
<int64[3] rows = {0, -1, 3}, float white = {255}> {
  values = Cast <to = 1> (images)
  unit = Div (values, white)
  scores = Reshape (unit, rows)
  first = Shape <start = 0, end = 1> (images)
  shape = Concat <axis = 0> (first, last)
  boxes = Expand (grid, shape)
}
"""


def write_onnx(path: Path, config: ModelConfig = CONFIG) -> None:
    network = onnx.parser.parse_model(NETWORK)
    y, x = np.mgrid[:32, :32].reshape(2, -1).astype(np.float32)
    grid = np.stack([x, y, x + 1, y + 1], 1)
    network.graph.initializer.append(onnx.numpy_helper.from_array(grid, "grid"))
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1024, 4], np.int64), "last"))
    model = _with_selection(network, config)
    _describe(model, config, raw=False)
    onnx.save(model, path)


def with_own(config: ModelConfig = CONFIG, **own: float) -> ModelConfig:
    return config.replace(postprocess=replace(config.postprocess, class_conf=own))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", CONFIG, {"model.onnx": write_onnx}, card="test")


def image(*pixels: tuple[int, int, int]) -> np.ndarray:
    """A black image with some pixels of these colours, far from each other."""
    canvas = np.zeros((32, 32, 3), np.uint8)
    for i, color in enumerate(pixels):
        canvas[2 * (i // 16), 2 * (i % 16)] = color
    return canvas


# --- config.json ------------------------------------------------------------------------------------------------------


def test_the_key_is_written_only_when_a_class_has_a_threshold() -> None:
    assert "class_conf" not in CONFIG.to_json() and ModelConfig.from_json(CONFIG.to_json()) == CONFIG
    own = with_own(red=0.5)
    again = ModelConfig.from_json(own.to_json())
    assert again == own and again.postprocess.class_conf == {"red": 0.5}
    assert again.postprocess.thresholds(CLASSES) == (0.5, 0.25, 0.25)
    assert CONFIG.postprocess.thresholds(CLASSES) == (0.25,)


@pytest.mark.parametrize(
    ("own", "words"),
    [({"rad": 0.5}, "did you mean 'red'"), ({"x": 0.5}, "red, green, blue"), ({"red": 1.5}, "0-1"),
     ({"red": -0.1}, "0-1"), ({"red": "high"}, "must be float"), ({"red": True}, "must be float"), ([0.5], "object")],
)  # fmt: skip
def test_wrong_thresholds_in_a_config(own: object, words: str) -> None:
    values = CONFIG.to_dict()
    values["postprocess"]["class_conf"] = own
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_dict(values)


def test_training_drops_the_thresholds_of_the_old_weights(tmp_path: Path) -> None:
    from agssp_zoo.training.settings import TrainSettings
    from agssp_zoo.training.transfer import build_start

    start = with_own(models.default_config("yolov8_n", class_names=CLASSES), red=0.5)
    module = models.build(start)
    path = write_folder(
        tmp_path / "m", start, {"model.safetensors": lambda file: models.save_weights(module, file, start)}
    )
    made = build_start(TrainSettings(model=str(path)), ("scratch", "pit"))
    assert made.module.config.postprocess.class_conf == {}


# --- applied alike ----------------------------------------------------------------------------------------------------


def in_torch(pixels: np.ndarray, config: ModelConfig, conf: float | None = None) -> tuple[np.ndarray, ...]:
    y, x = np.mgrid[:32, :32].reshape(2, -1).astype(np.float32)
    scores = torch.from_numpy(pixels.reshape(1, -1, 3).astype(np.float32) / np.float32(255))
    post = config.postprocess
    found = models.select_detections(
        torch.from_numpy(np.stack([x, y, x + 1, y + 1], 1))[None],
        scores,
        conf=post.thresholds(CLASSES) if conf is None else conf,
        iou=post.iou,
        max_det=post.max_det,
        max_candidates=post.max_candidates,
        multi_label=post.multi_label,
    )
    return tuple(part.numpy() for part in found)


def test_a_class_of_a_low_threshold_keeps_its_place(folder: Path) -> None:
    """Five reds of 0.6 would fill the four places; below their own threshold of 0.7 they leave them to the blue one."""
    pixels = image(*[(153, 0, 0)] * 5, (0, 0, 51))
    detector = load_detector(folder)
    assert detector.predict(pixels)[0].labels.tolist() == [0] * 4
    set_thresholds(folder, {"red": 0.7, "blue": 0.1})
    (found,) = load_detector(folder).predict(pixels)
    assert found.labels.tolist() == [2] and found.scores == pytest.approx([0.2])
    assert in_torch(pixels, load_detector(folder).config)[3].tolist() == [1]
    (found,) = load_detector(folder).predict(pixels, conf=0.1)
    assert found.labels.tolist() == [0] * 4, "an explicit conf counts for all classes"


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("candidates", [30000, 40])
def test_the_graph_alone_answers_what_pytorch_answers(tmp_path: Path, multi_label: bool, candidates: int) -> None:
    """Without any threshold given, as a C++ program runs it."""
    post = Postprocess(
        max_det=30, multi_label=multi_label, max_candidates=candidates, class_conf={"red": 0.9, "green": 0.3}
    )
    config = CONFIG.replace(postprocess=post)
    write_onnx(tmp_path / "model.onnx", config)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for dark in (1, 4, 12):
        pixels = (generator.integers(0, 256, (1, 32, 32, 3)) // dark).astype(np.uint8)
        found = session.run(["boxes", "scores", "labels", "count"], {"images": pixels})
        expected = in_torch(pixels, config)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
        scores, labels = found[1][0, : found[3][0]], found[2][0, : found[3][0]]
        assert (scores > np.array(post.thresholds(CLASSES), np.float32)[labels]).all()
    assert found[3][0] == 0


def test_the_torch_module_drops_by_class(tmp_path: Path) -> None:
    from agssp_zoo.engines.pytorch import PyTorchEngine

    torch.manual_seed(0)
    config = models.default_config("yolov8_n", class_names=CLASSES)
    engine = PyTorchEngine(models.build(config.replace(postprocess=replace(config.postprocess, conf=0.0))))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    everything = engine.run(pixels)
    scores, labels = (part[0, : everything.count[0]] for part in (everything.scores, everything.labels))
    own = {name: float(np.median(scores[labels == i])) for i, name in enumerate(CLASSES)}
    engine.config = with_own(config, **own)
    found = engine.run(pixels)
    kept = scores > np.array(list(own.values()), np.float32)[labels]
    assert 0 < kept.sum() < len(kept)
    assert found.labels[0, : found.count[0]].tolist() == labels[kept].tolist()
    np.testing.assert_array_equal(found.scores[0, : found.count[0]], scores[kept])


def test_an_older_file_cannot_run_a_config_with_thresholds_of_classes(tmp_path: Path) -> None:
    write_old_onnx(tmp_path / "model.onnx")
    engine = OnnxEngine.load(tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="agssp-zoo export"):
        OnnxEngine.load(tmp_path / "model.onnx", config=with_own(engine.config, red=0.5))
    with pytest.raises(EngineError, match="agssp-zoo export"):
        set_thresholds(tmp_path / "model.onnx", {"red": 0.5})


# --- into the model ---------------------------------------------------------------------------------------------------


def test_only_thresholds_and_config_change_in_the_file(folder: Path) -> None:
    before = (folder / "model.onnx").read_bytes()
    files = set_thresholds(folder, {"red": 0.5, "blue": 0.125})
    assert sorted(file.name for file in files) == ["config.json", "model.onnx"]
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (tensor,) = (t for t in model.graph.initializer if t.name == "conf_threshold")
    assert onnx.numpy_helper.to_array(tensor).tolist() == [0.5, 0.25, 0.125]
    opened = ModelFolder.open(folder)
    assert opened.file("model.onnx") and opened.config.postprocess.class_conf == {"red": 0.5, "blue": 0.125}
    assert load_detector(folder / "model.onnx").config == opened.config
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.onnx",
    ]
    set_thresholds(folder, {})
    after = onnx.load_from_string((folder / "model.onnx").read_bytes())
    assert after == onnx.load_from_string(before) or _same_but_the_tensor(after, onnx.load_from_string(before))
    assert ModelFolder.open(folder).config == CONFIG


def test_the_suppression_changes_in_config_and_graph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["thresholds", str(folder), "--iou", "0.45"]) == 0
    assert "0.45" in capsys.readouterr().out
    assert ModelFolder.open(folder).config == CONFIG.replace(postprocess=replace(CONFIG.postprocess, iou=0.45))
    assert load_detector(folder / "model.onnx").config == ModelFolder.open(folder).config
    graph = onnx.load(folder / "model.onnx").graph
    found = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in graph.initializer if t.name.endswith("threshold")}
    assert found == {"conf_threshold": [0.25], "iou_threshold": [pytest.approx(0.45)]}
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)

    file = folder.parent / "thresholds.json"
    file.write_text('{"classes": {"red": 0.5}}')
    assert main(["thresholds", str(folder), str(file), "--iou", "0.5"]) == 2
    assert main(["thresholds", str(folder), str(file)]) == 0
    capsys.readouterr()
    assert main(["thresholds", str(folder), "--iou", "0.6"]) == 2
    assert "measured with IoU 0.45" in capsys.readouterr().err
    assert main(["thresholds", str(folder), "--iou", "1.5", "--remove"]) == 2
    assert ModelFolder.open(folder).config.postprocess.class_conf == {"red": 0.5}, "nothing was lost"
    assert main(["thresholds", str(folder), "--iou", "0.7", "--remove", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["iou"] == 0.7 and answer["class_names"] == list(CONFIG.class_names)
    assert ModelFolder.open(folder).config == CONFIG


def _same_but_the_tensor(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Equal, wherever and however the two tensors are stored."""
    values = []
    for model in (one, other):
        values.append([])
        for tensor in [t for t in model.graph.initializer if t.name in ("conf_threshold", "iou_threshold")]:
            values[-1].append((tensor.name, onnx.numpy_helper.to_array(tensor).tolist()))
            model.graph.initializer.remove(tensor)
    return values[0] == values[1] and one == other


def test_what_cannot_take_thresholds(folder: Path, tmp_path: Path) -> None:
    backbone = ModelConfig("resnet50.x", "resnet50", "backbone")
    write_folder(tmp_path / "backbone", backbone, {}, card="test")
    content = (folder / "model.onnx").read_bytes()
    (tmp_path / "short.onnx").write_bytes(content[:5000])
    (tmp_path / "no.onnx").write_bytes(b"\xff\xff\xff\xff\xff\xff")
    for model, words in (
        (tmp_path / "backbone", "only a detector"),
        (tmp_path / "nothing", "not a folder"),
        (tmp_path / "nothing.onnx", "no file"),
        (tmp_path / "short.onnx", "damaged"),
        (tmp_path / "no.onnx", "damaged"),
    ):
        with pytest.raises(AgsspZooError, match=words):
            set_thresholds(model, {})
    with pytest.raises(ConfigError, match="did you mean 'red'"):
        set_thresholds(folder, {"rad": 0.5})
    (folder / "model.onnx").write_bytes(content[:-1] + b"x")
    with pytest.raises(AgsspZooError, match="checksum"):
        set_thresholds(folder, {"red": 0.5})
    assert "class_conf" not in (folder / "config.json").read_text()


def test_a_damaged_file_is_told_without_a_traceback(tmp_path: Path) -> None:
    from agssp_zoo.onnx_file import with_thresholds

    write_onnx(tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    for data in (b"", b"\xff" * 20, content[:3000], content[: len(content) // 2], b"\x0b" + content):
        (tmp_path / "wrong.onnx").write_bytes(data)
        with pytest.raises(EngineError, match=r"wrong\.onnx"):
            with_thresholds(tmp_path / "wrong.onnx", (0.5,), 0.7, "{}")


# --- thresholds.json --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not valid JSON"), ("[]", "holds no thresholds"), ('{"classes": {}}', "holds no thresholds"),
     ('{"classes": {"red": 2}}', "'red' has the threshold 2"), ('{"classes": {"red": "x"}}', "0-1"),
     ('{"classes": {"red": {"threshold": 0.5, "reached": 1}}}', "reached"),
     ('{"schema_version": 2, "classes": {"red": 0.5}}', "pip install -U")],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        ThresholdFile.load(tmp_path / "t.json")
    with pytest.raises(ConfigError, match="agssp-zoo val"):
        ThresholdFile.load(tmp_path / "nothing.json")


def test_a_wish_that_was_not_reached_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        '{"classes": {"red": {"threshold": 0.5, "reached": true}, "green": {"threshold": 0.01, "reached": false},'
        ' "blue": {"threshold": null, "reached": null}}}'
    )
    file = ThresholdFile.load(path)
    with pytest.raises(InvalidArgumentError, match="not reached for green"):
        file.choose()
    assert file.choose("closest") == {"red": 0.5, "green": 0.01}
    assert file.choose("own") == {"red": 0.5}


def test_thresholds_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    values = {"classes": {"red": 0.5}, "size": 32, "iou": 0.7, "weights_sha256": "a"}
    for change, weights, words in (
        ({}, "b", "other weights"),
        ({"size": [32, 64]}, None, "size"),
        ({"iou": 0.5}, None, "agssp-zoo thresholds MODEL --iou 0.5`"),
        ({"classes": {"pink": 0.5}}, None, "no class 'pink'"),
    ):
        path.write_text(json.dumps(values | change))
        with pytest.raises(InvalidArgumentError, match=words):
            check_fits(ThresholdFile.load(path), CONFIG, weights)
    path.write_text(json.dumps(values))
    check_fits(ThresholdFile.load(path), CONFIG, "a")
    check_fits(ThresholdFile.load(path), CONFIG, None)


# --- chosen by val ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_thresholds_keep_the_wish_and_the_next_would_not(seed: int) -> None:
    """Counted by a plain loop over images, at every threshold between two scores."""
    truth, answers = random_case(seed, images=25, detections=25)
    metrics = evaluate(truth, answers, NAMES, resamples=0)
    images = len(truth)
    for label, curve in enumerate(metrics.curves[:3]):
        every = {
            float(t): greedy(truth, answers, label, float(t)) for t in curve.thresholds
        }  # threshold -> found, false alarms
        for rate in (0.2, 0.6):
            kept = [t for t, (found, _) in every.items() if curve.boxes - found <= rate * curve.boxes]
            one = outcome(curve, images, Wish(miss_rate=rate))
            assert one.reached == bool(kept)
            most = max(found for found, _ in every.values())
            assert one.threshold == max(kept or [t for t, (found, _) in every.items() if found == most])
            assert (curve.boxes - one.missed, one.false_alarms) == every[one.threshold]
        for rate in (0.1, 1.0):
            kept = [t for t, (found, alarms) in every.items() if alarms <= rate * images]
            most = max((every[t][0] for t in kept), default=0)
            one = outcome(curve, images, Wish(false_alarms=rate))
            assert one.reached == (most > 0)
            if one.reached:
                assert one.threshold == max(t for t in kept if every[t][0] == most)
                assert one.false_alarms_per_image <= rate
            else:
                assert one.threshold == max(t for t, (found, _) in every.items() if found)


def test_classes_without_boxes_and_without_detections() -> None:
    from random_cases import make

    truth = [make([(0, 0, 10, 10)], [0]), make([], [])]
    answers = [make([], [], []), make([(0, 0, 9, 9), (20, 20, 30, 30)], [1, 1], [0.5, 0.3])]
    missed, alarming, silent = evaluate(truth, answers, ("a", "b", "c"), resamples=0).curves
    for wish in (Wish(miss_rate=0.1), Wish(false_alarms=0.5)):
        assert (outcome(missed, 2, wish).threshold, outcome(missed, 2, wish).reached) == (None, False)
        assert (outcome(silent, 2, wish).threshold, outcome(silent, 2, wish).reached) == (None, None)
    assert outcome(alarming, 2, Wish(miss_rate=0.1)).reached is None
    half = outcome(alarming, 2, Wish(false_alarms=0.5))
    assert 0.3 <= half.threshold < 0.5 and half.reached and half.false_alarms == 1 and half.missed is None
    none = outcome(alarming, 2, Wish(false_alarms=0))
    assert none.threshold == 0.5 and none.reached and none.false_alarms == 0
    assert not np.float32(0.5) > np.float32(none.threshold)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"miss_rate": 1.0}, {"miss_rate": -0.1}, {"false_alarms": -1.0}, {"false_alarms": float("inf")},
     {"miss_rate": 0.1, "false_alarms": 0.1}],
)  # fmt: skip
def test_wishes_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError):
        Wish(**wrong)


def test_the_commands_from_measuring_to_predicting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yolo_folder(tmp_path / "data", CLASSES, [(0, 8, 8, 24, 24)])
    model = write_folder(tmp_path / "model", CONFIG, {"model.onnx": write_onnx}, card="test")
    arguments = ["val", "--data", str(data), "--model", str(model), "--out", str(tmp_path / "my out")]
    assert main([*arguments, "--false-alarms", "2"]) == 0
    file = tmp_path / "my out" / "thresholds.json"
    assert f"(put it into a model: agssp-zoo thresholds MODEL '{file}')" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["wish"]["false_alarms"] == 2 and list(written["classes"]) == list(CLASSES)
    assert (written["size"], written["iou"], written["data"]["split"], written["images"]) == (32, 0.7, "val", 5)
    red, green, _ = written["classes"].values()
    assert (red["threshold"], red["reached"], red["boxes"]) == (None, False, 5), "a pixel finds no box"
    assert green["reached"] and 0 < green["false_alarms_per_image"] <= 2 and green["missed"] is None

    assert main(["thresholds", str(model), str(file)]) == 2
    assert "red" in capsys.readouterr().err
    assert main(["thresholds", str(model), str(file), "--unreached", "own", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["class_conf"]
    assert own == {name: written["classes"][name]["threshold"] for name in ("green", "blue")}
    found = load_detector(model).predict(str(data / "images" / "val"), max_det=4)
    limits = np.array([0.25, own["green"], own["blue"]], np.float32)
    assert sum(map(len, found)) and all((one.scores > limits[one.labels]).all() for one in found)
    assert main(["thresholds", str(model)]) == 0 and "0.25 (conf)" in capsys.readouterr().out
    assert main(["thresholds", str(model), "--remove"]) == 0 and ModelFolder.open(model).config == CONFIG

    assert main([*arguments, "--iou", "0.6", "--false-alarms", "2"]) == 0
    capsys.readouterr()
    assert main(["thresholds", str(model), str(file), "--unreached", "own"]) == 2
    told = capsys.readouterr().err.partition("`agssp-zoo ")[2].partition("`")[0]
    assert main(told.replace("MODEL", str(model)).split()) == 0, "what the message says to do"
    assert main(["thresholds", str(model), str(file), "--unreached", "own"]) == 0
    assert load_detector(model).config.postprocess.iou == 0.6

    assert main([*arguments, "--single-class", "--miss-rate", "0.1"]) == 2
    assert main([*arguments, "--false-alarms", "1", "--miss-rate", "0.1"]) == 2
    assert main(["thresholds", "yolov8_n"]) == 2 and "agssp-zoo download" in capsys.readouterr().err
    assert main(["thresholds", str(model), str(file), "--remove"]) == 2
