"""Faster R-CNN's answers are those of the authors' code from the same weights: arrays, inputs and detections.

Run with ``-s`` to see the figures that are reached. The weights are stand-ins, as in ``test_parity.py``.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_parity import ARRAYS, DETECTIONS, PARITY, as_recorded, match_share, relative_error  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.convert import convert_checkpoint  # noqa: E402
from agssp_zoo.folder import ModelFolder  # noqa: E402
from agssp_zoo.models.anchors import anchors_of  # noqa: E402
from agssp_zoo.models.roi_pooling import pool_regions  # noqa: E402

pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="needs the recorded answers of the authors' code")

MODEL = "faster_rcnn_swin_b"


@pytest.fixture(scope="module")
def recorded():
    with np.load(PARITY / f"{MODEL}.npz") as file:
        return {key: file[key] for key in file.files if not key.startswith("weights/")}


@pytest.fixture(scope="module")
def reference():
    """The module that draws weights and inputs."""
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """The converted checkpoint."""
    path = tmp_path_factory.mktemp("parity") / "checkpoint.pth"
    state = {key: torch.as_tensor(value) for key, value in reference.official_state_dict(MODEL, seed=1).items()}
    torch.save({"meta": {}, "state_dict": state}, path)
    del state
    out = convert_checkpoint(path, MODEL, path.parent / "model")
    path.unlink()  # half a gigabyte
    return ModelFolder.open(out)


@pytest.fixture(scope="module")
def module(folder):
    """The converted network."""
    module = models.load(folder.config, folder.file("model.safetensors"))
    assert module.num_classes == 6 and sum(p.numel() for p in module.parameters()) == pytest.approx(104.1e6, rel=1e-3)
    return module


def test_arrays(module, reference, recorded):
    settings = module.config.postprocess
    with torch.inference_mode():
        maps = module.backbone(torch.as_tensor(reference.input_array((1, 3, 320, 320), seed=1)))
        fused = module.neck(maps)
        rpn = module.head.rpn(fused)
        raw = module.head(fused, torch.tensor([[320, 320]]))
        boxes, scores, labels, count = models.select_detections(
            *module.decode(raw),
            conf=settings.conf,
            iou=settings.iou,
            max_det=settings.max_det,
            max_candidates=settings.max_candidates,
            multi_label=settings.multi_label,
        )
        arrays = {
            "proposals": raw.proposals[0], "proposal_scores": raw.proposal_scores[0], "cls_score": raw.class_logits[0],
            "bbox_pred": raw.box_deltas[0].flatten(1),
            "roi_feats_first16": pool_regions(
                fused[:4], raw.proposals[0, :16], torch.zeros(16, dtype=torch.int64), (4, 8, 16, 32)
            ),
        }  # fmt: skip
    anchors = anchors_of([x.shape[-2:] for x in fused], module.strides, torch.device("cpu"))
    for name, levels in (
        ("backbone", maps), ("neck", fused), ("rpn_cls", rpn.objectness), ("rpn_reg", rpn.deltas),
        ("anchors", [level[:64] for level in anchors]),
    ):  # fmt: skip
        arrays.update({f"{name}{level}": value for level, value in enumerate(levels)})
    arrays = {name: value.numpy() for name, value in arrays.items()}
    names = [name for name in recorded if name.startswith("x/") and not name.startswith("x/det_")]
    assert len(names) > 45
    errors = {name: relative_error(as_recorded(name[2:], arrays), recorded[name]) for name in names}
    worst = max(errors, key=errors.get)
    print(f"\n{MODEL}: {len(names)} arrays, worst relative L2 error {errors[worst]:.1e} ({worst})")
    assert errors[worst] <= ARRAYS, worst
    wanted = [recorded[f"x/det_{key}"] for key in ("bboxes", "scores", "labels")]
    assert int(count[0]) == 100
    assert match_share(wanted, [x[0].numpy() for x in (boxes, scores, labels)], 0.5, 1e-3) >= 0.99


@pytest.mark.parametrize("image", DETECTIONS)
def test_inputs(module, recorded, image):
    """Size, corner and checksums of what the network is given."""
    from agssp_zoo.geometry import prepare
    from agssp_zoo.images import read_image

    pixels, placement = prepare(read_image(PARITY / f"{image}.png"), module.config.preprocess)
    x = module.normalize(torch.from_numpy(pixels[None]), torch.tensor([placement.resized])).numpy()
    mine = {key.rpartition("/")[2]: value for key, value in recorded.items() if key.startswith(f"img_{image[6:]}/")}
    assert x.shape == tuple(mine["input_shape"]) and placement.resized == tuple(mine["meta_img_shape"])
    assert np.abs(x[0, :, :8, :8] - mine["normalised_corner"]).max() <= 1.01 / 61.2
    values = x.astype(np.float64)
    assert relative_error([values.sum(), np.square(values).sum()], mine["input_checksum"]) <= ARRAYS


@pytest.mark.parametrize("engine", ["pytorch", "onnx"])
def test_detections(folder, recorded, engine):
    from agssp_zoo.detector import load_detector

    if engine == "onnx":
        pytest.importorskip("onnxscript")
        from agssp_zoo.export import export_onnx

        export_onnx(folder.path, verify=False)
    detector = load_detector(folder.path, engine=engine)
    shares = {}
    for image, (share, pixels, score) in DETECTIONS.items():
        wanted = [recorded[f"img_{image[6:]}/{key}"] for key in ("bboxes", "scores", "labels")]
        (found,) = detector.predict(PARITY / f"{image}.png")
        shares[image] = match_share(wanted, (found.boxes, found.scores, found.labels), pixels, score), share
    print(f"\n{MODEL}, {engine}: " + ", ".join(f"{i} {s:.1%}" for i, (s, _) in shares.items()))
    assert all(reached >= wanted for reached, wanted in shares.values()), shares
