"""Quantising to 8 bits: the same contract, nearly the same answers, and nothing written when they are not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from older_export import write_older  # noqa: E402
from test_export import lively, open_session  # noqa: E402
from trained_detector import surfaces, trained_folder, write_surfaces  # noqa: E402

from agssp_zoo import cli, load_detector  # noqa: E402
from agssp_zoo.config import ModelConfig, Postprocess, Preprocess  # noqa: E402
from agssp_zoo.detector import Detector  # noqa: E402
from agssp_zoo.engines.base import RawDetections  # noqa: E402
from agssp_zoo.errors import DataError, EngineError, ExportError, InvalidArgumentError  # noqa: E402
from agssp_zoo.export import Int8Settings, export_int8, export_onnx  # noqa: E402
from agssp_zoo.export.calibration import BINS, CalibrationImages, Histogram, choose_ranges  # noqa: E402
from agssp_zoo.export.int8_graph import Plan, merge_columns, plan, prepare  # noqa: E402
from agssp_zoo.export.judges import Agreement, Judgement  # noqa: E402
from agssp_zoo.export.quantize import no_progress  # noqa: E402
from agssp_zoo.folder import ModelFolder, sha256_file, write_folder  # noqa: E402
from agssp_zoo.training.synthetic import write_dataset  # noqa: E402

QUICK = Int8Settings(max_drop=20, methods=("minmax",), images=(8,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("int8") / "detector")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Drawn surfaces, and files that are none."""
    path = write_surfaces(tmp_path_factory.mktemp("images"), 12)
    (path / "broken.png").write_bytes(b"no image")
    (path / "notes.txt").write_text("no image either")
    return path


@pytest.fixture(scope="module")
def quantized(folder, images):
    return export_int8(folder, images, settings=QUICK)


def files(path) -> set[str]:
    return {one.name for one in path.iterdir()}


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_keeps_the_contract(folder, quantized):
    assert quantized.path == folder / "model.int8.onnx"
    sums = json.loads((folder / "checksums.json").read_text())
    assert sums["model.int8.onnx"] == sha256_file(quantized.path)
    assert quantized.path.stat().st_size < 0.35 * (folder / "model.onnx").stat().st_size
    one, other = (open_session(folder / name) for name in ("model.onnx", "model.int8.onnx"))
    for entries in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        described = [[(e.name, e.type, e.shape) for e in getattr(s, entries)()] for s in (one, other)]
        assert described[0] == described[1]
    before, after = (session.get_modelmeta().custom_metadata_map for session in (one, other))
    assert before.items() <= after.items() and after["precision"] == "int8"
    stored = json.loads(after["calibration"])
    assert stored.pop("rounding") == quantized.chosen.rounding
    assert stored == {"method": "minmax", "images": 8, "full_range": False}
    model = onnx.load(quantized.path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]


def test_it_answers_nearly_as_before_in_any_batch_and_size(folder, quantized):
    session, reference = open_session(quantized.path), open_session(folder / "model.onnx")
    # As large as the detector is meant to see things; several, for one image has a handful of detections.
    for size in ((4, 320, 320), (6, 288, 320)):
        images = surfaces(size[0], size[1:])
        feeds = {"images": images, "conf_threshold": np.array([0.01], np.float32)}
        boxes, scores, _, count = session.run(["boxes", "scores", "labels", "count"], feeds)
        expected = reference.run(["boxes", "scores", "labels", "count"], feeds)
        assert abs(int(count.sum()) - int(expected[3].sum())) <= 0.15 * expected[3].sum()
        assert np.abs(scores[:, :10] - expected[1][:, :10]).max() < 0.1
        assert (boxes[:, :10] >= -8).all()
    strict = session.run(["count"], {"images": images, "conf_threshold": np.array([0.999], np.float32)})
    assert strict[0].tolist() == [0] * 6, "thresholds can still be given"
    few = session.run(["count"], feeds | {"iou_threshold": np.array([0.0], np.float32)})[0]
    assert few.sum() < count.sum()


