"""What it takes to reproduce the paper's table: GPU hours of every row, estimated, and the tables of docs/reproduce.md.

    python -m benchmarks.reproduce            # prints the tables
    python -m benchmarks.reproduce --write    # puts them into docs/reproduce.md

Nothing here was measured on a GPU. The operations of a training step are counted on the networks of this package, the
speed at which a GPU does them is assumed (:data:`SUSTAINED`), and so are the numbers of images (:data:`POOLS`,
:data:`SETS`). Networks that the package does not have yet are taken from figures in papers, roughly.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import ROOT

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENT = ROOT / "docs" / "reproduce.md"

SUSTAINED = 30e12
"""Operations a second that a training run gets out of one GPU: a tenth of an A100's bfloat16 peak of 312e12."""
PREPARED = {224: 1500.0, 640: 500.0}
"""Images a second that 16 CPU cores prepare, by the side of the network's input; a GPU never gets more."""
POOLS = {"public": 86_000, "paper": 120_000}
"""Images to pretrain on: the paper's 20 public sets as far as their numbers are stated, and the paper's pool."""
SETS = {
    "casting billet": (500, 560),
    "steel pipe": (500, 727),
    "gc10 mini": (500, 459),
    "gc10 det": (1835, 459),
}
"""Images to fine-tune and to measure on. 500 is the paper's; the others are what is left of 1,060 and 1,227 images, and
a fifth of the 2,294 of GC10-DET: the paper's splits are not known."""
STAGE1_EPOCHS, STAGE2_EPOCHS, FINETUNE_EPOCHS = 200, 10, 500
"""Fine-tuning stops earlier when 100 epochs bring no gain, so its hours are the most it takes."""

KEAD = 2 * 27.2e9 * 1.03
"""Operations of a map: ViT-B-16-plus at 240 px (12 blocks of width 896, 226 tokens), 1.03 for the second path."""
SWIN_B = 2 * 15.4e9
"""Operations of Swin-B's forward pass at 224 px (Liu et al. 2021); they grow with the number of pixels."""
SWIN_DETECTORS = {"yolo": 0.0, "faster_rcnn": 2 * 100e9, "dino": 2 * 75e9}
"""Operations of neck and head at 640 px, assumed; for yolo those of yolov8_resnet50 are counted."""


@dataclass(frozen=True)
class Row:
    """A row of the paper's table.

    Attributes:
        backbone, detector, method, data: as reference results name them.
        map50, map50_95: on Casting Billet, in percent.
        state: ``"runs"``: everything it takes is here or public; ``"weights"``: it starts from weights that this
            package does not provide; ``"architecture"``: a network that is not in the zoo yet.
        first: the part of stage 1 it needs: ``""``, ``"cls"``, ``"maps"``, ``"moco"``, ``"simmim"``.
        second: whether it needs stage 2.
        sets: on how many of the four sets it was measured.
    """

    backbone: str
    detector: str
    method: str
    data: str
    map50: float
    map50_95: float
    state: str
    first: str = ""
    second: bool = False
    sets: int = 4


