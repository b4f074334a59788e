"""The two engines: choice, errors, thresholds; with a hand-made ONNX file and a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image

import agssp_zoo
from agssp_zoo import models
from agssp_zoo.config import ModelConfig, Postprocess, Preprocess
from agssp_zoo.detector import Detector, load_detector
from agssp_zoo.engines import load_engine
from agssp_zoo.engines.onnx import OnnxEngine
from agssp_zoo.errors import EngineError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.folder import ModelFolder, write_folder

CONFIG = ModelConfig(
    "yolov8_n.mean",
    "yolov8_n",
    "detector",
    class_names=("red", "green", "blue"),
    preprocess=Preprocess(size=64),
    postprocess=Postprocess(max_det=3, conf=0.25),
)

# By the contract: a detection for every channel, its score the channel's mean, its box the whole canvas; the score
# threshold is an initialiser that may be overridden, and the suppression's one shows as the last score when it is 0.
GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
means (uint8[batch, height, width, 3] images, float[1] conf_threshold, float[1] iou_threshold)
  => (float[batch, 3, 4] boxes, float[batch, 3] scores, int64[batch, 3] labels, int64[batch] count)
<float[1] conf_threshold = {0.25}, float[1] iou_threshold = {0.7}, int64[2] sides = {1, 2}, float white = {255},
 int64[1] two = {2}, int64[1] one = {1}, int64[1] three = {3}, float[2] zeros = {0, 0}, int64[1] turned = {1}>
{
  pixels = Cast <to = 1> (images)
  sums = ReduceMean <keepdims = 0> (pixels, sides)
  means = Div (sums, white)
  shape = Shape (means)
  scores, labels = TopK <axis = 1> (means, three)
  good = Greater (scores, conf_threshold)
  good_number = Cast <to = 7> (good)
  count = ReduceSum <keepdims = 0> (good_number, one)
  height = Shape <start = 1, end = 2> (images)
  width = Shape <start = 2, end = 3> (images)
  corner = Concat <axis = 0> (width, height)
  corner_float = Cast <to = 1> (corner)
  box = Concat <axis = 0> (zeros, corner_float)
  four = Shape (box)
  all = Concat <axis = 0> (shape, four)
  boxes = Expand (box, all)
}
"""


def write_onnx(path: Path, config: ModelConfig = CONFIG, /, **metadata: str) -> None:
    model = onnx.parser.parse_model(GRAPH)
    properties = {"config": config.to_json(), "contract_version": "1", "outputs": "detections", **metadata}
    onnx.helper.set_model_props(model, {key: value for key, value in properties.items() if value})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("a") / "mean", CONFIG, {"model.onnx": write_onnx}, card="test")


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory) -> Path:
    """A yolov8_n with drawn weights whose scores are not all alike."""
    torch.manual_seed(0)
    config = CONFIG.replace(name="yolov8_n.drawn", postprocess=Postprocess(max_det=20, conf=0.011))
    module = models.build(config)
    folder = tmp_path_factory.mktemp("b") / "drawn"
    return write_folder(
        folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)}, card="test"
    )


def color(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((32, 64, 3), (red, green, blue), np.uint8)


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def test_onnx_answers(onnx_folder):
    detector = load_detector(onnx_folder)
    assert detector.engine.name == "onnx" and detector.engine.max_det == 3
    (found,) = detector.predict(color(200, 100, 20))
    assert found.labels.tolist() == [0, 1] and found.scores == pytest.approx([200 / 255, 100 / 255])
    assert found.boxes.tolist() == [[0, 0, 64, 32]] * 2
    assert detector.predict(color(200, 100, 20), conf=0.5)[0].labels.tolist() == [0]
    assert detector.predict(color(200, 100, 20), conf=0.01)[0].labels.tolist() == [0, 1, 2]
    assert detector.predict(color(200, 100, 20), conf=0.0, max_det=1)[0].labels.tolist() == [0]
    assert [len(f) for f in detector.predict([color(200, 100, 20), color(0, 0, 255)], batch=2)] == [2, 1]
    with pytest.raises(InvalidArgumentError, match="exported for at most 3"):
        detector.predict(color(1, 1, 1), max_det=4)
    with pytest.raises(EngineError, match="engine='pytorch'"):
        _ = detector.model
    alone = load_detector(onnx_folder / "model.onnx")
    assert alone.names == CONFIG.class_names and len(alone.predict(color(200, 100, 20))[0]) == 2


def test_the_folders_config_counts(onnx_folder, tmp_path):
    """Names, size and thresholds may be changed in config.json; what the graph has in it may not."""
    path = onnx_folder / "model.onnx"
    changed = CONFIG.replace(
        class_names=("a", "b", "c"), preprocess=Preprocess(size=128), postprocess=Postprocess(max_det=3, conf=0.5)
    )
    (found,) = Detector(OnnxEngine.load(path, config=changed)).predict(color(200, 100, 20))
    assert [one.name for one in found] == ["a"]
    for other, words in (
        (CONFIG.replace(class_names=("a", "b")), "number of classes 3"),
        (CONFIG.replace(architecture="yolov8_s"), "architecture yolov8_n"),
        (CONFIG.replace(preprocess=Preprocess(mean=(1.0, 2.0, 3.0))), "mean"),
    ):
        with pytest.raises(EngineError, match=words):
            OnnxEngine.load(path, config=other)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"config": ""}, "not an ONNX file of agssp-zoo"),
        ({"contract_version": ""}, "not an ONNX file of agssp-zoo"),
        ({"contract_version": "2"}, "pip install -U"),
        ({"contract_version": "x"}, "pip install -U"),
        ({"outputs": "raw"}, "--raw"),
        ({"outputs": "features"}, "backbone"),
    ],
)
def test_files_that_are_not_ours(tmp_path, metadata, words):
    write_onnx(tmp_path / "model.onnx", **metadata)
    with pytest.raises(EngineError, match=words):
        load_detector(tmp_path / "model.onnx")


