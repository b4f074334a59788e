"""DINO's answers are those of the authors' code from the same weights: arrays, a padded batch, and detections.

Run with ``-s`` to see the figures that are reached. The weights are stand-ins, as in ``test_parity.py``.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_parity import ARRAYS, DETECTIONS, PARITY, as_recorded, match_share, relative_error  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.convert import convert_checkpoint  # noqa: E402
from agssp_zoo.detector import Detector  # noqa: E402
from agssp_zoo.engines.pytorch import PyTorchEngine  # noqa: E402
from agssp_zoo.errors import CheckpointError  # noqa: E402
from agssp_zoo.folder import ModelFolder  # noqa: E402

pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="needs the recorded answers of the authors' code")


@pytest.fixture(scope="module")
def reference():
    """The module that draws weights and inputs."""
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded():
    with np.load(PARITY / "dino_swin_b.npz") as file:
        return {key: file[key] for key in file.files if not key.startswith("weights/")}


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory):
    """A checkpoint in the authors' layout."""
    path = tmp_path_factory.mktemp("parity") / "dino.pth"
    state = reference.official_state_dict("dino_swin_b", seed=1)
    torch.save({"meta": {}, "state_dict": {key: torch.as_tensor(value) for key, value in state.items()}}, path)
    yield path
    path.unlink()  # half a gigabyte


@pytest.fixture(scope="module")
def module(checkpoint):
    """The converted network."""
    folder = ModelFolder.open(convert_checkpoint(checkpoint, "dino_swin_b", checkpoint.parent / "dino"))
    assert folder.config.class_names == tuple(f"class_{i}" for i in range(6))
    return models.load(folder.config, folder.file("model.safetensors"))


def test_arrays(module, reference, recorded):
    x = torch.as_tensor(reference.input_array((1, 3, 320, 320), seed=1))
    head = module.head
    with torch.inference_mode():
        maps = module.backbone(x)
        fused = module.neck(maps)
        tokens = head.to_tokens(fused, (320, 320))
        memory = head.encode(tokens)
        anchors, there = head.anchors(tokens)
        judged = head.memory_norm(head.memory_fc(memory * there[..., None]))
        logits, box_logits = head.propose(memory, tokens)
        chosen = head.choose(logits)
        start = box_logits.gather(1, chosen[..., None].expand(-1, -1, 4)).sigmoid()
        answers, boxes = head.decode(head.query_embedding.weight[None], start, memory, tokens)
        layers = [head.answer(answer, box, i) for i, (answer, box) in enumerate(zip(answers, boxes, strict=True))]
        found, scores = module.decode(module(x))
        best, place = scores[0].flatten().topk(300)
        arrays = {
            "feat_pos": tokens.positions, "memory": memory, "enc_output_memory": judged,
            "enc_proposals_unact": torch.where(anchors.isinf(), 99.0, anchors), "enc_cls": logits,
            "enc_reg_delta": head.box_layers[-1](judged), "init_reference": start,
            "hidden_states": torch.stack(answers), "references": torch.stack(boxes),
            "cls_logits": torch.stack([layer.logits for layer in layers]),
            "box_cxcywh": torch.stack([layer.boxes for layer in layers]), "det_bboxes": found[0, place // 6],
            "det_scores": best, "det_labels": place % 6, "spatial_shapes": torch.tensor(tokens.shapes),
        }  # fmt: skip
        for level, value in enumerate(fused):
            arrays[f"neck{level}"] = value
        for level, value in enumerate(maps):
            arrays[f"backbone{level}"] = value
    arrays = {name: value.numpy() for name, value in arrays.items()}
    names = [name for name in recorded if name.startswith("x/")]
    assert len(names) >= 35
    errors = {}
    for name in names:
        wanted = recorded[name]
        if "enc_proposals" in name:
            if name.endswith("stats"):
                continue  # of values of which some are infinite
            wanted = np.where(np.isinf(wanted), 99.0, wanted)
        if name == "x/references":
            wanted = wanted[:-1]  # the last layer's refinement is in no one's answer
        errors[name] = relative_error(as_recorded(name[2:], arrays), wanted)
    worst = max(errors, key=errors.get)
    print(f"\ndino_swin_b: {len(errors)} arrays, worst relative L2 error {errors[worst]:.1e} ({worst})")
    assert errors[worst] <= ARRAYS, worst


def test_padded_batch(module, reference, recorded):
    x = torch.as_tensor(reference.input_array((1, 3, 320, 320), seed=1))
    sizes = torch.tensor([[320, 320], recorded["batch2/img_shape1"].tolist()])
    height, width = sizes[1].tolist()
    batch = torch.zeros(2, 3, 320, 320)
    batch[0] = x[0]
    batch[1, :, :height, :width] = x[0][:, :height, 64:]
    with torch.inference_mode():
        answer = module.head(module.neck(module.backbone(batch)), (320, 320), sizes)
        boxes, _ = module.decode(module(batch, sizes))
    for name, got in (("cls_logits_last", answer.logits), ("box_last", answer.boxes)):
        error = relative_error(got, recorded[f"batch2/{name}"])
        print(f"\ndino_swin_b: batch2/{name}, relative L2 error {error:.1e}")
        assert error <= ARRAYS
    assert (boxes[1] <= torch.tensor([width, height, width, height])).all()


def check_detections(detector, recorded, engine):
    shares = {}
    for image, (share, pixels, score) in DETECTIONS.items():
        wanted = tuple(recorded[f"img_{image[6:]}/{key}"] for key in ("bboxes", "scores", "labels"))
        (found,) = detector.predict(PARITY / f"{image}.png", conf=0.0)
        assert len(found) == len(wanted[0]) == 300
        shares[image] = match_share(wanted, (found.boxes, found.scores, found.labels), pixels, score), share
    print(f"\ndino_swin_b, {engine}: " + ", ".join(f"{i} {s:.1%}" for i, (s, _) in shares.items()))
    assert all(reached >= wanted for reached, wanted in shares.values()), shares


def test_detections(module, recorded):
    check_detections(Detector(PyTorchEngine(module)), recorded, "pytorch")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("AGSSP_TEST_FULL"), reason="exports for minutes; AGSSP_TEST_FULL=1 asks for it")
