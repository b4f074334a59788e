"""What every kind of detector must bear: no boxes to learn, no boxes found, images and inputs of any size, stage 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_runs import QUICK
from pretrain_runs import write_maps, write_pool
from test_dino import SMALL as DINO
from test_faster_rcnn import OPTIONS as FASTER_RCNN
from training_runs import SMALL, write_data

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from agssp_zoo import models  # noqa: E402
from agssp_zoo.detector import Detector  # noqa: E402
from agssp_zoo.engines.pytorch import PyTorchEngine  # noqa: E402
from agssp_zoo.errors import InvalidArgumentError  # noqa: E402
from agssp_zoo.folder import write_folder  # noqa: E402
from agssp_zoo.models import Targets  # noqa: E402
from agssp_zoo.training.families import family_of  # noqa: E402
from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.pretrain.stage2_cli import pretrain_detector  # noqa: E402
from agssp_zoo.training.settings import TrainSettings  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {"yolov8_n": {}, "faster_rcnn_swin_b": FASTER_RCNN, "dino_swin_b": DINO}
NAMES = ("dark", "bright", "striped")


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(architecture: str, names: tuple[str, ...] = NAMES) -> models.DetectorModule:
    torch.manual_seed(5)
    module = models.build(models.default_config(architecture, class_names=names, options=OPTIONS[architecture]))
    assert isinstance(module, models.DetectorModule)
    return module.eval()


def save(module: models.ZooModule, folder: Path) -> Path:
    config = module.config
    return write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)})


@pytest.mark.parametrize("architecture", OPTIONS)
def test_no_detections_are_an_answer_and_images_of_a_batch_may_differ(architecture: str) -> None:
    detector = Detector(PyTorchEngine(build(architecture)))
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((64, 96), (50, 70), (96, 33))]
    for found, image in zip(detector.predict(images, conf=1.0, size=96, batch=3), images, strict=True):
        assert len(found) == 0 and found.boxes.shape == (0, 4) and found.image_size == image.shape[:2]
        assert found.to_dict()["boxes"] == [] and found.plot().size == image.shape[1::-1]
    together = detector.predict(images, conf=0.0, size=(96, 96), batch=3)
    alone = [detector.predict(image, conf=0.0, size=(96, 96))[0] for image in images]
    assert sum(map(len, together)) > 20
    for one, other in zip(together, alone, strict=True):
        assert abs(len(one) - len(other)) <= 0.02 * len(other)
        assert one.scores[:5] == pytest.approx(other.scores[:5], rel=1e-3)


@pytest.mark.parametrize("architecture", OPTIONS)
def test_images_without_boxes_are_learnt_from(architecture: str) -> None:
    module = build(architecture).train()
    loss = family_of(module).build_loss(module, TrainSettings(data="x"), np.array([1, 1, 1]))
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    box, labels = torch.tensor([[[8.0, 8, 40, 44]], [[0, 0, 0, 0]]]), torch.zeros(2, 1, dtype=torch.int64)
    for mask in (torch.tensor([[True], [False]]), torch.zeros(2, 1, dtype=torch.bool)):
        module.zero_grad(set_to_none=True)
        given = Targets(labels, box, mask)
        sums = loss(module(module.normalize(images), None, given), given)
        assert torch.isfinite(sums.total) and sums.total > 0
        sums.total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("architecture", OPTIONS)
def test_inputs_that_are_no_multiple_of_the_stride(architecture: str) -> None:
    module, x = build(architecture), torch.zeros(1, 3, 64, 70)
    if architecture == "dino_swin_b":  # any size
        with torch.inference_mode():
            assert module.decode(module(x))[0].isfinite().all()
    else:
        with pytest.raises(InvalidArgumentError, match=r"64x70; .* needs multiples of 32"):
            module(x)


@pytest.mark.slow
def test_faster_rcnn_learns_pseudo_boxes(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 4)
    write_maps(tmp_path / "pool", tmp_path / "maps")
    start = save(build("faster_rcnn_swin_b", ("a",)), tmp_path / "start")
    own = {key: FASTER_RCNN[key] for key in ("embed_dim", "depths", "heads")}
    backbone = save(models.build(models.default_config("swin_b_simmim", options=own)), tmp_path / "backbone")
    settings = {
        **QUICK, "images": str(tmp_path / "pool"), "maps": str(tmp_path / "maps"), "val_fraction": 0.25, "margin": 0.4,
        "backbone_weights": str(backbone), "model": str(start), "epochs": 1, "precision": "bf16",
    }  # fmt: skip
    assert pretrain_detector(out=str(tmp_path / "run"), **settings).finished
    given = {f"backbone.{name}": value for name, value in load_file(backbone / "model.safetensors").items()}
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run" / "last" / "model.safetensors")
    same = {name for name in given if torch.equal(given[name], after[name])}
    assert given.keys() - same <= {"backbone.stem.proj.weight", "backbone.stem.proj.bias"}  # fitted to its pixels
    learnt = [name for name in before if name.startswith(("neck.", "head.roi.hidden."))]
    assert learnt and not [name for name in learnt if torch.equal(before[name], after[name])]
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.slow
def test_dino_learns_with_two_frozen_stages_in_half_precision(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=4, val=2, names=NAMES)
    start = save(build("dino_swin_b"), tmp_path / "start")
    settings = {**SMALL, "weights": "auto", "epochs": 1, "close_mosaic": 0, "freeze": 2, "precision": "bf16"}
    finetune(**settings, data=str(data), model=str(start), out=str(tmp_path / "run"))
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "run" / "last"))
    frozen = [name for name in before if name.startswith(("backbone.stem.", "backbone.stage1.", "backbone.stage2."))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    learnt = [name for name in before if name.startswith(("backbone.stage3.blocks.", "neck.convs.", "head.decoder."))]
    assert learnt and not [name for name in learnt if torch.equal(before[name], after[name])]
    assert all(value.isfinite().all() for value in after.values())
