"""What stage 2 says when maps, images, weights or settings are bad, or have changed when a run goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("scipy")

from detector_runs import Drawn, tensors, write_backbone, write_drawn  # noqa: E402
from pretrain_runs import write_maps, write_pool  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError, TrainingError  # noqa: E402
from agssp_zoo.folder import write_folder  # noqa: E402
from agssp_zoo.training.pretrain.stage2_cli import pretrain_detector  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return write_drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def bad(drawn: Drawn) -> Path:
    folder = drawn.folder
    write_maps(folder / "pool", folder / "flat", value=0.0)
    write_pool(folder / "other", 3, names=("brass", "zinc"))
    write_pool(folder / "single", 1, names=("steel",))
    write_maps(folder / "single", folder / "single_maps")
    write_backbone(folder / "small", "cspdarknet_s")
    config = ModelConfig.load(folder / "backbone")
    partial = {name: value for name, value in tensors(folder / "backbone").items() if not name.startswith("stage4")}
    write_folder(folder / "partial", config, {"model.safetensors": lambda path: save_file(partial, path)})
    (folder / "half").mkdir()
    (folder / "half" / "maps.npy").write_bytes(b"\x93NUMPY")
    return folder


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"maps": "flat"}, DataError, r"none of 16 images have pseudo-boxes above .* steel 0, tile 0 .*--quantile"),
        (
            {"maps": "flat", "quantile": 0.9, "margin": 0.1},
            DataError,
            r"quantile 0\.9 .* a lower --quantile .* another --method",
        ),
        ({"images": "other"}, DataError, r"has no maps of 6 of 6 images.*other images"),
        ({"maps": "half"}, DataError, r"unfinished maps"),
        ({"maps": "pool"}, DataError, r"is not a store"),
        ({"images": "single", "maps": "single_maps"}, DataError, r"1 of 1 images has .* two are the least"),
        ({"backbone_weights": ""}, TrainingError, r"needs weights: give --backbone-weights, .*--model cspdarknet_n"),
        ({"backbone_weights": "small"}, TrainingError, r"no weight fits the backbone of yolov8_n"),
        ({"backbone_weights": "partial"}, TrainingError, r"tensors of the frozen backbone cspdarknet_n are not in it"),
        ({"backbone_weights": "nowhere"}, AgsspZooError, r"nowhere"),
        ({"maps": ""}, TrainingError, r"--maps; make them with: agssp-zoo anomaly-maps"),
        ({"images": ""}, TrainingError, r"--images"),
        ({"val_fraction": 0.0}, TrainingError, r"--val-fraction is 0.0"),
        ({"val_fraction": 1.0}, TrainingError, r"--val-fraction is 1.0; it must lie between 0 and 1"),
        ({"size": 100}, TrainingError, r"--size 100: yolov8_n needs a multiple of 32"),
        ({"checkpointing": True}, TrainingError, r"--checkpointing: cspdarknet_n cannot"),
        ({"thaw": 5}, TrainingError, r"--thaw 5: cspdarknet_n has 4 stages"),
        ({"quantile": 1.5}, InvalidArgumentError, r"quantile is 1.5"),
        ({"model": "cspdarknet_n"}, TrainingError, r"takes a detector"),
    ],
)  # fmt: skip
def test_bad_input(
    values: dict[str, Any], error: type[Exception], said: str, drawn: Drawn, bad: Path, tmp_path: Path
) -> None:
    paths = {k: str(bad / v) if v else v for k, v in values.items() if k in ("images", "maps", "backbone_weights")}
    settings = {**drawn.settings, **values, **paths}
    if not settings["images"]:
        del settings["images"]
    with pytest.raises(error, match=re.compile(said, re.DOTALL)):
        pretrain_detector(out=str(tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_what_it_began_with(drawn: Drawn, tmp_path: Path) -> None:
    pool, maps, backbone = tmp_path / "pool", tmp_path / "maps", tmp_path / "backbone"
    for name in ("pool", "maps", "backbone"):
        shutil.copytree(drawn.folder / name, tmp_path / name)
    places = {"images": str(pool), "maps": str(maps), "backbone_weights": str(backbone)}
    run = str(tmp_path / "run")
    stopped = pretrain_detector(out=run, **{**drawn.settings, **places, "time_limit": 0.001})
    assert not stopped.finished
    with pytest.raises(TrainingError, match=r"other settings: --margin 0.2 \(was 0.4\)"):
        pretrain_detector(out=run, resume=True, margin=0.2)
    shutil.rmtree(maps)
    write_maps(pool, maps, value=0.0)
    with pytest.raises(DataError, match="none of 16 images"):
        pretrain_detector(out=run, resume=True)
    shutil.rmtree(maps)
    write_maps(pool, maps, value=0.5)
    with pytest.raises(TrainingError, match=r"images or boxes, settings of the maps changed since the run"):
        pretrain_detector(out=run, resume=True)
    # The same things at another place are the same things; another backbone is not.
    moved = tmp_path / "moved"
    shutil.copytree(drawn.folder / "maps", moved)
    changed = tensors(backbone)
    changed["stem.bn.bias"] += 1
    config = ModelConfig.load(backbone)
    write_folder(tmp_path / "changed", config, {"model.safetensors": lambda path: save_file(changed, path)})
    with pytest.raises(TrainingError, match="weights of the backbone changed"):
        pretrain_detector(out=run, resume=True, maps=str(moved), backbone_weights=str(tmp_path / "changed"))
    shutil.move(backbone, tmp_path / "again")
    more = {"maps": str(moved), "backbone_weights": str(tmp_path / "again"), "time_limit": 0.0}
    assert pretrain_detector(out=run, resume=True, **more).finished
