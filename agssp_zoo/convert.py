"""The AGSSP authors' checkpoints (OpenMMLab's layout) -> model folders.

Names of the two layouts correspond one to one, by the rules in :mod:`agssp_zoo.layouts`; shapes and values stay. Every
entry of a checkpoint is used, or is named there as left out; anything else is an error. What it lacks is an error too,
but for norms behind maps that its network did not hand out.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from agssp_zoo import models
from agssp_zoo.checkpoint import load_checkpoint
from agssp_zoo.config import ModelConfig, Preprocess
from agssp_zoo.errors import CheckpointError, InvalidArgumentError
from agssp_zoo.folder import check_target, sha256_file, write_folder
from agssp_zoo.layouts import DETECTORS, LEFT_OUT, RENAMES, STAGE1_PREPROCESS, layout_of
from agssp_zoo.models.factory import Architecture
from agssp_zoo.models.weights import compare_shapes, load_state, shorten
from agssp_zoo.registry import resolve_name

__all__ = ["convert_checkpoint", "load_checkpoint", "official_name"]


def convert_checkpoint(
    path: str | os.PathLike[str],
    arch: str,
    out: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Makes a model folder of a checkpoint of the authors.

    The values are those of ``state_dict``. For the YOLO detectors these are the averaged (EMA) weights already;
    ``ema_state_dict`` then holds the raw ones and is not used. A backbone can be taken from a stage-1 checkpoint, or
    from a detector that has it.

    Args:
        path: the checkpoint (.pth).
        arch: our architecture, e.g. ``"yolov8_s"`` or ``"resnet50"``; with a tag (``"yolov8_s.agssp_mine"``) it is
            the name of the model.
        out: the folder to make; must not be there yet.
        class_names: of a detector, in label order; default what the checkpoint says, else ``"anomaly"`` for one
            class and ``"class_0"``, ``"class_1"`` ... for more.

    Returns:
        The folder: config.json, model.safetensors, README.md, checksums.json.

    Raises:
        UnsafeCheckpointError: the file names Python objects that a checkpoint has no need of.
        CheckpointError: the file cannot be read, is of another architecture, lacks entries, has unknown or misshapen
            ones, or another number of classes.
        ModelNotFoundError: no such architecture.
        InvalidArgumentError: class names for a backbone, or ``out`` is there already.
    """
    architecture = models.get_architecture(arch.split(".", 1)[0])
    check_target(out)
    checkpoint = load_checkpoint(path)
    state = _state_dict(checkpoint, str(path))
    _check_architecture(state, architecture, str(path))
    base = models.default_config(architecture.name)
    names = _class_names(checkpoint, state, architecture, class_names, str(path))
    family = _detector_family(state)
    config = _with_settings(base.replace(name=_model_name(arch, names), class_names=names), family)
    module = models.build(config, init=False)
    filled = _filled_entries(state, module, architecture)
    own = {name: tensor for name, tensor in module.state_dict().items() if name not in filled}
    used = _used_entries(state, own, architecture, str(path))
    load_state(module, {**used, **filled}, where=str(path))
    provenance = _provenance(Path(path), checkpoint, state, architecture, family is not None)
    if filled:
        provenance["not_in_file"] = sorted({name.rpartition(".")[0] for name in filled})
    config = config.replace(provenance=provenance)
    return write_folder(out, config, {"model.safetensors": lambda target: models.save_weights(module, target, config)})


def official_name(name: str, task: str = "detector") -> str:
    """The authors' name of an entry of our ``state_dict``.

    Args:
        name: our name.
        task: of the network that it belongs to; the authors' backbones are always part of a whole.
    """
    if task == "backbone":
        name = f"backbone.{name}"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _state_dict(checkpoint: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The weights of a checkpoint; also of a file that holds nothing else."""
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{where}: holds no state_dict, but {shorten(map(str, checkpoint))}.")
    wrong = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong:
        raise CheckpointError(f"{where}: entries of the state_dict that are no tensors: {shorten(wrong)}.")
    return state


def _used_entries(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], architecture: Architecture, where: str
) -> dict[str, Tensor]:
    """The entries of a checkpoint under our names, every one accounted for.

    Raises:
        CheckpointError: entries are missing, misshapen or unknown; the message lists them by the authors' names.
    """
    theirs = {official_name(name, architecture.task): name for name in own}
    patterns = [pattern for pattern, _ in LEFT_OUT[architecture.task]]
    offered = {n: t for n, t in state.items() if not any(re.search(p, n) for p in patterns)}
    problems = compare_shapes(
        {name: tuple(own[ours].shape) for name, ours in theirs.items()},
        {name: tuple(tensor.shape) for name, tensor in offered.items()},
    )
    if problems:
        raise CheckpointError(f"{where} does not fit {architecture.name}. {problems}")
    return {theirs[name]: tensor for name, tensor in offered.items()}


def _filled_entries(
    state: Mapping[str, Tensor], module: models.ZooModule, architecture: Architecture
) -> dict[str, Tensor]:
    """What a checkpoint lacks because its network had no use for it: norms behind maps that nobody took.

    A stage-1 checkpoint has the one of the last stage at least, a detector's those of the maps that its neck takes.
    """
    if isinstance(module, models.DetectorModule):
        optional = module.backbone.optional_entries(module.backbone.out_indices)
        optional = {f"backbone.{name}": tensor for name, tensor in optional.items()}
    else:
        assert isinstance(module, models.Backbone)
        optional = module.optional_entries([len(module.stages) - 1])
    return {name: value for name, value in optional.items() if official_name(name, architecture.task) not in state}


def _check_architecture(state: Mapping[str, Tensor], architecture: Architecture, where: str) -> None:
    """Refuses a checkpoint of another architecture, and says which one it looks like.

    A checkpoint in which only some entries are missing or misshapen passes; they are listed later.
    """
    found = guess_architecture(state)
    if found is None or architecture.name in (found, _backbone_of(found)):
        return
    hint = f"convert it with the architecture {found}"
    if found not in models.ARCHITECTURES:
        hint = "this version cannot convert it"
    raise CheckpointError(f"{where} looks like {found}, not {architecture.name}; {hint}.")


def guess_architecture(state: Mapping[str, Tensor]) -> str | None:
    """Which architecture a checkpoint of the authors belongs to, by its names and shapes; ``None`` if unclear."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    detector = _detector_family(shapes)
    if any(name.startswith("backbone.patch_embed.") for name in shapes):
        # The table of relative positions has (2 * window - 1)**2 rows: window 7, or SimMIM's 6. Of the other detectors
        # with Swin there is one each.
        table = next((s for n, s in shapes.items() if n.endswith("relative_position_bias_table")), (0,))
        backbone = "swin_b_simmim" if table[0] == 121 and detector in (None, "yolov8") else "swin_b"
    elif "backbone.layer1.0.conv1.weight" in shapes:
        backbone = "resnet50" if "backbone.layer3.5.conv1.weight" in shapes else "resnet"
    elif "backbone.stem.conv.weight" in shapes:
        scale = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}.get(shapes["backbone.stem.conv.weight"][0], "?")
        return f"yolov8_{scale}" if detector == "yolov8" else f"cspdarknet_{scale}"
    else:
        return None
    return f"{detector}_{backbone}" if detector else backbone