def test_what_is_quantised(quantized):
    """All but the last convolutions, which end in decoding; weights an output channel each, in 7 bits."""
    model = onnx.load(quantized.path)
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    floats = [node for node in convolutions if node.input[1] not in makers]
    # Eight CSP layers make their halves apart, two of them each of two maps.
    assert len(floats) == 6 and len(convolutions) == 63 + 8 + 4
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in convolutions:
        if node in floats:
            assert constants[node.input[1]].shape[2:] == (1, 1)
            continue
        weight, scale = (constants[name] for name in makers[node.input[1]].input[:2])
        assert weight.dtype == np.int8 and len(scale) == len(weight) and abs(weight.astype(int)).max() <= 64
    assert not any(n.op_type == "Resize" for n in model.graph.node), "upsampling copies bytes"
    (first,) = (n for n in convolutions if n.input[0] in makers and makers[n.input[0]].input[0] == "int8/planes")
    assert constants[makers[first.input[0]].input[1]] == pytest.approx(1 / 255), "pixels are taken as they are"


def test_full_range_weights(folder, images, tmp_path):
    result = export_int8(
        folder / "model.onnx",
        images,
        tmp_path / "full.onnx",
        settings=Int8Settings(max_drop=20, methods=("minmax",), images=(4,), full_range=True),
    )
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer]
    assert max(abs(w.astype(int)).max() for w in weights if w.dtype == np.int8) == 127


def test_loading_it(folder, quantized):
    alone = load_detector(quantized.path)
    of_folder = load_detector(folder, precision="int8")
    image = surfaces(1)[0]
    one, other = (detector.predict(image, conf=0.1, iou=0.5)[0] for detector in (alone, of_folder))
    assert np.array_equal(one.scores, other.scores)
    assert of_folder.engine.model.path.name == "model.int8.onnx"
    assert load_detector(folder).engine.model.path.name == "model.onnx"
    assert "\n- `model.int8.onnx`\n" in ModelFolder.open(folder).file("README.md").read_text()
    with pytest.raises(InvalidArgumentError, match="model folders"):
        load_detector(quantized.path, precision="int8")
    with pytest.raises(EngineError, match=r"no model\.fp16\.onnx; make it with `agssp-zoo export .* --fp16`"):
        load_detector(folder, engine="onnx", precision="float16")
    with pytest.raises(InvalidArgumentError, match="'openvino' has"):
        load_detector(folder, engine="onnx", precision="bfloat16")
    with pytest.raises(InvalidArgumentError, match="choose one of"):
        load_detector(folder, precision="int4")


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_the_best_calibration_is_kept(folder, images, tmp_path):
    settings = Int8Settings(max_drop=40, methods=("percentile 99.99", "entropy", "minmax"), images=(8, 2))
    result = export_int8(folder, images, tmp_path / "a.onnx", settings=settings)
    assert [(t.method, t.images) for t in result.trials[:3]] == [(m, 8) for m in settings.methods]
    assert [t.fitted for t in result.trials[:4]] == [True] * 3 + [False] and result.trials[3].images == 8
    first = max(result.trials[:3], key=lambda t: t.judgement.rank)
    assert result.trials[3].method == first.method and len(result.trials) == 5 and result.trials[4].images == 2
    best = max(result.trials, key=lambda t: t.judgement.rank)
    assert result.chosen == best and result.after == best.judgement and result.measure == "agreement"
    assert result.before.points == 100 and result.before.map50 is None
    assert result.drop == pytest.approx(100 - best.judgement.points)
    stored = onnx.load(result.path).metadata_props
    chosen = json.loads(next(entry.value for entry in stored if entry.key == "calibration"))
    assert chosen["method"] == best.method and chosen["images"] == best.images
    assert chosen["rounding"] == best.rounding


