"""The starts of fine-tuning that :mod:`benchmarks.gain` compares, and the pretraining runs behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NMS_IOU = 0.7
"""What tables are scored with: `finetune` took it when they were begun; the gains are between equals."""
POOL = ("bsdata", "cold_rolled_strip", "magnetic_tile", "neu_det", "xsdd")
"""Images to pretrain on. KolektorSDD is left out, for its licence forbids commercial use of what is made of it."""
STUDY_EPOCHS = {"neu_det": 32, "pool": 7}
"""Epochs of stage 1 in the studies: about 46,000 images each."""


@dataclass(frozen=True)
class Budget:
    """What every fine-tuning of a detector gets, whatever it starts from.

    Attributes:
        size: longer side of the network's input in pixels.
        epochs: for a number of images.
        lr: learning rate; chosen with the baseline on images of train.txt that no run learns from (``--tune``).
    """

    size: int
    epochs: Mapping[int, int]
    lr: float


BUDGETS: Mapping[str, Budget] = {
    "yolov8_n": Budget(224, {100: 80, 300: 40, 1439: 12}, 0.002),
    "yolov8_resnet50_lite": Budget(192, {100: 40, 300: 20}, 0.0005),
}


@dataclass(frozen=True)
class Stage:
    """A pretraining run.

    Attributes:
        name: its folder.
        words: the command, with ``{data}``, ``{maps}``, ``{pool}``, ``{encoder}`` and ``{out}`` to be filled in.
        after: the stage that it builds on.
        module: what Python runs.
    """

    name: str
    words: str
    after: str = ""
    module: str = "agssp_zoo"


@dataclass(frozen=True)
class Arm:
    """A start of fine-tuning.

    Attributes:
        name: as in names of folders.
        label: as in the table.
        start: options of ``agssp-zoo finetune``.
        stage: the pretraining run that it needs.
        detector: whose :data:`BUDGETS` it has.
        nms_iou: what it is scored with.
    """

    name: str
    label: str
    start: str
    stage: str = ""
    detector: str = "yolov8_n"
    nms_iou: float = NMS_IOU


_LITE = "yolov8_resnet50_lite"
_LITE_IMAGENET = "{out}/resnet50_imagenet"
_IMAGENET = "{imagenet} --options v1_strides=true"
_VAL = "--exclude {data}/neu_det/val.txt"
_AGBP = f"pretrain-backbone {_VAL} --recipe cspdarknet_cpu --images {{pool}} --maps {{maps}}"
_SQUASHED = f"{_AGBP} --aspect square"
# One data set has one name, so there is nothing to classify; left out everywhere, the arms of the studies stay alike.
_STUDY = f"pretrain-backbone {_VAL} --recipe cspdarknet_cpu --aspect square --task none --images "


def _agdp(backbone: str) -> str:
    how = f"--model yolov8_n --backbone-weights {{out}}/{backbone}/last --size 224 --optimizer adamw"
    return f"pretrain-detector --images {{pool}} {_VAL} --maps {{maps}} {how}"


def _on_neu_det(maps: str) -> str:
    return f"{_STUDY}{{data}}/neu_det --maps {{out}}/maps_{maps} --epochs {STUDY_EPOCHS['neu_det']}"


def _maps(method: str) -> str:
    how = "--encoder-weights {encoder} --size 224 --precision bf16 --batch 16"
    return f"anomaly-maps {{data}}/neu_det {_VAL} --method {method} {how}"


STAGES = {
    stage.name: stage
    for stage in (
        Stage("agbp", _SQUASHED),
        Stage("agdp", _agdp("agbp"), after="agbp"),
        Stage("balanced_agbp", f"{_SQUASHED} --sampling balanced"),
        Stage("balanced_agdp", _agdp("balanced_agbp"), after="balanced_agbp"),
        Stage("keep_agbp", _AGBP),
        Stage("keep_agdp", _agdp("keep_agbp"), after="keep_agbp"),
        Stage(
            "resnet50_imagenet", "--weights {imagenet} --options v1_strides=true", module="benchmarks.backbone_folder"
        ),
        Stage(
            "resnet50_agbp",
            f"pretrain-backbone {_VAL} --recipe resnet50_cpu --weights {_IMAGENET} --images {{pool}} --maps {{maps}}",
        ),
        Stage(
            "resnet50_agdp",
            f"pretrain-detector --images {{pool}} {_VAL} --maps {{maps}} --model yolov8_resnet50_lite "
            "--backbone-weights {out}/resnet50_agbp/last --size 192 --optimizer adamw --epochs 4",
            after="resnet50_agbp",
        ),
        Stage(
            "now_resnet50_agdp",
            f"pretrain-detector --images {{pool}} {_VAL} --maps {{maps}} --model yolov8_resnet50_lite "
            "--backbone-weights resnet50.agbp --size 192 --optimizer adamw",
        ),
        Stage("maps_auto", _maps("auto")),
        Stage("maps_own", _maps("own")),
        Stage("maps_truth", "truth --data {data}/neu_det", module="benchmarks.study_maps"),
        Stage(
            "maps_shuffled",
            "shuffled --data {data}/neu_det --maps {out}/maps_auto",
            after="maps_auto",
            module="benchmarks.study_maps",
        ),
        *(Stage(f"agbp_{kind}", _on_neu_det(kind), f"maps_{kind}") for kind in ("shuffled", "own", "auto", "truth")),
        Stage("agbp_pool", f"{_STUDY}{{pool}} --maps {{maps}} --epochs {STUDY_EPOCHS['pool']}"),
        Stage("agbp_balanced", f"{_STUDY}{{pool}} --maps {{maps}} --epochs {STUDY_EPOCHS['pool']} --sampling balanced"),
    )
}
STUDIES = {
    "shuffled": "neu_det, maps of other images",
    "own": "neu_det, maps by own",
    "auto": "neu_det, maps by auto",
    "truth": "neu_det, maps of the labelled boxes",
    "pool": "the pool, maps by auto",
    "balanced": "the pool, maps by auto, as many images of every data set",
}
ARMS = {
    arm.name: arm
    for arm in (
        Arm("random", "random weights", "--model yolov8_n --weights none"),
        Arm("agbp", "AGBP", "--model yolov8_n --weights none --backbone-weights {out}/agbp/last", "agbp"),
        Arm("agssp", "AGBP and AGDP (AGSSP)", "--model {out}/agdp/last", "agdp"),
        Arm(
            "balanced_agbp",
            "AGBP",
            "--model yolov8_n --weights none --backbone-weights {out}/balanced_agbp/last",
            "balanced_agbp",
        ),
        Arm("balanced_agssp", "AGBP and AGDP (AGSSP)", "--model {out}/balanced_agdp/last", "balanced_agdp"),
        Arm(
            "keep_agbp", "AGBP", "--model yolov8_n --weights none --backbone-weights {out}/keep_agbp/last", "keep_agbp"
        ),
        Arm("keep_agssp", "AGBP and AGDP (AGSSP)", "--model {out}/keep_agdp/last", "keep_agdp"),
        Arm("now_random", "random weights", "--model yolov8_n --weights none", nms_iou=0.5),
        Arm("now_agssp", "AGSSP (`yolov8_n.agssp`)", "--model yolov8_n.agssp", nms_iou=0.5),
        Arm(
            "now_turned",
            "the same, `--quarter-turn 0.5`",
            "--model yolov8_n.agssp --quarter-turn 0.5",
            nms_iou=0.5,
        ),
        Arm(
            "now_turned_class",
            "the same, `--quarter-turn 0.5 --turn-classes scratches`",
            "--model yolov8_n.agssp --quarter-turn 0.5 --turn-classes scratches",
            nms_iou=0.5,
        ),
        Arm("resnet50_random", "random weights", f"--model {_LITE} --weights none", detector=_LITE),
        Arm("now_resnet50_imagenet", "ImageNet", f"--model {_LITE} --weights none --backbone-weights {_LITE_IMAGENET}",
            "resnet50_imagenet", _LITE, nms_iou=0.5),
        Arm("now_resnet50_agssp", "AGBP and AGDP (AGSSP)", "--model {out}/now_resnet50_agdp/last", "now_resnet50_agdp",
            _LITE, nms_iou=0.5),
        *(
            Arm(f"{name}_turned", f"the same as {label}, `--quarter-turn 0.5 --turn-classes scratches`",
                f"{start} --quarter-turn 0.5 --turn-classes scratches", stage, _LITE, nms_iou=0.5)
            for name, label, start, stage in (
                ("now_resnet50_imagenet", "ImageNet",
                 f"--model {_LITE} --weights none --backbone-weights {_LITE_IMAGENET}", "resnet50_imagenet"),
                ("now_resnet50_agssp", "AGSSP", "--model {out}/now_resnet50_agdp/last", "now_resnet50_agdp"),
            )
        ),
        *(
            Arm(f"resnet50_{name}", label, f"--model {_LITE} --weights none --backbone-weights {{out}}/{folder}",
                f"resnet50_{name}", _LITE)
            for name, label, folder in (
                ("imagenet", "ImageNet", "resnet50_imagenet"), ("agbp", "AGBP", "resnet50_agbp/last")
            )
        ),
        Arm("resnet50_agssp", "AGBP and AGDP (AGSSP)", "--model {out}/resnet50_agdp/last", "resnet50_agdp", _LITE),
        *(
            Arm(f"study_{name}", label, f"--model yolov8_n --weights none --backbone-weights {{out}}/agbp_{name}/last",
                f"agbp_{name}")
            for name, label in STUDIES.items()
        ),
    )
}  # fmt: skip
TABLES = {
    "yolov8_n": ("random", "agbp", "agssp"),
    "balanced": ("random", "balanced_agbp", "balanced_agssp"),
    "keep": ("random", "keep_agbp", "keep_agssp"),
    "now": ("now_random", "now_agssp", "now_turned", "now_turned_class"),
    "resnet50": ("resnet50_imagenet", "resnet50_random", "resnet50_agbp", "resnet50_agssp"),
    "now_resnet50": (
        "now_resnet50_imagenet",
        "now_resnet50_agssp",
        "now_resnet50_imagenet_turned",
        "now_resnet50_agssp_turned",
    ),
    "studies": ("random", *(f"study_{name}" for name in STUDIES)),
}
"""The tables of docs/results.md: each arm is compared with the first of its table."""