def test_damaged_files_and_other_graphs(onnx_folder, tmp_path):
    path = tmp_path / "model.onnx"
    for data in (b"", b"no protobuf at all", (onnx_folder / "model.onnx").read_bytes()[:900]):
        path.write_bytes(data)
        with pytest.raises(EngineError, match=r"model\.onnx") as caught:
            load_detector(path)
        assert "\n" not in str(caught.value)
    model = onnx.load(onnx_folder / "model.onnx")
    del model.graph.output[3]
    onnx.save(model, path)
    with pytest.raises(EngineError, match="inputs and outputs"):
        load_detector(path)


def test_a_provider_that_is_not_there_is_an_error(onnx_folder, monkeypatch):
    """Never the CPU instead, neither when ONNX Runtime lacks the provider nor when it cannot be brought up."""
    import onnxruntime

    for arguments in ({"device": "cuda"}, {"device": "cuda:1"}, {"providers": ["TensorrtExecutionProvider"]}):
        with pytest.raises(EngineError, match=r"(CUDA|Tensorrt)ExecutionProvider here; it has .*CPUExecutionProvider"):
            load_detector(onnx_folder, engine="onnx", **arguments)
    with pytest.raises(EngineError, match="tpu"):
        load_detector(onnx_folder, engine="onnx", device="tpu")
    with pytest.raises(EngineError, match=r"onnx: ONNX Runtime has no CUDA.*onnxruntime-gpu.*; pytorch: there is no"):
        load_detector(onnx_folder, device="cuda")
    with pytest.raises(EngineError, match=r"pip install tensorrt.*pytorch: (it knows no tensorrt|there is no)"):
        load_detector(onnx_folder, device="tensorrt")
    with pytest.raises(InvalidArgumentError, match="list"):
        load_detector(onnx_folder, providers="CPUExecutionProvider")
    assert load_detector(onnx_folder, providers=["CPUExecutionProvider"]).predict(color(255, 0, 0))[0].labels[0] == 0
    there = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    real = onnxruntime.InferenceSession

    def fall_back(path, options, providers):  # what ONNX Runtime does where CUDA's libraries are missing
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(EngineError, match="CUDAExecutionProvider cannot be used here"):
        load_detector(onnx_folder, device="cuda:0")


