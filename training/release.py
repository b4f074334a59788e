"""``python -m agssp_zoo.training.release``: a trained model as a folder that can be published.

Stores matrices in float16 and vectors in float32, adds the ONNX file, measures the stored weights and the trained ones
in the same call, and writes the card with the figures and the commands that made them.

    python -m agssp_zoo.training.release runs/x/best --name yolov8_n.agssp_neu_det --data DATA \
        --out model_cards/yolov8_n.agssp_neu_det --trained-by "agssp-zoo finetune ..." --notes notes.md

Without ``--data`` (a pretrained model, which has no score of its own) it measures how far the stored weights' maps are
from the trained ones'.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agssp_zoo.errors import AgsspZooError, InvalidArgumentError

if TYPE_CHECKING:
    from agssp_zoo.models import Backbone, ZooModule

KEPT = (
    "license", "datasets", "seed", "data_fingerprint", "pretrained_on", "anomaly_maps", "start", "versions",
    "git_commit", "epoch",
)  # fmt: skip
"""What of the run's provenance stands in the released config.json; the settings are in the command."""


def release(
    best: Path,
    out: Path,
    *,
    name: str,
    data: Path | None = None,
    trained_by: tuple[str, ...] = (),
    notes: str = "",
    datasets: tuple[str, ...] = (),
    onnx: bool = True,
) -> Mapping[str, float]:
    """Makes the folder; it is put in its place when everything is measured.

    Args:
        best: the model folder that a run has written.
        out: the folder to write; it may be there.
        name: the model's name, ``architecture.tag``.
        data: the data set; its split ``val`` is what is measured. None: no scores, but what storing in
            float16 changes.
        trained_by: the commands that trained it, in order.
        notes: Markdown for the card: terms of the data, limits.
        datasets: names of the data sets, for the card's header.
        onnx: write model.onnx too.

    Returns:
        The figures of the released model; empty without data.

    Raises:
        InvalidArgumentError: a backbone is to be measured on a data set, the name is not of the model's architecture,
            or the folder to write is the one that is read, or no model folder.
    """
    from agssp_zoo import models
    from agssp_zoo.card import render_card
    from agssp_zoo.export import export_onnx
    from agssp_zoo.folder import ModelFolder, check_target, write_folder

    trained = ModelFolder.open(best)
    if data is not None and trained.config.task != "detector":
        raise InvalidArgumentError(
            f"{best} holds a {trained.config.task}; leave --data out, only detectors have scores."
        )
    architecture = trained.config.architecture
    if name != architecture and not re.fullmatch(rf"{architecture}\.[\w.-]+", name):
        raise InvalidArgumentError(f"--name {name!r}: {best} is a {architecture}; give {architecture}.TAG.")
    if out.expanduser().resolve() == best.expanduser().resolve():
        raise InvalidArgumentError(f"{out} holds the weights as trained, which would be lost; give another --out.")
    check_target(out, overwrite=True)
    module = models.load(trained.config, trained.file("model.safetensors"))
    origin = trained.config.provenance
    provenance: dict[str, Any] = {key: origin[key] for key in KEPT if origin.get(key) is not None}
    provenance |= {"datasets": list(datasets), "trained_by": list(trained_by)}
    config = trained.config.replace(name=name, provenance=provenance)
    files = {"model.safetensors": lambda path: models.save_weights(module, path, config, half_matrices=True)}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="release-") as place:
        built = write_folder(Path(place, "model"), config, files)
        if onnx:
            export_onnx(ModelFolder.open(built))
            content = (built / "model.onnx").read_bytes()
        released = models.load(config, built / "model.safetensors")
        if data is None:
            text = _storage_text(_map_errors(module, released))
        else:
            text, figures = _measure(name, data, best, built, onnx)
            config = config.replace(provenance={**provenance, "metrics": figures})
    writers = {"model.safetensors": lambda path: models.save_weights(released, path, config, half_matrices=True)}
    if onnx:
        writers["model.onnx"] = lambda path: _write(path, content)
    card = render_card(config, files=["config.json", *writers], text=f"{text}\n{notes}")
    write_folder(out, config, writers, card=card, overwrite=True)
    return figures


