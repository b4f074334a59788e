"""Exporting to ONNX: the contract of the file, the same answers as PyTorch, and nothing left behind by a failure."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from older_export import write_older  # noqa: E402

from agssp_zoo import __version__, models  # noqa: E402
from agssp_zoo.card import render_card  # noqa: E402
from agssp_zoo.config import ModelConfig, Postprocess  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    EngineError,
    ExportError,
    IntegrityError,
    InvalidArgumentError,
    MissingDependencyError,
)
from agssp_zoo.export import export_onnx  # noqa: E402
from agssp_zoo.export.candidates import add_outputs, distributions  # noqa: E402
from agssp_zoo.export.coarse_first import coarse_first  # noqa: E402
from agssp_zoo.export.exporter import _with_selection, enter  # noqa: E402
from agssp_zoo.export.halves import halves_apart  # noqa: E402
from agssp_zoo.export.selection import FIRST_CANDIDATES, selection_model  # noqa: E402
from agssp_zoo.export.verification import verify_file  # noqa: E402
from agssp_zoo.folder import ModelFolder, sha256_file, update_checksums, write_folder  # noqa: E402
from agssp_zoo.models.heads.dfl import DFLHead  # noqa: E402

CLASSES = ("crack", "pit", "scale", "scratch")


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)


def lively(architecture: str, **changes) -> models.ZooModule:
    """A small network with random weights whose answers vary as a trained one's do, many scores above 0.001."""
    torch.manual_seed(7)
    names = CLASSES if architecture.startswith("yolo") else ()
    module = models.build(models.default_config(architecture, class_names=names).replace(**changes)).eval()
    with torch.no_grad():
        # Statistics as after training, so that the signal neither dies nor explodes on its way.
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.train()
                layer.momentum = None
        for seed in (1, 2):
            module(module.normalize(torch.from_numpy(pixels(1, 384, 384, seed=seed))))
        module.eval()
        if isinstance(module, models.DetectorModule):
            # Logits spread by so much around so much: (class, box), whatever the maps before them are like.
            sample = torch.from_numpy(pixels(1, 384, 384, seed=3))
            for level, logits in enumerate(module(module.normalize(sample))):
                for branches, out, spread, centre in (
                    (module.head.cls_branches, logits[0], 1.5, -5.0),
                    (module.head.box_branches, logits[1], 1.5, 0.0),
                ):
                    branches[level][-1].weight.mul_(spread / out.std())
                    torch.nn.init.constant_(branches[level][-1].bias, centre)
    return module


def pixels(batch: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Coarse noise, uint8 (batch, height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (batch, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width])


def open_session(model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def detector():
    return lively("yolov8_n")


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    """The detector's folder after `agssp-zoo export`, and what the command printed; warnings are errors there."""
    folder = tmp_path_factory.mktemp("export") / "detector"
    config = detector.config
    write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(detector, path, config)})
    command = [sys.executable, "-W", "error", "-m", "agssp_zoo", "export", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def session(exported):
    return open_session(exported[0] / "model.onnx")


def run(session, images, **thresholds):
    feeds = {f"{name}_threshold": np.array([value], np.float32) for name, value in thresholds.items()}
    return session.run(["boxes", "scores", "labels", "count"], {"images": images, **feeds})


def in_torch(module, images, **changes):
    """What the module and select_detections answer."""
    settings = module.config.postprocess
    values = {"conf": settings.conf, "iou": settings.iou} | changes
    with torch.inference_mode():
        boxes, scores = module.decode(module(module.normalize(torch.from_numpy(images))))
        out = models.select_detections(
            boxes,
            scores,
            max_det=settings.max_det,
            max_candidates=settings.max_candidates,
            multi_label=settings.multi_label,
            **values,
        )
    return [value.numpy() for value in out]


def share_matched(one, other, *, pixel=0.05, score=1e-4) -> float:
    """The share of detections that have a partner of the same label, box and score; 1 when both have none."""
    total = matched = 0
    for index in range(len(one[3])):
        number, others = int(one[3][index]), int(other[3][index])
        total += max(number, others)
        free = set(range(others))
        for i in range(number):
            for j in sorted(free, key=lambda j: abs(j - i)):
                if (
                    one[2][index, i] == other[2][index, j]
                    and np.abs(one[0][index, i] - other[0][index, j]).max() <= pixel
                    and abs(one[1][index, i] - other[1][index, j]) <= score
                ):
                    free.discard(j)
                    matched += 1
                    break
    return matched / total if total else 1.0


# --- the file --------------------------------------------------------------------------------------------------------


def test_command_is_quiet_and_updates_checksums(exported):
    folder, done = exported
    assert done.stderr == ""
    assert done.stdout.startswith(f"{folder / 'model.onnx'} (")
    assert "verified" in done.stdout and done.stdout.count("\n") == 1
    assert json.loads((folder / "checksums.json").read_text())["model.onnx"] == sha256_file(folder / "model.onnx")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.onnx",
        "model.safetensors",
    ]


