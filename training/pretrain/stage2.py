"""Stage 2, anomaly-guided detector pretraining (AGDP): a detector learns the pseudo-boxes of anomaly maps.

The boxes come from the maps (:mod:`~agssp_zoo.training.anomaly.boxes`), the training is that of fine-tuning with the
backbone frozen: neck and head get used to the pretrained backbone. Frozen stages need no gradients, so autograd keeps
nothing of them and a step costs their forward pass only.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agssp_zoo.errors import DataError, TrainingError

from ..anomaly.boxes import CLASS_NAME, PseudoBoxes, box_statistics, pseudo_boxes
from ..anomaly.boxes_cli import to_text
from ..anomaly.boxes_files import to_coco_boxes
from ..anomaly.store import MapStore
from ..data.dataset import Dataset
from ..data.problems import some
from ..record import circumstances, command_line, fingerprint, folder_name, names_only
from .pool import read_mapped
from .stage2_settings import HIDDEN, DetectorSettings

if TYPE_CHECKING:
    from ..transfer import Start

COMMAND = "pretrain-detector"
SCORED_ON = "pseudo-boxes of held-out images of the pool: agreement with the anomaly maps, not with labels"


@dataclass(frozen=True, eq=False)
class BoxPool:
    """Images with pseudo-boxes as their labels.

    Attributes:
        train: the images to learn from.
        val: the images held out.
        boxes: the boxes of both, and of what was left out.
        store: the maps that they come from.
    """

    train: Dataset
    val: Dataset
    boxes: PseudoBoxes
    store: MapStore


def read_boxes(settings: DetectorSettings) -> BoxPool:
    """Reads the images, makes their pseudo-boxes and holds a part of them out.

    Raises:
        DataError: images or maps cannot be read, the maps are of other images, or there are no boxes to learn.
    """
    images, store = read_mapped(settings)
    boxes = pseudo_boxes(store, images, settings.rule)
    records = [replace(record, split="train") for record in boxes.images]
    filled = sum(len(record.boxes) > 0 for record in records)
    if filled < 2:
        raise DataError(_too_few(settings, boxes, filled))
    if settings.empty == "drop":
        records = [record for record in records if len(record.boxes)]
    divided = replace(boxes.images, records=tuple(records)).random_split(settings.val_fraction, settings.seed)
    train, val = divided.split("train"), divided.split("val")
    for part, name in ((train, "images to learn from"), (val, "held-out images")):
        if not part.class_counts().sum():
            raise DataError(
                f"{images.path}: none of the {len(part)} {name} has a pseudo-box ({filled} of {len(records)} images "
                "have some); give another --val-fraction or --seed, or --empty drop."
            )
    return BoxPool(train, val, boxes, store)


def _too_few(settings: DetectorSettings, boxes: PseudoBoxes, filled: int) -> str:
    """Why there is nothing to learn, and what to try."""
    if settings.quantile is not None:
        rule = f"with the quantile {settings.quantile:g} of each image's pixels as its threshold"
        remedy = "a lower --quantile makes larger boxes"
    else:
        limits = ", ".join(f"{source} {limit:.3g}" for source, limit in sorted(boxes.thresholds.items()))
        rule = f"above the thresholds {limits} (mean maximum minus --margin {settings.margin:g})"
        remedy = "try a larger --margin, or --quantile 0.95, which gives each image a threshold of its own"
    return (
        f"{settings.maps}: {filled or 'none'} of {len(boxes.images)} images {'has' if filled == 1 else 'have'} "
        f"pseudo-boxes {rule}; two are the least. Regions of less than 10 pixels are no boxes, and a flat map has "
        f"none: look at the maps with `agssp-zoo pseudo-boxes {settings.maps} --visualize`; {remedy}, or make the "
        "maps by another --method."
    )


def write_boxes(pool: BoxPool, folder: Path) -> None:
    """Writes the boxes as a data set in COCO's format, ``instances_train.json`` and ``instances_val.json``.

    ``agssp-zoo val --data FOLDER`` and ``check-data`` read it, with the images where they are.

    Raises:
        TrainingError: it cannot be written.
    """
    from ..anomaly.layout import writing
    from ..state import write_text

    scores = {record.key: values for record, values in zip(pool.boxes.images, pool.boxes.scores, strict=True)}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", pool.train), ("val", pool.val)):
            chosen = replace(pool.boxes, images=part, scores=tuple(scores[record.key] for record in part))
            text = json.dumps(to_coco_boxes(chosen, pool.store), ensure_ascii=False)
            write_text(folder / f"instances_{name}.json", text + "\n")


def check_frozen(settings: DetectorSettings, start: Start) -> None:
    """Refuses to freeze a backbone that would stay as it was drawn.

    Raises:
        TrainingError: weights of stages that do not learn are missing.
    """
    backbone = start.module.backbone
    if settings.thaw == len(backbone.stages):
        return
    name = backbone.config.architecture
    if not start.loaded:
        raise TrainingError(
            f"The backbone is frozen, so it needs weights: give --backbone-weights, as `agssp-zoo pretrain-backbone "
            f"--model {name}` leaves them in OUT/last, or a --model that has weights with --weights auto."
        )
    drawn = [tensor for tensor in start.left if tensor.startswith("backbone.")]
    if drawn:
        raise TrainingError(
            f"{settings.backbone_weights or settings.model}: {len(drawn)} tensors of the frozen backbone {name} are "
            f"not in it, or have another shape there ({some(drawn)}); give weights of a {name}."
        )


def describe(settings: DetectorSettings, pool: BoxPool, start: Start) -> dict[str, Any]:
    """The content of the run's config.json."""
    counts = {name: pool.boxes.sources.count(name) for name in sorted(set(pool.boxes.sources))}
    return {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.to_dict().items()},
        "class_names": [CLASS_NAME],
        "data": {
            "paths": [path if "://" in path else str(Path(path).resolve()) for path in settings.images],
            "names": [folder_name(path) for path in settings.images],
            "fingerprint": fingerprint(pool.train, pool.val),
            "images_by_source": counts,
            "train_images": len(pool.train),
            "val_images": len(pool.val),
        },
        "boxes": {
            "train": int(pool.train.class_counts().sum()),
            "val": int(pool.val.class_counts().sum()),
            "images_without": sum(not len(record.boxes) for record in pool.boxes.images),
            "empty": settings.empty,
            "thresholds": {name: round(limit, 6) for name, limit in pool.boxes.thresholds.items()},
            "statistics": box_statistics(pool.boxes),
        },
        "maps": {
            "path": str(Path(settings.maps).resolve()),
            "fingerprint": pool.store.fingerprint,
            "grid": list(pool.store.grid),
            "settings": pool.store.settings,
        },
        "start": {
            "source": start.source,
            "provenance": dict(start.provenance),
            "backbone_sha256": _backbone_sha256(settings),
            "tensors_loaded": start.loaded,
            "tensors_drawn": list(start.left),
        },
        "scored_on": SCORED_ON,
        **circumstances(),
        "command": command_line(COMMAND, settings, leave_out=HIDDEN),
    }