def _measure(name: str, data: Path, best: Path, built: Path, onnx: bool) -> tuple[str, dict[str, float]]:
    """The card's figures, and the three that stand in its header; of the weights as trained and as released."""
    from agssp_zoo.folder import ModelFolder

    from .data import read_dataset
    from .evaluation.runner import validate
    from .evaluation.settings import ValidationSettings

    dataset = read_dataset(data)
    before = validate(best, dataset, split="val", settings=ValidationSettings(engine="pytorch")).metrics
    engine = "onnx" if onnx else "pytorch"
    after = validate(built, dataset, split="val", settings=ValidationSettings(engine=engine)).metrics
    figures = {key: round(float(getattr(after, key)), 4) for key in ("map50", "map75", "map50_95")}
    post = ModelFolder.open(built).config.postprocess
    return _figures_text(name, data, engine, post.iou if post else 1.0, before, after), figures


def _map_errors(trained: ZooModule, released: ZooModule) -> list[float]:
    """Relative L2 errors of the released backbone's maps, on a drawn surface."""
    import torch

    from .synthetic import draw_sample

    image = torch.from_numpy(draw_sample(0, size=(256, 256)).image)[None]
    maps = []
    for module in (trained, released):
        backbone = cast("Backbone", getattr(module, "backbone", module))
        with torch.inference_mode():
            maps.append(backbone.eval()(backbone.normalize(image)))
    return [float((got - wanted).norm() / wanted.norm()) for wanted, got in zip(*maps, strict=True)]


def _storage_text(errors: list[float]) -> str:
    """What storing in float16 changes."""
    return (
        "Matrices are stored in float16, which moves the backbone's maps on a drawn steel surface by at most "
        f"{max(errors):.1e} of their norm.\n"
    )


def _figures_text(name: str, data: Path, engine: str, nms_iou: float, before: Any, after: Any) -> str:
    """The card's figures; ``before`` are those of the weights as trained, ``after`` of the files released."""
    rows = "".join(
        f"| {key} | {getattr(after, key):.4f} | {getattr(before, key):.4f} |\n"
        for key in ("map50", "map75", "map50_95", "map_small", "map_medium", "map_large")
    )
    classes = "".join(f"| {one.name} | {one.boxes} | {one.ap50:.3f} | {one.ap50_95:.3f} |\n" for one in after.classes)
    return (
        "## Figures\n\n"
        f"`agssp-zoo val --data {data.name} --model {name} --engine {engine} --out runs/val` (COCO's definitions, "
        f"scores above 0.001, overlapping boxes of a class suppressed from IoU {nms_iou:g} on, at most 100 detections "
        "a class and image). Beside them the same of the weights as trained: "
        f"storing matrices in float16 moves map50_95 by {100 * (after.map50_95 - before.map50_95):+.2f} points.\n\n"
        f"| | released (float16 matrices, {engine}) | as trained (float32, PyTorch) |\n|---|--:|--:|\n{rows}\n"
        f"| class | boxes | AP50 | AP50_95 |\n|---|--:|--:|--:|\n{classes}"
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agssp_zoo.training.release", description="A trained model as a folder to publish."
    )
    parser.add_argument("best", type=Path, help="model folder of a run, e.g. runs/x/best")
    parser.add_argument("--name", required=True, help="architecture.tag")
    parser.add_argument(
        "--data", type=Path, help="data set whose split val is measured; left out for pretrained models"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--trained-by", action="append", default=[], help="a command of the training; repeatable")
    parser.add_argument("--datasets", nargs="*", default=[], help="names for the card's header")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="write no model.onnx")
    parser.add_argument("--notes", type=Path, help="Markdown file for the card: terms of the data, limits")
    args = parser.parse_args(arguments)
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    figures = release(
        args.best,
        args.out,
        name=args.name,
        data=args.data,
        trained_by=tuple(args.trained_by),
        notes=notes,
        datasets=tuple(args.datasets),
        onnx=args.onnx,
    )
    sys.stdout.write(f"{args.out}: {figures or 'written'}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AgsspZooError as error:
        sys.exit(f"release: {error}")
