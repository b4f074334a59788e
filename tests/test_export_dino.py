"""DINO in ONNX: pixels in, boxes out; any size, any batch, padding known by the valid sizes; PyTorch's answers."""

from __future__ import annotations

import numpy as np
import pytest
from test_dino import small

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from agssp_zoo.detector import Detector  # noqa: E402
from agssp_zoo.engines.onnx import OnnxEngine  # noqa: E402
from agssp_zoo.engines.pytorch import PyTorchEngine  # noqa: E402


@pytest.fixture(scope="module")
def module():
    """One class, so that there are fewer answers, 20, than the 300 that a file has room for."""
    return small(("anomaly",), layers=1)


@pytest.fixture(scope="module")
def engine(module, tmp_path_factory) -> OnnxEngine:
    from agssp_zoo.export import export_onnx

    return OnnxEngine.load(export_onnx(module, tmp_path_factory.mktemp("dino") / "model.onnx", verify=False))


def pixels(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "height", "width", "sizes"),
    [
        (1, 96, 64, None),
        (3, 75, 141, [[75, 141], [40, 100], [75, 130]]),  # no multiples of anything
        (1, 32, 45, None),  # the last maps are single pixels
        (2, 61, 97, [[50, 60]]),  # one row stands for all
    ],
)
def test_the_file_answers_what_pytorch_answers(module, engine, batch, height, width, sizes) -> None:
    images, given = pixels(batch, height, width), None if sizes is None else np.array(sizes, np.int64)
    found = engine.run(images, conf=0.0, sizes=given)
    wanted = PyTorchEngine(module).run(images, conf=0.0, sizes=given)
    assert found.boxes.shape == (batch, 300, 4) and wanted.boxes[:, :20].std() > 1
    assert found.count.tolist() == wanted.count.tolist() == [20] * batch
    np.testing.assert_allclose(found.scores[:, :20], wanted.scores[:, :20], atol=1e-5)
    np.testing.assert_allclose(found.boxes[:, :20], wanted.boxes[:, :20], atol=1e-2)
    assert np.array_equal(found.labels[:, :20], wanted.labels[:, :20])
    if sizes is not None:
        assert (found.boxes <= np.array(sizes)[:, None, [1, 0, 1, 0]]).all()


@pytest.mark.slow
def test_the_file_passes_the_verification(module, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Element by element, and the final boxes, at three sizes and batch 1 and 3."""
    from agssp_zoo.export import verification

    monkeypatch.setattr(verification, "ANY_SIZES", ((1, 160, 160), (3, 75, 141), (1, 99, 64)))
    verification.verify_file(engine.model.path, module, raw=False)


def test_verification_leaves_out_queries_that_changed_places() -> None:
    from agssp_zoo.errors import ExportError
    from agssp_zoo.export.verification import _same_queries

    boxes, scores = np.random.default_rng(0).random((2, 50, 4)) * 100, np.ones((2, 50, 3))
    swapped, other = boxes.copy(), scores.copy()
    swapped[1, [3, 4]], other[1, [3, 4]] = swapped[1, [4, 3]], 0.5
    one, two = _same_queries(["network/boxes", "network/scores"], [boxes, scores], [swapped, other], "noise")
    assert len(one[0]) == 98 and all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    with pytest.raises(ExportError, match="queries differ from PyTorch's on noise: 4 of 100"):
        _same_queries(["query_boxes"], [boxes], [boxes + (np.arange(50) < 2)[:, None]], "noise")


@pytest.mark.slow
def test_one_class_predicts_in_either_engine(module, engine) -> None:
    image = pixels(1, 200, 260)[0]
    one, two = (Detector(either).predict(image, conf=0.0)[0] for either in (engine, PyTorchEngine(module)))
    assert len(one) == len(two) == 20 and set(one.labels) == {0}
    np.testing.assert_allclose(one.boxes, two.boxes, atol=0.05)


@pytest.mark.slow
def test_a_network_with_too_few_pixels_for_its_queries_says_so(engine) -> None:
    from agssp_zoo.errors import EngineError

    with pytest.raises(EngineError, match=r"cannot be run on images of shape \(1, 8, 8, 3\)"):
        engine.run(pixels(1, 8, 8))
