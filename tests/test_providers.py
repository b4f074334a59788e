"""ONNX Runtime's execution providers: by name, there or an error, and what is said about what is installed."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from test_engines import CONFIG, write_onnx

from agssp_zoo import load_detector
from agssp_zoo.engines import providers
from agssp_zoo.errors import EngineError, InvalidArgumentError


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("providers") / "model.onnx"
    write_onnx(path, CONFIG)
    return path


def distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def everything(monkeypatch):
    """An ONNX Runtime that was built with every provider."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.mark.parametrize(
    ("arguments", "missing", "install"),
    [
        ({"device": "cuda"}, "CUDAExecutionProvider", r"onnxruntime-gpu\[cuda,cudnn\]"),
        ({"device": "tensorrt:0"}, "TensorrtExecutionProvider, CUDAExecutionProvider", "pip install tensorrt"),
        ({"providers": ["tensorrt"]}, "TensorrtExecutionProvider", "pip install tensorrt"),
        ({"providers": [("CUDA", {"device_id": 0})]}, "CUDAExecutionProvider", "onnxruntime-gpu"),
        ({"providers": ["dml", "cpu"]}, "DmlExecutionProvider", "onnxruntime-directml"),
        ({"providers": ["OpenVINOExecutionProvider"]}, "OpenVINOExecutionProvider", "engine='openvino'"),
        ({"providers": ["NoSuchProvider"]}, "NoSuchProvider", "Check the name"),
    ],
)
def test_one_that_is_not_there_says_what_to_install(file, monkeypatch, arguments, missing, install):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=f"no {missing} here; it has CPUExecutionProvider.*{install}"):
        load_detector(file, **arguments)


@pytest.mark.parametrize("wrong", [None, 3, ("cuda",), ("cuda", None), (None, {}), ("cuda", {}, {})])
def test_what_is_no_provider(file, wrong):
    with pytest.raises(InvalidArgumentError, match=r"providers holds .*; give names, such as 'cuda', or"):
        load_detector(file, providers=["cpu", wrong])


def test_one_that_the_session_drops_is_an_error(file, everything, monkeypatch):
    """What ONNX Runtime does with a warning only: it goes on with the CPU."""
    real = onnxruntime.InferenceSession
    asked = []

    def fall_back(path, options, providers):
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(EngineError, match=r"CUDAExecutionProvider cannot be used.*CPUExecutionProvider, which was not"):
        load_detector(file, device="cuda:1")
    assert asked == [[("CUDAExecutionProvider", {"device_id": 1})]]
    with pytest.raises(EngineError, match="TensorrtExecutionProvider, CUDAExecutionProvider cannot be used"):
        load_detector(file, device="tensorrt")
    with pytest.raises(EngineError, match="ROCMExecutionProvider cannot be used"):
        load_detector(file, providers=["rocm", "cpu"])
    with pytest.raises(EngineError, match="knows 'cpu', 'cuda'"):
        load_detector(file, device="cpu:1")


def test_cudas_libraries_are_looked_for_where_pip_puts_them(monkeypatch):
    called = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: called.append(print("noise")), raising=False)
    providers.load_libraries(["CPUExecutionProvider"])
    assert not called
    providers.load_libraries(["CUDAExecutionProvider"])
    assert len(called) == 1


def test_two_distributions_side_by_side_are_explained(file, tmp_path, monkeypatch):
    assert providers.side_by_side([str(tmp_path)]) is None
    distribution(tmp_path, "onnxruntime", "1.32.0")
    distribution(tmp_path, "numpy", "2.0.0")
    assert providers.side_by_side([str(tmp_path)]) is None
    distribution(tmp_path, "onnxruntime-gpu", "1.31.0")
    said = providers.side_by_side([str(tmp_path)])
    assert said is not None and "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.0 are installed side by side" in said
    assert "`pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`" in said
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=r"it has .*CPUExecutionProvider.*side by side"):
        load_detector(file, providers=["NoSuchProvider"])
    load_detector(file)  # the CPU is there in either, so that nothing is said


def test_a_package_without_its_files_is_explained(file, monkeypatch):
    """As `pip uninstall onnxruntime` leaves it when onnxruntime-gpu is installed as well."""
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(EngineError, match=r"incomplete.*--force-reinstall"):
        load_detector(file)