ROWS = (
    Row("cspdarknet", "yolo", "none", "none", 74.2, 37.1, "runs"),
    Row("cspdarknet", "yolo", "detection", "coco", 75.1, 43.9, "weights"),
    Row("cspdarknet", "yolo", "cls", "imagenet", 71.6, 33.5, "weights"),
    Row("cspdarknet", "yolo", "cls", "industrial", 72.8, 34.7, "runs", "cls"),
    Row("cspdarknet", "yolo", "agbp", "industrial", 74.9, 37.5, "runs", "maps"),
    Row("cspdarknet", "yolo", "agssp", "industrial", 77.2, 44.9, "runs", "maps", True),
    Row("resnet50", "yolo", "none", "none", 56.7, 27.0, "runs"),
    Row("resnet50", "yolo", "cls", "imagenet", 69.1, 32.3, "runs"),
    Row("resnet50", "yolo", "cls", "industrial", 69.1, 33.6, "runs", "cls"),
    Row("resnet50", "yolo", "agbp", "industrial", 72.0, 36.1, "runs", "maps"),
    Row("resnet50", "yolo", "agssp", "industrial", 74.5, 42.5, "runs", "maps", True),
    Row("resnet50", "yolo", "mocov3", "imagenet", 70.2, 33.9, "weights"),
    Row("resnet50", "yolo", "mocov3", "industrial", 71.3, 36.8, "runs", "moco"),
    Row("resnet50", "yolo", "mocov3+agbp", "industrial", 71.4, 33.1, "runs", "moco"),
    Row("swin_b", "yolo", "none", "none", 61.1, 30.1, "runs"),
    Row("swin_b", "yolo", "cls", "imagenet", 75.7, 37.7, "weights"),
    Row("swin_b", "yolo", "cls", "industrial", 73.3, 36.0, "runs", "cls"),
    Row("swin_b", "yolo", "agbp", "industrial", 76.8, 39.0, "runs", "maps"),
    Row("swin_b", "yolo", "agssp", "industrial", 77.7, 45.0, "runs", "maps", True),
    Row("swin_b", "yolo", "simmim", "imagenet", 78.3, 44.3, "weights"),
    Row("swin_b", "yolo", "simmim", "industrial", 76.5, 41.5, "runs", "simmim"),
    Row("swin_b", "yolo", "simmim+agbp", "industrial", 79.8, 44.3, "runs", "simmim"),
    Row("swin_b", "yolo", "simmim+agssp", "industrial", 78.8, 48.4, "runs", "simmim", True),
    Row("swin_b", "faster_rcnn", "simmim", "imagenet", 64.6, 31.7, "weights", sets=1),
    Row("swin_b", "faster_rcnn", "simmim+agbp", "industrial", 71.1, 38.6, "runs", "simmim", sets=1),
    Row("swin_b", "faster_rcnn", "simmim+agssp", "industrial", 73.0, 41.0, "runs", "simmim", True, 1),
    Row("swin_b", "dino", "simmim", "imagenet", 78.6, 49.3, "weights", sets=1),
    Row("swin_b", "dino", "simmim+agbp", "industrial", 79.2, 49.5, "runs", "simmim", sets=1),
    Row("swin_b", "dino", "simmim+agssp", "industrial", 79.0, 50.4, "runs", "simmim", True, 1),
)
"""The paper's table (arXiv 2509.18919), in its order."""

_OURS = {"cspdarknet": "cspdarknet_s", "resnet50": "resnet50", "swin_b": "swin_b"}
_DETECTORS = {"cspdarknet": "yolov8_s", "resnet50": "yolov8_resnet50"}


@dataclass(frozen=True)
class Cost:
    """What an image costs.

    Attributes:
        operations: of the network (a multiplication and an addition are two).
        prepared: images a second that the CPU prepares at most.
    """

    operations: float
    prepared: float

    @property
    def rate(self) -> float:
        """Images a second on one GPU."""
        return min(SUSTAINED / self.operations, self.prepared)

    def hours(self, images: float) -> float:
        """GPU hours that so many images take."""
        return images / self.rate / 3600


def maps_cost() -> Cost:
    """Of a KeAD map."""
    return Cost(KEAD, PREPARED[224])


def first_cost(row: Row) -> Cost:
    """Of an image in stage 1."""
    if row.backbone == "swin_b":
        pixels = (192 / 224) ** 2 if row.first == "simmim" else 1.0
        return Cost(3 * SWIN_B * pixels, PREPARED[224])
    step = count(_OURS[row.backbone], 224, freeze=2)
    if row.first == "moco":  # two views, each through the second encoder, too
        step = 2 * (step + count(_OURS[row.backbone], 224, learn=False))
    return Cost(step, PREPARED[224] / (2 if row.first == "moco" else 1))


def detector_cost(row: Row, *, learn: str) -> Cost:
    """Of an image in stage 2 (``learn="head"``), in fine-tuning (``"all"``), in validation (``""``)."""
    if row.backbone == "swin_b":
        backbone = SWIN_B * (640 / 224) ** 2
        rest = SWIN_DETECTORS[row.detector] or count("yolov8_resnet50", 640, learn=False) - count(
            "resnet50", 640, learn=False
        )
    else:
        whole = count(_DETECTORS[row.backbone], 640, learn=False)
        backbone = count(_OURS[row.backbone], 640, learn=False)
        rest = whole - backbone
    # A layer that learns costs its forward pass three times: once forward, twice backward.
    times = {"": (1, 1), "head": (1, 3), "all": (3, 3)}[learn]
    return Cost(times[0] * backbone + times[1] * rest, PREPARED[640])


