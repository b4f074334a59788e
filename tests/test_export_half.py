"""float16 files: the same contract, answers within the tolerances, everything but the network as it was."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from test_engines import CONFIG, write_onnx  # noqa: E402
from test_export import lively, open_session  # noqa: E402
from trained_detector import surfaces, trained_folder  # noqa: E402

from agssp_zoo import cli, load_detector  # noqa: E402
from agssp_zoo.config import Preprocess  # noqa: E402
from agssp_zoo.errors import EngineError, ExportError, InvalidArgumentError  # noqa: E402
from agssp_zoo.export import export_half, export_onnx  # noqa: E402
from agssp_zoo.folder import ModelFolder  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = trained_folder(tmp_path_factory.mktemp("half") / "detector")
    assert cli.main(["export", str(path), "--fp16"]) == 0
    return path


def test_the_contract_and_the_answers(folder):
    names = ("model.onnx", "model.fp16.onnx")
    assert (folder / names[1]).stat().st_size < 0.55 * (folder / names[0]).stat().st_size
    one, other = (open_session(folder / name) for name in names)
    for entries in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        described = [[(e.name, e.type, e.shape) for e in getattr(s, entries)()] for s in (one, other)]
        assert described[0] == described[1]
    before, after = (session.get_modelmeta().custom_metadata_map for session in (one, other))
    assert after == before | {"precision": "float16"}
    images = surfaces(2, (192, 256))
    feeds = {"images": images, "conf_threshold": np.array([0.02], np.float32)}
    expected, found = (session.run(["boxes", "scores", "labels", "count"], feeds) for session in (one, other))
    assert abs(int(expected[3].sum()) - int(found[3].sum())) <= 4 and expected[3].min() > 3
    assert np.abs(expected[1][:, :3] - found[1][:, :3]).max() < 0.01


def test_loading_it(folder):
    detector = load_detector(folder, precision="float16")
    assert detector.engine.model.path.name == "model.fp16.onnx"
    image = surfaces(1)[0]
    assert len(detector.predict(image, conf=0.05)[0]) == pytest.approx(
        len(load_detector(folder).predict(image, conf=0.05)[0]), abs=4
    )
    assert "\n- `model.fp16.onnx`\n" in ModelFolder.open(folder).file("README.md").read_text()


def test_only_the_network_is_in_float16(folder):
    model = onnx.load(folder / "model.fp16.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {entry.name: entry.data_type for entry in model.graph.initializer}
    weights = [name for name in kinds if name.endswith("/float16")]
    assert len(weights) > 100 and all(kinds[name] == onnx.TensorProto.FLOAT16 for name in weights)
    assert kinds["conf_threshold"] == kinds["network/module.pixel_std"] == onnx.TensorProto.FLOAT
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.name.endswith("/cast")]
    assert len(casts) == 1 + 6, "one into the network, six out of it"


def test_a_backbone(tmp_path):
    path = export_onnx(lively("cspdarknet_n"), tmp_path / "backbone.onnx", verify=False)
    half = open_session(export_half(path, tmp_path / "half.onnx"))
    images = surfaces(1, (64, 96))
    answers = [session.run(None, {"images": images}) for session in (open_session(path), half)]
    for one, other in zip(*answers, strict=True):
        assert one.dtype == other.dtype == np.float32 and np.abs(one - other).max() < 0.05 * np.abs(one).max()


def test_what_cannot_be_written(folder, tmp_path):
    with pytest.raises(ExportError, match="in float16 already"):
        export_half(folder / "model.fp16.onnx", tmp_path / "a.onnx")
    with pytest.raises(EngineError, match="not an ONNX file of agssp-zoo"):
        write_onnx(tmp_path / "b.onnx", config="")
        export_half(tmp_path / "b.onnx", tmp_path / "a.onnx")
    with pytest.raises(InvalidArgumentError, match="say with out"):
        export_half(folder / "model.onnx")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((folder / "model.onnx").read_bytes())
    (tmp_path / "link.onnx").symlink_to(alone)
    for source, out in ((folder, folder / "model.onnx"), (alone, alone), (alone, tmp_path / "link.onnx")):
        before = out.read_bytes()
        with pytest.raises(InvalidArgumentError, match=r"made of .* such as .*model\.fp16\.onnx"):
            export_half(source, out)
        assert out.read_bytes() == before
    write_onnx(
        tmp_path / "c.onnx", CONFIG.replace(preprocess=Preprocess(pad_after_normalize=True, pad_position="top_left"))
    )
    with pytest.raises(ExportError, match="only YOLOv8 detectors and backbones"):
        export_half(tmp_path / "c.onnx", tmp_path / "a.onnx")
    model = onnx.load(folder / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name.endswith("stage2.downsample.conv.weight"))
    values = onnx.numpy_helper.to_array(weight)
    for factor, words in ((1e9, "float16 ends at 65504"), (3e3, "differ from float32")):
        weight.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(factor), weight.name))
        onnx.save(model, tmp_path / "d.onnx")
        with pytest.raises(ExportError, match=words):
            export_half(tmp_path / "d.onnx", tmp_path / "a.onnx")
    assert not list(tmp_path.glob("*a.onnx*")), "nothing is written"