def test_threads_are_as_many_as_told(onnx_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = load_detector(onnx_folder).engine.model.session
    assert session.get_session_options().intra_op_num_threads == 1


def test_a_failing_run_is_one_error(onnx_folder):
    engine = load_engine(ModelFolder.open(onnx_folder), "onnx")
    with pytest.raises(EngineError, match=r"cannot be run on images of shape \(1, 32, 32, 4\)"):
        engine.run(np.zeros((1, 32, 32, 4), np.uint8))


def test_the_onnx_path_imports_no_torch(onnx_folder, tmp_path):
    Image.fromarray(color(200, 100, 20)).save(tmp_path / "a.jpg")
    Image.fromarray(color(200, 100, 20)).save(tmp_path / "b.png")
    script = (
        "import sys, agssp_zoo\n"
        f"found = agssp_zoo.load_detector({str(onnx_folder)!r}).predict({str(tmp_path)!r})\n"
        "found[0].plot()\n"
        "heavy = ('torch', 'torchvision', 'onnx', 'huggingface_hub', 'cv2', 'scipy', 'matplotlib')\n"
        "print(len(found), [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "2 []\n" and done.stderr == "", done.stderr


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def test_pytorch_answers(torch_folder):
    detector = load_detector(torch_folder)
    assert detector.engine.name == "pytorch" and isinstance(detector.model, torch.nn.Module)
    assert not detector.model.training and next(detector.model.parameters()).requires_grad
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    (found,) = detector.predict(image, conf=0.0)
    assert len(found) == 20 and (np.diff(found.scores) <= 0).all() and set(found.labels.tolist()) <= {0, 1, 2}
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= 100).all() and (found.boxes[:, 3] <= 60).all()
    assert len(detector.predict(image, conf=0.0, max_det=50)[0]) == 50, "PyTorch has no bound"
    assert len(detector.predict(image, conf=0.0, iou=0.0)[0]) < 20
    both = detector.predict([image, image[::-1]], conf=0.0, batch=2)
    assert np.allclose(both[0].scores, found.scores, atol=1e-5)
    threshold = float(found.scores[4])
    assert len(detector.predict(image, conf=threshold)[0]) == 4, "strictly above"


def test_training_shows_in_the_next_prediction_and_predicting_does_not_disturb_it(torch_folder):
    detector = load_detector(torch_folder)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = detector.predict(image, conf=0.0)[0].scores
    module = detector.model.train()
    module.backbone.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert np.array_equal(detector.predict(image, conf=0.0)[0].scores, before), "evaluated as it was"
    assert module.training and module.head.training and not module.backbone.training
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.mul_(1.1)
    assert not np.allclose(detector.predict(image, conf=0.0)[0].scores, before)
    module(torch.zeros(1, 3, 64, 64))[0][0].mean().backward()


def test_pytorch_errors(torch_folder, tmp_path):
    for device in ("cuda", "cuda:7", "tpu", "cpu:3x"):
        if device.startswith("cuda") and torch.cuda.is_available():
            continue
        with pytest.raises(EngineError, match=r"PyTorch has cpu"):
            load_detector(torch_folder, engine="pytorch", device=device)
    with pytest.raises(InvalidArgumentError, match="providers"):
        load_detector(torch_folder, engine="pytorch", providers=["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="pytorch: it has no providers"):
        load_detector(torch_folder, providers=["CPUExecutionProvider"])
    with pytest.raises(InvalidArgumentError, match="take the place of a device"):
        load_detector(torch_folder, device="cuda", providers=["CPUExecutionProvider"])
    with pytest.raises(InvalidArgumentError, match="choose 'auto', 'onnx' or 'pytorch' or 'openvino'"):
        load_detector(torch_folder, engine="tensorflow")
    with pytest.raises(EngineError, match="agssp-zoo export"):
        load_detector(torch_folder, engine="onnx")


# --- the choice -------------------------------------------------------------------------------------------------------


def test_auto_takes_the_first_that_serves(onnx_folder, torch_folder, monkeypatch):
    find_spec = agssp_zoo.engines.base.importlib.util.find_spec

    def without(*names):
        monkeypatch.setattr(
            agssp_zoo.engines.base.importlib.util, "find_spec", lambda name: None if name in names else find_spec(name)
        )

    both = torch_folder.parent / "both"
    config = ModelConfig.load(torch_folder)
    files = {
        "model.onnx": lambda path: write_onnx(path, config),
        "model.safetensors": lambda path: path.write_bytes((torch_folder / "model.safetensors").read_bytes()),
    }
    write_folder(both, config, files, card="test", overwrite=True)
    assert load_detector(both).engine.name == "onnx"
    assert load_detector(both, engine="pytorch").engine.name == "pytorch"
    without("onnxruntime")
    assert load_detector(both).engine.name == "pytorch"
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        load_detector(both, engine="onnx")
    with pytest.raises(EngineError, match="onnxruntime is not installed"):
        load_detector(onnx_folder)
    without("torch")
    with pytest.raises(EngineError, match=r"no model\.onnx; pytorch: torch is not installed"):
        load_detector(torch_folder)
    with pytest.raises(MissingDependencyError, match=r"agssp-zoo\[torch\]"):
        load_detector(torch_folder, engine="pytorch")


def test_a_backbone_is_no_detector(tmp_path):
    config = ModelConfig("resnet50.x", "resnet50", "backbone")
    folder = write_folder(tmp_path / "r", config, {"model.onnx": lambda path: path.write_bytes(b"")}, card="test")
    with pytest.raises(InvalidArgumentError, match="load_backbone"):
        load_detector(folder)
    assert json.loads((folder / "config.json").read_text())["task"] == "backbone"