def test_the_card_lists_the_file(exported, tmp_path):
    folder, _ = exported
    names = ["config.json", "model.safetensors", "model.onnx"]
    assert (folder / "README.md").read_text() == render_card(ModelFolder.open(folder).config, files=names)
    for name in ("README.md", "model.onnx"):
        assert ModelFolder.open(folder).file(name)
    for change, sums in (("Mine.\n", True), (None, False), ("\xff", True)):
        own = shutil.copytree(folder, tmp_path / f"{change!r}")
        if change is not None:
            (own / "README.md").write_text(change, encoding="latin-1")
        (own / "checksums.json").unlink()
        if sums:
            update_checksums(own)
        before = (own / "README.md").read_bytes()
        enter_copy(own)
        assert (b"- `b.onnx`\n" in (own / "README.md").read_bytes()) == (change is None)
        assert change is None or (own / "README.md").read_bytes() == before
        assert all(ModelFolder.open(own).file(name) for name in ("README.md", "b.onnx"))
        assert (own / "checksums.json").is_file() == sums
    changed = shutil.copytree(folder, tmp_path / "changed")
    with (changed / "README.md").open("a") as card:
        card.write("More.\n")
    enter_copy(changed)
    assert "b.onnx" not in (changed / "README.md").read_text() and ModelFolder.open(changed).file("b.onnx")
    with pytest.raises(IntegrityError, match="differs from its checksum"):
        ModelFolder.open(changed).file("README.md")


def enter_copy(folder) -> None:
    """Enters a copy of a folder's file, as if it had been exported."""
    enter(Path(shutil.copy(folder / "model.onnx", folder / "b.onnx")), "detector")


def test_file_keeps_the_contract(exported, session, detector):
    folder, _ = exported
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", "height", "width", 3]
    thresholds = {entry.name: (entry.type, entry.shape) for entry in session.get_overridable_initializers()}
    assert thresholds == {
        "conf_threshold": ("tensor(float)", ["one_or_classes"]),
        "iou_threshold": ("tensor(float)", [1]),
    }
    outputs = [(entry.name, entry.type, entry.shape) for entry in session.get_outputs()]
    assert outputs == [
        ("boxes", "tensor(float)", ["batch", 300, 4]),
        ("scores", "tensor(float)", ["batch", 300]),
        ("labels", "tensor(int64)", ["batch", 300]),
        ("count", "tensor(int64)", ["batch"]),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert ModelConfig.from_json(metadata["config"]) == detector.config == ModelFolder.open(folder).config
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert metadata["agssp_zoo_version"] == __version__
    assert (metadata["contract_version"], metadata["outputs"], metadata["task"]) == ("1", "detections", "detector")


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 640, 640), (4, 64, 320), (3, 96, 32)])
def test_answers_what_pytorch_answers(session, detector, shape):
    images = pixels(*shape, seed=sum(shape))
    found, expected = run(session, images, conf=0.001), in_torch(detector, images, conf=0.001)
    assert expected[3].min() > 20  # else the test says little
    assert share_matched(expected, found) >= 0.99
    for index, number in enumerate(found[3]):
        assert (np.diff(found[1][index, :number]) <= 0).all()
        assert (found[0][index, number:] == 0).all() and (found[1][index, number:] == 0).all()
        assert (found[2][index, number:] == -1).all() and (found[2][index, :number] >= 0).all()


def test_sizes_that_are_no_multiple_of_the_stride_are_refused(exported):
    from agssp_zoo.engines.onnx import OnnxEngine

    with pytest.raises(EngineError, match=r"cannot be run on images of shape \(1, 64, 70, 3\)"):
        OnnxEngine.load(exported[0] / "model.onnx").run(pixels(1, 64, 70))