@functools.cache
def count(architecture: str, side: int, *, freeze: int = 0, learn: bool = True) -> float:
    """Operations for an image: of a training step, or of a forward pass alone, by torch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from agssp_zoo import models

    network = models.build(models.default_config(architecture), init=False).train(learn)
    if freeze:
        assert isinstance(network, models.Backbone)
        network.freeze_stages(freeze)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(learn):
        outputs = network(torch.empty(1, 3, side, side, device="meta"))
        if learn:
            _sum(outputs).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def _sum(outputs: object) -> Tensor:
    import torch

    if isinstance(outputs, torch.Tensor):
        return outputs.sum()
    assert isinstance(outputs, list | tuple)
    return torch.stack([_sum(one) for one in outputs]).sum()


def pretraining_hours(row: Row, images: int) -> float:
    """GPU hours of maps, stage 1 and stage 2, as far as a row needs them."""
    hours = 0.0
    if row.first and "ag" in row.method:
        hours += maps_cost().hours(images)
    if row.first:
        hours += first_cost(row).hours(images * STAGE1_EPOCHS)
    if row.second:
        hours += detector_cost(row, learn="head").hours(images * STAGE2_EPOCHS)
    return hours


def finetuning_hours(row: Row, name: str) -> float:
    """GPU hours of fine-tuning and of measuring after each epoch, on one of the four sets, one seed."""
    train, val = SETS[name]
    learning = detector_cost(row, learn="all").hours(train * FINETUNE_EPOCHS)
    return learning + detector_cost(row, learn="").hours(val * FINETUNE_EPOCHS)


def speeds_table() -> list[str]:
    """Operations and assumed speed of every step."""
    lines = ["| step | operations an image | images a second, assumed |", "|---|--:|--:|"]
    kinds: dict[str, Cost] = {"KeAD map, 240 px": maps_cost()}
    seen = {}
    for row in ROWS:
        kind = {"cls": "stage 1", "maps": "stage 1", "moco": "stage 1, MoCo v3", "simmim": "stage 1, SimMIM"}
        if row.first:
            seen[f"{kind[row.first]}, {_OURS[row.backbone]}"] = first_cost(row)
    kinds |= seen
    for row in ROWS:
        name = _DETECTORS.get(row.backbone, f"{row.detector} on swin_b")
        kinds.setdefault(f"stage 2, {name}, 640 px", detector_cost(row, learn="head"))
        kinds.setdefault(f"fine-tuning, {name}, 640 px", detector_cost(row, learn="all"))
    for name, cost in kinds.items():
        held = " (the CPU's)" if cost.rate == cost.prepared else ""
        lines.append(f"| {name} | {cost.operations / 1e9:,.3g}e9 | {cost.rate:,.0f}{held} |")
    return lines


def rows_table() -> list[str]:
    """Every row of the paper: what it takes, and whether it can be run."""
    columns = ("#", "backbone", "detector", "method", "pretraining data", "map50 / map50_95", "state")
    lines = [f"| {' | '.join(columns)} | pretraining, h | fine-tuning, h |", "|--:|---|---|---|---|--:|---|--:|--:|"]
    for number, row in enumerate(ROWS, 1):
        before = "-"
        if row.first:
            before = " / ".join(_hours(pretraining_hours(row, images)) for images in POOLS.values())
        after = sum(finetuning_hours(row, name) for name in list(SETS)[: row.sets])
        cells = (row.backbone, row.detector, row.method, row.data, f"{row.map50} / {row.map50_95}", row.state, before)
        lines.append(f"| {number} | {' | '.join(cells)} | {_hours(after)} |")
    return lines


def sets_table() -> list[str]:
    """The public data sets, as `agssp-zoo prepare-data` knows them."""
    from agssp_zoo.training.data.known_sets import known_sets

    lines = ["| name | set | images | metal | terms as stated | authors' classes |", "|---|---|--:|---|---|--:|"]
    for one in known_sets():
        links = ", ".join(f"[{n}]({address})" for n, address in enumerate(one.url, 1))
        images = "unknown" if one.images is None else f"{one.images:,}"
        title = f"{one.title} {links}" + ("" if one.role == "pretraining" else f" ({one.role})")
        metal = "yes" if one.metal else "no"
        lines.append(f"| `{one.name}` | {title} | {images} | {metal} | {one.terms} | {len(one.classes)} |")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"


TABLES = {"sets": sets_table, "speeds": speeds_table, "rows": rows_table}
"""Name of the place in the document -> function that makes the table."""


def fill(text: str) -> str:
    """The document with all tables made anew."""
    for name, table in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        if not begin or not end:
            raise SystemExit(f"{DOCUMENT}: has no place for the table {name!r}.")
        text = before + begin + "\n".join(table()) + "\n" + end + after
    return text


def main() -> int:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {Path(DOCUMENT).name}")
    if parser.parse_args().write:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join("\n".join(table()) for table in TABLES.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
