"""Weights as whole numbers: chosen by what the convolutions see, on average without a shift."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from test_export import open_session  # noqa: E402
from trained_detector import surfaces, trained_folder, write_surfaces  # noqa: E402

from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.export import rounding as module  # noqa: E402
from agssp_zoo.export.calibration import CalibrationImages, choose_ranges, collect  # noqa: E402
from agssp_zoo.export.graph import last_layers, makers_of  # noqa: E402
from agssp_zoo.export.int8_graph import plan, prepare  # noqa: E402
from agssp_zoo.export.quantize import no_progress, quantize  # noqa: E402
from agssp_zoo.export.rounding import BLOCK, InputMoments, Inputs, fit_rounding, round_together  # noqa: E402


def conv(weight, **settings):
    return onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=weight.shape[2:], **settings)


def constants(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("settings", [{}, {"pads": [1, 0, 1, 2], "strides": [2, 1]}, {"pads": [1] * 4}])
def test_moments_are_those_of_what_a_filter_sees(settings, monkeypatch):
    """Compared with torch's own convolution: of every weight's input the mean, and of two their covariance."""
    monkeypatch.setattr(module, "BLOCK", 5)
    generator = np.random.default_rng(0)
    weight = np.zeros((1, 2, 3, 2), np.float32)
    images = [generator.normal(1, 2, (1, 2, *size)).astype(np.float32) for size in ((6, 7), (9, 5))]
    moments = InputMoments(conv(weight, **settings), weight)
    for image in images:
        moments.add(image, generator)
    top, left, bottom, right = settings.get("pads", [0] * 4)
    seen = []
    for image in images:
        padded = torch.nn.functional.pad(torch.from_numpy(image), (left, right, top, bottom))
        one_hot = torch.eye(12).reshape(12, 2, 3, 2)
        answers = torch.nn.functional.conv2d(padded, one_hot, stride=tuple(settings.get("strides", (1, 1))))
        seen.append(answers[0].flatten(1).T.numpy())
    every = np.concatenate(seen).astype(np.float64)
    assert moments.count == len(every) < 200, "all places of images as small as these"
    np.testing.assert_allclose(moments.means, every.mean(0), atol=1e-6)
    expected = np.cov(every.T, bias=True)
    blocks = list(moments.covariances())
    assert [block.shape for block in blocks] == [(5, 5), (5, 5), (2, 2)]
    for number, block in enumerate(blocks):
        part = slice(5 * number, 5 * number + 5)
        np.testing.assert_allclose(block, expected[part, part], atol=1e-5)


def test_inputs_that_go_together_make_up_for_one_another():
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(2000, 5)) @ generator.normal(size=(5, 40)) + 0.1 * generator.normal(size=(2000, 40))
    wanted = generator.uniform(-6, 6, (8, 40))
    whole = round_together(wanted, np.cov(inputs.T, bias=True), 64)
    assert np.array_equal(whole, np.rint(whole))

    def error(chosen):
        return float(np.square((chosen - wanted) @ inputs.T).mean())

    assert error(whole) < 0.2 * error(np.rint(wanted))
    # Nothing to make up for: each to the nearest. Dead inputs are none of anybody's business.
    alone = round_together(wanted, np.diag(np.r_[np.arange(1.0, 40), 0.0]), 64)
    assert np.array_equal(alone, np.rint(wanted))
    noise = generator.normal(size=(40, 40))  # of images that show nothing: no covariance, errors of a sum
    assert np.array_equal(round_together(wanted, 1e-9 * (noise + noise.T), 64), np.rint(wanted))
    assert np.abs(round_together(20 * wanted, np.cov(inputs.T, bias=True), 64)).max() == 64


@pytest.mark.parametrize("settings", [{"group": 2}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER"}])
def test_other_convolutions_are_left_to_the_nearest(settings):
    weight = np.zeros((4, 2, 3, 3), np.float32)
    graph = onnx.helper.make_graph([conv(weight, **settings)], "g", [], [], [onnx.numpy_helper.from_array(weight, "w")])
    assert not Inputs(onnx.helper.make_model(graph), ["conv"]).moments


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A float graph, what is quantised of it, ranges, and what its convolutions see."""
    folder = trained_folder(tmp_path_factory.mktemp("rounding") / "detector")
    images = write_surfaces(tmp_path_factory.mktemp("images"), 12)
    prepared = prepare(onnx.load(folder / "model.onnx"))
    todo = plan(prepared)
    inputs = Inputs(prepared, todo.nodes)
    canvases = CalibrationImages(images, ModelConfig.load(folder).preprocess, 12)
    histograms = collect(prepared, todo, canvases, [12], no_progress, inputs)[12]
    return folder, prepared, todo, choose_ranges(histograms, todo, "minmax"), inputs