def test_images_of_a_batch_do_not_see_each_other(session):
    images = pixels(3, 96, 128, seed=5)
    images[1] = 114  # one without structure among others
    together = run(session, images, conf=0.01)
    for index in range(3):
        alone = run(session, images[index : index + 1], conf=0.01)
        assert share_matched([out[index : index + 1] for out in together], alone) == 1


def test_thresholds_default_to_the_config_and_can_be_overridden(session, detector):
    images = pixels(2, 128, 128, seed=9)
    settings = detector.config.postprocess
    for one, other in zip(
        run(session, images), run(session, images, conf=settings.conf, iou=settings.iou), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    boxes, scores, labels, count = run(session, images, conf=1.0)
    assert not count.any() and not boxes.any() and not scores.any() and (labels == -1).all()
    few, many = run(session, images, conf=0.3, iou=0.1), run(session, images, conf=0.3, iou=0.9)
    assert 0 < few[3].sum() < many[3].sum()
    for conf, iou in ((0.3, 0.1), (0.05, 0.9)):
        expected = in_torch(detector, images, conf=conf, iou=iou)
        assert share_matched(expected, run(session, images, conf=conf, iou=iou)) >= 0.99


# --- choosing detections ---------------------------------------------------------------------------------------------


def candidates(kind: str, anchors: int, classes: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (anchors, 4) and scores (anchors, classes): spread, piled up in few places, or all scores zero."""
    centres = generator.uniform(0, 640, (anchors, 2))
    sizes = generator.uniform(10, 150, (anchors, 2))
    scores = generator.uniform(0, 1, (anchors, classes)) ** 3
    if kind == "piled":
        places = generator.integers(0, 20, anchors)
        centres = generator.uniform(60, 580, (20, 2))[places] + generator.normal(0, 2, (anchors, 2))
        sizes = generator.uniform(40, 120, (20, 2))[places] * generator.uniform(0.9, 1.1, (anchors, 2))
    elif kind == "none":
        scores[:] = 0
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1), scores


@pytest.mark.parametrize("classes", [1, 6, 80])
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize(("max_det", "max_candidates"), [(300, 30000), (20, 500), (300, 2000)])
def test_selection_equals_pytorch(classes, multi_label, max_det, max_candidates):
    settings = Postprocess(max_det=max_det, max_candidates=max_candidates, multi_label=multi_label)
    model = selection_model(classes, settings, opset=18, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    generator = np.random.default_rng(classes + max_det)
    for anchors in (5, 1500):
        parts = [candidates(kind, anchors, classes, generator) for kind in ("spread", "piled", "none")]
        boxes, scores = (np.stack(column).astype(np.float32) for column in zip(*parts, strict=True))
        for conf, iou in ((0.001, 0.7), (0.4, 0.45), (0.0, 0.3)):
            feeds = {
                "all_boxes": boxes,
                "all_scores": scores,
                "conf_threshold": np.array([conf], np.float32),
                "iou_threshold": np.array([iou], np.float32),
            }
            found = session.run(["boxes", "scores", "labels", "count"], feeds)
            expected = models.select_detections(
                torch.from_numpy(boxes),
                torch.from_numpy(scores),
                conf=conf,
                iou=iou,
                max_det=max_det,
                max_candidates=max_candidates,
                multi_label=multi_label,
            )
            assert found[3][2] == 0
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize(("multi_label", "iou"), [(True, 0.7), (False, 0.7), (True, 0.05)])
def test_only_candidates_are_decoded_and_the_answer_is_the_same(multi_label, iou):
    """From raw outputs of three levels; of a batch one image has everything above the threshold, one nothing."""
    settings = Postprocess(max_det=40, multi_label=multi_label)
    source = distributions(3, 16, (8, 16, 32))
    session = open_session(selection_model(3, settings, source=source, opset=18, ir_version=10).SerializeToString())
    generator = torch.Generator().manual_seed(2)
    raw = []
    for side in (24, 12, 6):
        scores = torch.randn(3, 3, side, 2 * side, generator=generator)
        raw.append((scores - torch.tensor([0.0, 4.0, 99.0]).reshape(3, 1, 1, 1), torch.randn(3, 64, side, 2 * side,
                    generator=generator) * 4))  # fmt: skip
    names = [f"{kind}_logits_{stride}" for stride in (8, 16, 32) for kind in ("class", "box")]
    feeds = dict(zip(names, (part.numpy() for level in raw for part in level), strict=True))
    thresholds = {"conf_threshold": np.array([0.02], np.float32), "iou_threshold": np.array([iou], np.float32)}
    found = session.run(["boxes", "scores", "labels", "count"], {**feeds, **thresholds})
    expected = models.select_detections(
        *DFLHead([16, 16, 16], 3).decode(raw), conf=0.02, iou=iou, max_det=40, max_candidates=30000,
        multi_label=multi_label,
    )  # fmt: skip
    assert expected[3][:2].min() > 30 and expected[3][2] == 0
    np.testing.assert_allclose(found[0], expected[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(found[1], expected[1].numpy(), atol=1e-6)
    for one, other in zip(expected[2:], found[2:], strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


def test_the_file_decodes_no_more_than_its_candidates(exported):
    graph = onnx.load(exported[0] / "model.onnx").graph
    assert not [node for node in graph.node if node.op_type == "Exp"]
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    assert [node.op_type for node in loop.attribute[0].g.node].count("Exp") == 1


@pytest.mark.parametrize("contexts", [(halves_apart,), (coarse_first,), (coarse_first, halves_apart)])
def test_the_same_sums_by_other_convolutions(detector, exported, contexts):
    names = list(detector.state_dict())
    images = detector.normalize(torch.from_numpy(pixels(2, 64, 96)))
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        whole = detector(images)
        with stack:
            for context in contexts:
                stack.enter_context(context(detector))
            assert list(detector.state_dict()) != names
            apart = detector(images)
    assert list(detector.state_dict()) == names, "as it was"
    for one, other in zip(whole, apart, strict=True):
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)
    graph = onnx.load(exported[0] / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    # Eight CSP layers make two halves; two of them, on the way down the pyramid, each of two maps.
    assert kinds.count("Conv") == 63 + 8 + 4 and not {"Split", "Slice"} & set(kinds)
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    enlarged = [made_by[node.input[0]] for node in graph.node if node.op_type == "Resize"]
    # From 256 and 128 channels to two halves; not 256 and 128 as they are.
    assert [weights[node.input[1]][:2] for node in enlarged] == [[64, 256], [64, 256], [32, 128], [32, 128]]


def test_boxes_of_all_places_can_still_be_had(exported, detector, tmp_path):
    """Also of files that decode all of them themselves, as they did before."""
    images = pixels(2, 64, 96)
    with torch.inference_mode():
        expected = detector.decode(detector(detector.normalize(torch.from_numpy(images))))
    older = write_older(detector, tmp_path / "older.onnx")
    for path, is_older in ((exported[0] / "model.onnx", False), (older, True)):
        model = onnx.load(path)
        number = len(model.graph.node)
        add_outputs(model, ["network/boxes", "network/scores"])
        assert (len(model.graph.node) == number) == is_older
        found = open_session(model.SerializeToString()).run(["network/boxes", "network/scores"], {"images": images})
        assert found[0].shape == tuple(expected[0].shape) == (2, 126, 4)
        for one, other, allowed in zip(expected, found, (0.05, 1e-4), strict=True):
            np.testing.assert_allclose(other, one.numpy(), atol=allowed)


def test_of_equal_scores_the_first_place_wins():
    generator = np.random.default_rng(4)
    boxes, scores = (part.astype(np.float32)[None] for part in candidates("piled", 150, 6, generator))
    scores = scores.round(1)
    session = open_session(selection_model(6, Postprocess(), opset=18, ir_version=10).SerializeToString())
    thresholds = {"conf_threshold": np.array([0.05], np.float32), "iou_threshold": np.array([0.5], np.float32)}
    found = session.run(None, {"all_boxes": boxes, "all_scores": scores, **thresholds})
    expected = models.select_detections(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        conf=0.05,
        iou=0.5,
        max_det=300,
        max_candidates=30000,
        multi_label=True,
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


def test_selection_goes_on_until_there_are_enough():
    """The best box hides thousands of others; the ones that remain come after more candidates than are tried first."""
    number = 2 * FIRST_CANDIDATES
    boxes = np.zeros((1, number + 2, 4), np.float32)
    boxes[0, :number] = (10, 10, 50, 50)
    boxes[0, number:] = ((100, 100, 140, 140), (200, 200, 240, 240))
    scores = np.full((1, number + 2, 1), 0.9, np.float32)
    scores[0, number:, 0] = (0.2, 0.1)
    session = open_session(selection_model(1, Postprocess(), opset=18, ir_version=10).SerializeToString())
    thresholds = {name: np.array([0.05], np.float32) for name in ("conf_threshold", "iou_threshold")}
    found, _, _, count = session.run(None, {"all_boxes": boxes, "all_scores": scores, **thresholds})
    assert count.tolist() == [3]
    np.testing.assert_array_equal(found[0, :3], boxes[0, [0, number, number + 1]])


# --- other graphs ----------------------------------------------------------------------------------------------------


def test_raw_outputs(detector, tmp_path):
    path = export_onnx(detector, tmp_path / "raw.onnx", raw=True, verify=False)
    session = open_session(path)
    names = [f"{kind}_logits_{stride}" for stride in (8, 16, 32) for kind in ("class", "box")]
    assert [entry.name for entry in session.get_outputs()] == names
    assert session.get_modelmeta().custom_metadata_map["outputs"] == "raw"
    images = pixels(2, 96, 160)
    with torch.inference_mode():
        expected = [part for level in detector(detector.normalize(torch.from_numpy(images))) for part in level]
    for one, other in zip(expected, session.run(None, {"images": images}), strict=True):
        np.testing.assert_allclose(other, one.numpy(), atol=1e-3)


def test_backbone_answers_one_map_an_output(tmp_path):
    module = lively("cspdarknet_n")
    assert any(module.config.preprocess.mean)  # normalising is part of what is compared
    session = open_session(export_onnx(module, tmp_path / "maps.onnx"))
    assert [entry.name for entry in session.get_outputs()] == [info.name for info in module.feature_info]
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["task"], metadata["outputs"]) == ("backbone", "features")
    images = pixels(3, 224, 96)
    with torch.inference_mode():
        expected = module(module.normalize(torch.from_numpy(images)))
    for one, other in zip(expected, session.run(None, {"images": images}), strict=True):
        assert np.linalg.norm(one.numpy() - other) < 1e-4 * np.linalg.norm(one.numpy())


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_verification_notices_a_wrong_weight_and_a_wrong_threshold(exported, detector, tmp_path):
    for name, part in (("conf_threshold", "config says"), ("weight", "scores|boxes")):
        model = onnx.load(exported[0] / "model.onnx")
        (*_, tensor) = (t for t in model.graph.initializer if name in t.name)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.05), tensor.name))
        onnx.save(model, tmp_path / "wrong.onnx")
        with pytest.raises(ExportError, match=part):
            verify_file(tmp_path / "wrong.onnx", detector, raw=False)


def test_failure_leaves_the_old_file_and_nothing_else(detector, tmp_path, monkeypatch):
    wrong = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        wrong (uint8[batch, height, width, 3] images) => (float[batch, n, 4] boxes, float[batch, n, 4] scores)
        <int64[3] shape = {0, -1, 4}> {
          pixels = Cast <to = 1> (images)
          boxes = Reshape (pixels, shape)
          scores = Identity (boxes)
        }"""
    )
    graph = _with_selection(wrong, detector.config)
    monkeypatch.setattr("agssp_zoo.export.exporter._detector_graph", lambda *_: graph)
    target = tmp_path / "model.onnx"
    target.write_text("the old one")
    with pytest.raises(ExportError, match="shape"):
        export_onnx(detector, target)
    assert target.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(detector, target / "below" / "model.onnx", verify=False)


def test_wrong_requests(detector, tmp_path, monkeypatch):
    with pytest.raises(InvalidArgumentError, match="opset"):
        export_onnx(detector, tmp_path / "x.onnx", opset=11)
    with pytest.raises(InvalidArgumentError, match="knows operator sets up to"):
        export_onnx(detector, tmp_path / "x.onnx", opset=99)
    with pytest.raises(InvalidArgumentError, match="out"):
        export_onnx(detector)
    with pytest.raises(InvalidArgumentError, match="folder"):
        export_onnx(detector, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"onnxscript.*agssp-zoo\[export\]"):
        export_onnx(detector, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_models_own_files_are_not_written_over(exported, name):
    folder = exported[0]
    before = (folder / name).read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"made of .* such as .*model\.onnx"):
        export_onnx(folder, folder / name, verify=False)
    assert (folder / name).read_bytes() == before


def test_importing_the_package_imports_no_torch():
    code = "import sys, agssp_zoo.export, agssp_zoo.export.cli; print('torch' in sys.modules or 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