def changes(record: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What is no longer as it was when a run began that goes on."""
    checked = {
        "images or boxes": ("data", "fingerprint"),
        "anomaly maps": ("maps", "fingerprint"),
        "settings of the maps": ("maps", "settings"),
        "weights of the backbone": ("start", "backbone_sha256"),
    }
    return [name for name, (part, key) in checked.items() if record[part][key] != stored[part][key]]


def provenance(record: dict[str, Any], settings: DetectorSettings) -> dict[str, Any]:
    """What the models' config.json, and from it their card, say about their origin, without paths of this machine."""
    data, maps, boxes = record["data"], record["maps"], record["boxes"]
    places = ("images", "exclude", "maps", "out", "data", "license", "backbone_weights")
    instead = {
        "images": tuple(folder_name(path) for path in settings.images),
        "exclude": folder_name(settings.exclude),
        "maps": folder_name(settings.maps),
        "model": folder_name(settings.model),
        "backbone_weights": record["start"]["source"],
    }
    return {
        **({"license": settings.license} if settings.license else {}),
        "datasets": sorted(data["images_by_source"]),
        "pretrained_on": {k: data[k] for k in ("fingerprint", "train_images", "val_images", "images_by_source")},
        "pseudo_boxes": {k: v for k, v in boxes.items() if k != "statistics"},
        "metrics_measured_on": record["scored_on"],
        "anomaly_maps": names_only({k: maps[k] for k in ("fingerprint", "grid", "settings")}),
        "start": {k: v for k, v in record["start"].items() if k != "tensors_drawn"},
        "seed": settings.seed,
        "commands": [
            *earlier_commands(settings),
            command_line(COMMAND, settings, instead, leave_out=(*HIDDEN, "out", "license")),
        ],
        "settings": names_only({k: v for k, v in record["settings"].items() if k not in places}),
        "versions": record["versions"],
        "git_commit": record["git_commit"],
    }


def earlier_commands(settings: DetectorSettings) -> list[str]:
    """The command that made the backbone, where its model folder states one."""
    from agssp_zoo.hub import resolve

    if not settings.backbone_weights:
        return []
    said = resolve(settings.backbone_weights, files=("config.json",)).config.provenance.get("command")
    return [said] if isinstance(said, str) else []


def _backbone_sha256(settings: DetectorSettings) -> str | None:
    from agssp_zoo.folder import sha256_file
    from agssp_zoo.hub import resolve

    if not settings.backbone_weights:
        return None
    return sha256_file(resolve(settings.backbone_weights).file("model.safetensors"))


def announce(settings: DetectorSettings, pool: BoxPool, start: Start, resumed: bool) -> None:
    """Says what the run learns from."""
    counts = np.array([len(pool.train), len(pool.val)])
    method = pool.store.settings.get("method", "maps")
    frozen = f"{settings.freeze} of {len(start.module.backbone.stages)} stages of the backbone frozen"
    lines = [to_text(entry).rstrip("\n") for entry in box_statistics(pool.boxes)]
    lines += [
        f"{settings.model} on pseudo-boxes of {counts.sum()} images, {counts[0]} to learn from and {counts[1]} held "
        f"out; maps {method}; {frozen}",
        f"resuming {settings.out}" if resumed else f"weights: {start.source} ({start.loaded} tensors)",
        f"map50 and the like are measured on {SCORED_ON}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