def _detector_family(names: Mapping[str, object]) -> str | None:
    """Which kind of detector has entries of these names; ``None`` for a backbone."""
    for family, layout in DETECTORS.items():
        if any(name.startswith(layout.marks) for name in names):
            return family
    if any(name.startswith("encoder.") for name in names):
        return "dino"
    return None


def _backbone_of(name: str) -> str | None:
    """The backbone of a detector that we can build."""
    return models.ARCHITECTURES[name].backbone if name in models.ARCHITECTURES else None


def _class_names(
    checkpoint: Mapping[str, Any],
    state: Mapping[str, Tensor],
    architecture: Architecture,
    class_names: Sequence[str] | None,
    where: str,
) -> tuple[str, ...]:
    """The class names to write: what was asked for, else what the checkpoint says, else made-up ones."""
    if architecture.task == "backbone":
        if class_names:
            raise InvalidArgumentError(f"{architecture.name} is a backbone and has no classes; leave class_names out.")
        return ()
    layout = layout_of(architecture.name)
    layer = state.get(layout.class_layer)
    if layer is None or layer.ndim < 2 or layer.shape[0] <= layout.background:
        raise CheckpointError(f"{where} does not fit {architecture.name}. Missing (1): {layout.class_layer}.")
    count = layer.shape[0] - layout.background
    if class_names:
        if len(class_names) != count:
            raise CheckpointError(f"{where} has {count} classes, but {len(class_names)} class names were given.")
        return tuple(class_names)
    meta = checkpoint.get("meta")
    data = meta.get("dataset_meta") if isinstance(meta, dict) else None
    said = (data.get("classes") or data.get("CLASSES")) if isinstance(data, dict) else None
    if isinstance(said, str):
        said = (said,)
    if isinstance(said, (list, tuple)) and len(said) == count == len(set(map(str, said))):
        return tuple(str(name) for name in said)
    return ("anomaly",) if count == 1 else tuple(f"class_{i}" for i in range(count))


def _model_name(arch: str, class_names: Sequence[str]) -> str:
    """The model's name: as asked for, else the registry's for the authors' models."""
    if "." in arch or len(class_names) <= 1:
        return resolve_name(arch)
    return f"{arch}.agssp_finetuned"


def _with_settings(config: ModelConfig, family: str | None) -> ModelConfig:
    """The config with the authors' settings.

    A backbone takes images as in stage 1, or normalised as in the detector that it was taken from.
    """
    if config.task == "detector":
        layout = layout_of(config.architecture)
        postprocess = dataclasses.replace(layout.postprocess, multi_label=len(config.class_names) > 1)
        return config.replace(preprocess=layout.preprocess, postprocess=postprocess)
    pixels = STAGE1_PREPROCESS
    if family is not None:
        pixels = DETECTORS[family].preprocess if family in DETECTORS else Preprocess()
    return config.replace(
        preprocess=Preprocess(size=config.preprocess.size, fit="stretch", mean=pixels.mean, std=pixels.std)
    )


def _provenance(
    path: Path,
    checkpoint: Mapping[str, Any],
    state: Mapping[str, Tensor],
    architecture: Architecture,
    from_detector: bool,
) -> dict[str, Any]:
    """Where the weights come from, for config.json."""
    left_out: dict[str, int] = {}
    for name in state:
        why = next((why for pattern, why in LEFT_OUT[architecture.task] if re.search(pattern, name)), None)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
    meta = checkpoint.get("meta")
    said = {
        key: meta[key]
        for key in ("epoch", "iter", "experiment_name", "time", "mmengine_version")
        if isinstance(meta, dict) and isinstance(meta.get(key), (int, float, str))
    }
    unused = (
        sorted(str(key) for key in checkpoint if key not in ("state_dict", "meta"))
        if "state_dict" in checkpoint
        else []
    )
    return {
        "source": "checkpoint of the AGSSP authors (arXiv 2509.18919)",
        "file": path.name,
        "sha256": sha256_file(path),
        "stage": "detector" if from_detector else "stage-1 backbone",
        "entries": len(state),
        "left_out": left_out,
        "not_read": unused,
        "checkpoint_meta": said,
    }