def weights_of(model):
    """Name of a convolution -> its whole numbers and its steps, where it has them, and its bias."""
    values, makers = constants(model), makers_of(model.graph)
    found = {}
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            found[node.name] = [values[name] for name in maker.input[:2]]
    return found


@pytest.mark.parametrize("full_range", [False, True])
def test_the_steps_stay_and_answers_move_less(detector, full_range, tmp_path):
    _, prepared, todo, ranges, inputs = detector
    nearest = quantize(prepared, todo, ranges, full_range)
    fitted = quantize(prepared, todo, ranges, full_range, fit_rounding(prepared, nearest, inputs, no_progress))
    before, after = weights_of(nearest), weights_of(fitted)
    assert before.keys() == after.keys() == inputs.moments.keys() and len(before) == 69
    limit = 127 if full_range else 64
    for name, (whole, steps) in after.items():
        assert whole.dtype == np.int8 and np.abs(whole.astype(int)).max() <= limit
        assert np.array_equal(steps, before[name][1]), "a step of another size would need other biases"
    onnx.checker.check_model(fitted, full_check=True)
    if full_range:
        return
    ends = [node.output[0] for node in last_layers(prepared.graph, makers_of(prepared.graph))]
    images = surfaces(6, (320, 320), seed=5)

    def answers(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ends)
        onnx.save(copy, tmp_path / "model.onnx")
        return open_session(tmp_path / "model.onnx").run(ends, {"images": images})

    exact = answers(prepared)
    errors = [
        np.sqrt(
            np.mean([np.square(a - b).mean() / np.square(b - b.mean()).mean() for a, b in zip(one, exact, strict=True)])
        )
        for one in (answers(nearest), answers(fitted))
    ]
    assert errors[1] < 0.9 * errors[0], "0.84 when it was written: 12 images, ranges of the widest values"


def test_mean_answers_do_not_move(detector):
    """On the places that were looked at, every filter answers on average what it did in float."""
    _, prepared, todo, ranges, inputs = detector
    rounding = fit_rounding(prepared, quantize(prepared, todo, ranges, False), inputs, no_progress)
    before, shifted = constants(prepared), constants(module.shift_biases(prepared, rounding))
    steps = weights_of(quantize(prepared, todo, ranges, False))
    assert any(moments.means.size > BLOCK for moments in inputs.moments.values()), "several blocks are among them"
    for node in module.shift_biases(prepared, rounding).graph.node:
        if node.name in rounding.weights:
            weight = before[node.input[1]]
            bias = before.get(node.input[2], 0.0)  # a convolution may have got its bias only now
            means = inputs.moments[node.name].means
            scale = steps[node.name][1].reshape(-1, 1)
            exact = weight.reshape(len(weight), -1) @ means + bias
            found = scale * rounding.weights[node.name].reshape(len(weight), -1) @ means + shifted[node.input[2]]
            np.testing.assert_allclose(found, exact, atol=2e-5)
            assert np.abs(shifted[node.input[2]] - bias).max() > 0
