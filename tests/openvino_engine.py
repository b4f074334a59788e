"""OpenVINO: the same answers as ONNX Runtime from the same file, its precisions, and its errors."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from test_engines import CONFIG, color, write_onnx
from test_export import open_session
from trained_detector import surfaces, trained_folder

from agssp_zoo import load_detector
from agssp_zoo.detector import Detector
from agssp_zoo.errors import EngineError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.folder import write_folder
from agssp_zoo.onnx_file import without_initializers

pytest.importorskip("openvino")

from agssp_zoo.engines import openvino as openvino_module
from agssp_zoo.engines.openvino import PRECISIONS, STATIC_SIZES, OpenVinoEngine

SCORE, PIXELS = 1e-4, 0.05
"""Largest differences from ONNX Runtime in float32."""
SCORE_BF16 = 0.03
"""Largest difference of the best scores in bfloat16."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("openvino") / "detector") / "model.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("f") / "mean", CONFIG, {"model.onnx": write_onnx}, card="test")


def bfloat16_here() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_the_contract(folder):
    detector = load_detector(folder, engine="openvino", precision="float32")
    assert detector.engine.name == "openvino" and detector.engine.max_det == 3 and detector.names == CONFIG.class_names
    (found,) = detector.predict(color(200, 100, 20))
    assert found.labels.tolist() == [0, 1] and found.scores == pytest.approx([200 / 255, 100 / 255], abs=1e-4)
    assert found.boxes.tolist() == [[0, 0, 64, 32]] * 2
    assert detector.predict(color(200, 100, 20), conf=0.5)[0].labels.tolist() == [0]
    assert detector.predict(color(200, 100, 20), conf=0.01)[0].labels.tolist() == [0, 1, 2]
    assert [len(f) for f in detector.predict([color(200, 100, 20), color(0, 0, 255)], batch=2)] == [2, 1]
    with pytest.raises(InvalidArgumentError, match="at most 3"):
        detector.predict(color(1, 1, 1), max_det=4)
    with pytest.raises(EngineError, match="engine='pytorch'"):
        _ = detector.model
    alone = load_detector(folder / "model.onnx", engine="openvino")
    assert len(alone.predict(color(200, 100, 20))[0]) == 2


def test_the_same_answers_as_onnx_runtime(file):
    """Thresholds included, which OpenVINO by itself would take for constants, also inside the loop."""
    engine, session = OpenVinoEngine(file, precision="float32"), open_session(file)
    for size in ((1, 192, 256), (3, 96, 160)):
        images = surfaces(size[0], size[1:])
        for conf, iou in ((None, None), (0.005, 0.3), (0.6, 0.9)):
            thresholds = {"conf_threshold": np.float32([conf or 0.25]), "iou_threshold": np.float32([iou or 0.7])}
            feeds = {"images": images, **thresholds}
            boxes, scores, labels, count = session.run(["boxes", "scores", "labels", "count"], feeds)
            found = engine.run(images, conf=conf, iou=iou)
            assert found.count.tolist() == count.tolist() and (conf != 0.005 or count.min() > 0)
            assert np.abs(found.scores - scores).max() < SCORE and np.abs(found.boxes - boxes).max() < PIXELS
            assert (found.labels == labels).mean() > 0.98
            assert found.labels.dtype == np.int64 and found.boxes.dtype == np.float32


def test_further_sizes_run_in_one_network(file):
    engine, session = OpenVinoEngine(file, precision="float32"), open_session(file)
    for number in range(STATIC_SIZES + 2):
        images = surfaces(1, (64 + 32 * number, 64))
        found = engine.run(images)
        assert np.abs(found.scores - session.run(["scores"], {"images": images})[0]).max() < SCORE
    assert len(engine._of_size) == STATIC_SIZES


def test_threads_get_the_answers_to_their_own_images(file):
    """Of sizes that each have a network, and of one that has none."""
    engine = OpenVinoEngine(file, precision="float32")
    images = [
        *surfaces(4, (192, 256))[:, None],
        *(surfaces(1, (64 + 32 * number, 64)) for number in range(STATIC_SIZES)),
    ]
    alone = [engine.run(image, conf=0.005) for image in images]
    assert len({answer.scores.tobytes() for answer in alone}) == len(images)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda image: engine.run(image, conf=0.005), images * 6))
    for found, expected in zip(together, alone * 6, strict=True):
        assert np.array_equal(found.labels, expected.labels) and np.abs(found.scores - expected.scores).max() < SCORE
    before = together[0].boxes.copy()
    engine.run(images[1], conf=0.005)
    assert np.array_equal(together[0].boxes, before), "an answer is the caller's own"