def test_a_file_within_the_limit_goes_before_a_better_one_without(folder, images, tmp_path, monkeypatch):
    """What falls by more than is allowed is no choice, whatever else it is good at."""
    worth = iter([(30.0, 60.0), (29.0, 90.0), (29.9, 50.0), (29.8, 55.0)])  # float, then each trial

    def measured(self, detector):
        points, map50 = next(worth)
        return Judgement(points, (points + map50,), map50)

    monkeypatch.setattr("agssp_zoo.export.judges.Labels.measured", measured)
    data = write_dataset(tmp_path / "data", 2, seed=3, size=(64, 64), splits={"val": 1.0})
    settings = Int8Settings(methods=("entropy", "minmax"), images=(4,))
    result = export_int8(folder, images, tmp_path / "a.onnx", validation=data, settings=settings)
    assert [t.judgement.points for t in result.trials] == [29.0, 29.9, 29.8]
    assert result.trials[2].method == "minmax", "the other one falls by a whole point"
    assert result.chosen == result.trials[2] and result.after.map50 == 55, "of two within the limit, the better in both"


def test_labels_measure_map(folder, images, tmp_path):
    data = write_dataset(tmp_path / "data", 12, seed=3, size=(200, 200), style="neu", splits={"val": 1.0})
    result = export_int8(folder, images, tmp_path / "a.onnx", validation=data, settings=QUICK)
    assert result.measure == "map50_95" and 1 < result.before.points < 100
    assert abs(result.drop) < 10 and result.before.points < result.before.map50 < 100
    with pytest.raises(DataError, match="test"):
        export_int8(folder, images, tmp_path / "b.onnx", validation=data, settings=Int8Settings(split="test"))
    assert files(tmp_path) == {"data", "a.onnx"}