def test_the_exported_file(module, reference, recorded, tmp_path):
    """Detections on the three images, and those that the recorded padded batch stands for."""
    pytest.importorskip("onnxscript")
    from agssp_zoo.engines.onnx import OnnxEngine
    from agssp_zoo.export import export_onnx

    engine = OnnxEngine.load(export_onnx(module, tmp_path / "model.onnx", verify=False))
    check_detections(Detector(engine), recorded, "onnx")
    # The recorded input is no image: its numbers are undone as if they were normalised pixels.
    x = reference.input_array((1, 3, 320, 320), seed=1)[0].transpose(1, 2, 0)
    pixels = np.clip(np.rint(x * 61.2 + 101.57), 0, 255).astype(np.uint8)
    height, width = recorded["batch2/img_shape1"].tolist()
    batch = np.zeros((2, 320, 320, 3), np.uint8)
    batch[0], batch[1, :height, :width] = pixels, pixels[:height, 64:]
    sizes = np.array([[320, 320], [height, width]])
    found, wanted = (one.run(batch, conf=0.0, sizes=sizes) for one in (engine, PyTorchEngine(module)))
    assert found.count.tolist() == wanted.count.tolist() == [300, 300]
    for image in range(2):
        one, two = ((raw.boxes[image], raw.scores[image], raw.labels[image]) for raw in (wanted, found))
        assert match_share(one, two, *DETECTIONS["image_square"][1:]) >= 0.99
    assert (found.boxes[1] <= [width, height, width, height]).all()


def test_the_backbone_is_taken_out_of_it(module, checkpoint, tmp_path):
    folder = ModelFolder.open(convert_checkpoint(checkpoint, "swin_b_simmim", tmp_path / "backbone"))
    tensors, _ = models.read_weights(folder.file("model.safetensors"))
    own = module.backbone.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in own.items() if name in tensors)
    assert own.keys() - tensors.keys() <= {"stage1.norm.weight", "stage1.norm.bias"}
    preprocess = folder.config.preprocess
    assert (preprocess.mean, preprocess.std) == ((101.57,) * 3, (61.2,) * 3)


def test_wrong_checkpoints_are_refused(checkpoint, reference, tmp_path):
    for other in ("yolov8_s", "yolov8_swin_b", "faster_rcnn_swin_b"):
        with pytest.raises(CheckpointError, match=f"looks like dino_swin_b, not {other}"):
            convert_checkpoint(checkpoint, other, tmp_path / "out")
    with pytest.raises(CheckpointError, match="has 6 classes, but 1 class names were given"):
        convert_checkpoint(checkpoint, "dino_swin_b", tmp_path / "out", class_names=("anomaly",))
    one = {"bbox_head.cls_branches.0.weight": torch.zeros(1, 256), "encoder.layers.0.norms.0.weight": torch.ones(256)}
    one["backbone.patch_embed.norm.weight"] = torch.ones(128)
    torch.save({"state_dict": one, "meta": {}}, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="has 1 classes, but 6 class names were given"):
        convert_checkpoint(tmp_path / "one.pth", "dino_swin_b", tmp_path / "out", class_names=tuple("abcdef"))
    with pytest.raises(CheckpointError, match=r"does not fit dino_swin_b\. Missing"):
        convert_checkpoint(tmp_path / "one.pth", "dino_swin_b", tmp_path / "out")
    assert not (tmp_path / "out").exists()