@pytest.mark.skipif(not bfloat16_here(), reason="this CPU has no bfloat16")
def test_bfloat16_is_taken_where_the_cpu_has_it_and_is_quick_in_it(file, monkeypatch):
    for gain, precision in ((1.8, "bfloat16"), (0.6, "float32")):
        monkeypatch.setattr(openvino_module, "_gain", lambda _, gain=gain: gain)
        assert OpenVinoEngine(file).precision == precision
    monkeypatch.undo()
    assert (OpenVinoEngine(file).precision == "bfloat16") == (openvino_module._gain("bfloat16") > 1)
    assert 0.05 < openvino_module._gain("bfloat16") < 20
    engine, exact = OpenVinoEngine(file, precision="bfloat16"), OpenVinoEngine(file, precision="float32")
    assert engine.precision == "bfloat16" and exact.precision == "float32"
    images = surfaces(1, (192, 256))
    one, other = (Detector(e).predict(images[0], size=(192, 256), conf=0.01)[0] for e in (exact, engine))
    assert len(one) > 4 and abs(len(one) - len(other)) <= 2
    assert np.abs(one.scores[:4] - other.scores[:4]).max() < SCORE_BF16
    assert not np.array_equal(one.scores, other.scores), "else it would not have been bfloat16"


def test_what_is_not_there(folder, file, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match="OpenVINO has cpu"):
        load_detector(folder, engine="openvino", device="npu:7")
    with monkeypatch.context() as patched:  # some CPUs do have it
        patched.setitem(PRECISIONS, "float16", ("FP16 of nobody", "f16"))
        with pytest.raises(EngineError, match=r"float16.*computes in float32"):
            load_detector(folder, engine="openvino", precision="float16")
    with pytest.raises(EngineError, match=r"no model\.int8\.onnx; make it with .* --int8 --calibration DIR"):
        load_detector(folder, engine="openvino", precision="int8")
    with pytest.raises(InvalidArgumentError, match="providers"):
        load_detector(folder, engine="openvino", providers=["CPUExecutionProvider"])
    with pytest.raises(InvalidArgumentError, match="providers"):
        load_detector(file, engine="openvino", providers=["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="cannot be run on images of shape"):
        load_detector(folder, engine="openvino").engine.run(np.zeros((1, 32, 32, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'agssp-zoo\[openvino\]'"):
        load_detector(file, engine="openvino")
    monkeypatch.setattr("agssp_zoo.engines.base.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'agssp-zoo\[openvino\]'"):
        load_detector(folder, engine="openvino")


def test_damaged_files_and_files_that_are_not_ours(file, tmp_path):
    path = tmp_path / "model.onnx"
    for data in (b"", b"no protobuf at all", file.read_bytes()[:900]):
        path.write_bytes(data)
        with pytest.raises(EngineError, match=r"model\.onnx") as caught:
            OpenVinoEngine(path)
        assert "\n" not in str(caught.value)
    for metadata, words in (
        ({"config": ""}, "not an ONNX file of agssp-zoo"),
        ({"contract_version": "2"}, "pip install -U"),
        ({"outputs": "raw"}, "export the detector"),
    ):
        write_onnx(path, **metadata)
        with pytest.raises(EngineError, match=words):
            OpenVinoEngine(path)
    write_onnx(path)
    with pytest.raises(EngineError, match="number of classes 3"):
        OpenVinoEngine(path, config=CONFIG.replace(class_names=("a",)))
    with pytest.raises(EngineError, match="cannot be read"):
        OpenVinoEngine(tmp_path / "none.onnx")


def test_leaving_initialisers_out_of_a_file(file, tmp_path):
    model = onnx.load_from_string(b"".join(without_initializers(file, ["conf_threshold", "nothing"])))
    expected = onnx.load(file)
    (dropped,) = (t for t in expected.graph.initializer if t.name == "conf_threshold")
    expected.graph.initializer.remove(dropped)
    assert model == expected
    assert b"".join(without_initializers(file, [])) == file.read_bytes()
    damaged = tmp_path / "damaged.onnx"
    for wrong in (file.read_bytes()[:-3], b"\x3a\xff", b"\x0b"):
        damaged.write_bytes(wrong)
        with pytest.raises(EngineError, match="damaged"):
            without_initializers(damaged, ["a"])


def test_it_is_imported_only_when_asked_for(folder):
    code = (
        "import sys, agssp_zoo; agssp_zoo.load_detector(sys.argv[1]); print('openvino' in sys.modules); "
        "agssp_zoo.load_detector(sys.argv[1], engine='openvino'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout == "False\nFalse\n" and done.stderr == "", done.stderr