def test_too_much_worse_is_not_written(folder, images, tmp_path, monkeypatch, capsys):
    def useless(histograms, plan, method):
        return {name: (0.0, 1e-3) for name in plan.tensors}

    monkeypatch.setattr("agssp_zoo.export.quantize.choose_ranges", useless)
    before = files(folder), sha256_file(folder / "model.onnx")
    arguments = ["export", str(folder), "--int8", "--calibration", str(images), "--out", str(tmp_path / "new.onnx")]
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert "agreement with the float model falls from 100.00 to" in message and "0.5 are allowed" in message
    assert "--full-range" in message and message.count("\n") == 1
    assert files(tmp_path) == set() and (files(folder), sha256_file(folder / "model.onnx")) == before


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no image to calibrate"),
        (lambda path: (path / "a.png").write_bytes(b"none"), r"no image to calibrate.*a\.png"),
        (lambda path: [Image.new("RGB", (50, 50)).save(path / f"{i}.png") for i in range(3)], "All 3 .* alike"),
        (lambda path: path.rmdir(), "no image to calibrate"),
    ],
)
def test_calibration_images_that_are_none_or_all_alike(folder, tmp_path, write, words):
    (tmp_path / "images").mkdir()
    write(tmp_path / "images")
    with pytest.raises(DataError, match=words):
        export_int8(folder, tmp_path / "images", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_float_model_that_finds_nothing_is_no_measure(folder, tmp_path):
    for i in range(4):
        Image.new("RGB", (50, 50), (i, i, i)).save(tmp_path / f"{i}.png")
    config = ModelConfig.load(folder)
    deaf = config.replace(postprocess=type(config.postprocess)(conf=0.9999))
    write_folder(tmp_path / "deaf", deaf, {"model.onnx": lambda p: p.write_bytes((folder / "model.onnx").read_bytes())})
    with pytest.raises(ExportError, match="detects nothing"):
        export_int8(tmp_path / "deaf", tmp_path)


def test_the_agreement_counts_by_the_threshold_of_each_class():
    """The first class has 0.1, the second 0.8; ``conf`` holds for neither."""

    class Fixed:
        name, max_det = "fixed", 4
        config = ModelConfig(
            *("yolov8_n.fixed", "yolov8_n", "detector"),
            class_names=("low", "high"),
            postprocess=Postprocess(conf=0.5, class_conf={"low": 0.1, "high": 0.8}),
        )

        def __init__(self, *rows: tuple[float, float, int]) -> None:
            self.rows = sorted(rows, key=lambda row: -row[1])

        def run(self, images, *, conf=None, iou=None, max_det=None, sizes=None):
            rows = [row for row in self.rows if row[1] > conf]
            boxes = np.array([[[left, 0, left + 10, 10] for left, _, _ in rows]], np.float32).reshape(1, -1, 4)
            scores = np.array([[score for _, score, _ in rows]], np.float32)
            labels = np.array([[label for _, _, label in rows]], np.int64)
            return RawDetections(boxes, scores, labels, np.array([len(rows)]))

    image = np.zeros((1, 32, 32, 3), np.uint8)
    judge = Agreement(image, Detector(Fixed((0, 0.2, 0), (40, 0.6, 1))), no_progress)
    assert judge.measured(Detector(Fixed((0, 0.2, 0)))).points == 100, "0.6 lies below the second class's 0.8"
    assert judge.measured(Detector(Fixed((0, 0.06, 0)))).points == 100, "slipped under the threshold"
    assert judge.measured(Detector(Fixed((0, 0.04, 0)))).points == 0, "lost"
    assert judge.measured(Detector(Fixed((0, 0.2, 0), (80, 0.9, 1)))).points == pytest.approx(200 / 3), "one too many"
    with pytest.raises(ExportError, match="detects nothing"):
        Agreement(image, Detector(Fixed((40, 0.6, 1))), no_progress)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--int8"], "needs --calibration"),
        (["--calibration", "x"], "for --int8"),
        (["--validation", "x"], "for --int8"),
        (["--int8", "--calibration", "x", "--fp16"], "one of them"),
        (["--fp16", "--opset", "19"], "--opset"),
        (["--int8", "--calibration", "x", "--max-drop", "-1"], "max_drop"),
    ],
)
def test_arguments_that_contradict_each_other(folder, arguments, words, capsys):
    assert cli.main(["export", str(folder), *arguments]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(InvalidArgumentError):
        Int8Settings(methods=("guess",))


def test_the_float_file_is_not_written_over(folder, images, capsys):
    before = (folder / "model.onnx").read_bytes()
    for model in (folder, folder / "model.onnx"):
        words = ["export", model, "--int8", "--calibration", images, "--out", folder / "model.onnx"]
        assert cli.main(list(map(str, words))) == 2
        assert "made of and would be lost" in capsys.readouterr().err
    assert (folder / "model.onnx").read_bytes() == before


def test_only_float_files_of_detectors_are_quantised(quantized, images, tmp_path):
    with pytest.raises(ExportError, match="in int8 already"):
        export_int8(quantized.path, images, tmp_path / "a.onnx")
    with pytest.raises(EngineError, match="no file"):
        export_int8(tmp_path / "none.onnx", images, tmp_path / "a.onnx")
    export_onnx(lively("cspdarknet_n"), tmp_path / "backbone.onnx", verify=False)
    with pytest.raises(ExportError, match="only YOLOv8 detectors"):
        export_int8(tmp_path / "backbone.onnx", images, tmp_path / "a.onnx")


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "pad"), [(3, 1), (6, 2), (7, 3), (2, 0)])
def test_merging_columns_changes_no_answer(kernel, pad):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, kernel, kernel, generator=generator)
    image = torch.randn(2, 3, 12, 16, generator=generator)
    expected = torch.nn.functional.conv2d(image, weight, stride=2, padding=pad)
    merged, before, after = merge_columns(weight.numpy(), pad)
    wide = image.permute(0, 2, 3, 1).reshape(2, 12, 4, 12).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(wide, (before, after, pad, pad))
    found = torch.nn.functional.conv2d(padded, torch.from_numpy(merged), stride=(2, 1))
    found = found.permute(0, 2, 3, 1).reshape(2, *expected.shape[2:], 5).permute(0, 3, 1, 2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_preparing_changes_no_answer(folder):
    model = onnx.load(folder / "model.onnx")
    prepared = prepare(model)
    assert any(node.name == "int8/wide" for node in prepared.graph.node)
    feeds = {"images": surfaces(2, (96, 128)), "conf_threshold": np.array([0.01], np.float32)}
    names = ["boxes", "scores", "count"]
    expected = open_session(folder / "model.onnx").run(names, feeds)
    for one, other in zip(expected, open_session(prepared.SerializeToString()).run(names, feeds), strict=True):
        assert np.allclose(one, other, atol=2e-3)
    todo = plan(prepared)
    assert todo.fixed == {"int8/unit": (0.0, pytest.approx(1.0))}
    assert len(todo.floors) == 57 + 8 and not set(todo.tensors) & {"all_scores", "box", "logits"}


def test_files_that_decode_all_boxes(tmp_path):
    """As exported before: with other nodes, and decoding in float32, too."""
    model = onnx.load(write_older(lively("yolov8_n"), tmp_path / "older.onnx"))
    todo = plan(prepare(model))
    assert "network/scores" in {name for node in model.graph.node for name in node.output}
    assert len(todo.floors) == 57 and not set(todo.tensors) & {"network/scores", "network/boxes"}


def test_histograms_grow_and_give_ranges():
    histogram = Histogram()
    generator = np.random.default_rng(0)
    for scale in (0.5, 1.0, 7.0):  # the range doubles on the way
        histogram.add((scale * generator.standard_normal((1, 4, 60, 60))).astype(np.float32))
    assert histogram.counts.shape == (BINS,) and histogram.counts.sum() == 3 * 4 * 60 * 60
    low, high = histogram.range("minmax")
    assert histogram.low == low < -20 and high == histogram.high > 20
    narrow = histogram.range("percentile 99.99")
    assert low < narrow[0] < 0 < narrow[1] < high
    assert histogram.range("percentile 99.999")[1] >= narrow[1]
    assert 0 < histogram.range("entropy")[1] <= high
    positive = Histogram()
    positive.add(np.abs(generator.standard_normal((1, 1, 100))).astype(np.float32))
    assert all(positive.range(method)[0] == 0 for method in ("minmax", "percentile 99.99", "entropy")), "0 is in it"
    nothing = Histogram()
    nothing.add(np.zeros((1, 1, 5), np.float32))
    assert nothing.range("entropy") == (0, 0)


def test_groups_share_the_widest_range_and_floors_cut_it():
    made = {name: Histogram(np.ones(BINS, np.int64), 9.0, low, 5.0) for name, low in (("a", -9.0), ("b", -1), ("c", 0))}
    one = Plan((), ("a", "b", "c", "d"), (("b", "c"),), {"d": (0.0, 1.0)}, {"a": -8.0})
    assert choose_ranges(made, one, "minmax") == {"a": (-8, 5), "b": (-1, 5), "c": (-1, 5), "d": (0, 1)}


def test_calibration_images_are_letterboxed_and_drawn_evenly(images):
    some = CalibrationImages(images, Preprocess(size=64), 5)
    assert len(some) == 5 and some[0].dtype == np.uint8 and max(some[0].shape) == 64
    assert len(some[1:3]) == 2 and np.array_equal(some[1:3][0], some[1])
    again = CalibrationImages(images, Preprocess(size=64), 5)
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True)), "the same ones every time"
    assert len(CalibrationImages(images, Preprocess(size=64), 100)) == 12, "broken ones are left out"
    pattern = CalibrationImages(images.parent / "**" / images.name / "*", Preprocess(size=64), 5)
    assert all(np.array_equal(a, b) for a, b in zip(some, pattern, strict=True)), "not the first ones"
    with pytest.raises(DataError, match=r"for those in its sub-folders give .*/\*\*/\*'"):
        CalibrationImages(images.parent, Preprocess(size=64), 5)
