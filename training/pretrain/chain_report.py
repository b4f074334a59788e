"""The report of the chain: one HTML file with maps, activations, curves and figures, all of it inside.

It is made of the files that the steps left, so it can be written again at any time.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from agssp_zoo.folder import ModelFolder

from ..anomaly.boxes import PseudoBoxes
from ..anomaly.layout import writing
from ..anomaly.store import MapStore
from ..evaluation.about import machine, versions
from ..evaluation.plots import line_color, line_style
from ..evaluation.report import class_colors, page
from ..evaluation.svg import UNIT, Plot
from .chain_pictures import CONF, detection_sheet, kept_boxes, map_sheets
from .figures import Row, curves, figures, picture
from .pictures import PICTURE

if TYPE_CHECKING:
    from .chain import Chain

MOST_SHEETS = 12
"""Data sets of which pictures are shown: the largest ones."""
DETECTIONS = 8
"""Held-out images that are shown with what the detector finds."""


def write_chain_report(path: Path, chain: Chain) -> Path:
    """Writes the report, complete or not at all.

    Args:
        path: the file.
        chain: a run whose steps are done.

    Returns:
        The path.

    Raises:
        DataError: a step's result is damaged.
        TrainingError: the file cannot be written.
    """
    settings = chain.settings
    store = MapStore.open(settings.folder("maps"), images=chain.images)
    backbone, detector = (TrainedRun(settings.folder(step)) for step in ("backbone", "detector"))
    boxes = kept_boxes(detector.folder, chain.images, store, chain.box_rule)
    parts = [
        ("result", "Result", _result(chain, store, backbone, detector)),
        ("maps", "Anomaly maps", _maps(chain, store, detector, boxes)),
        ("backbone", "Backbone", _backbone(backbone)),
        ("detector", "Detector", _detector(chain, store, detector, boxes["val"])),
        ("made", "How this was made", _made(chain, store, backbone, detector)),
    ]
    text = page(f"AGSSP of {settings.model}", f"Pretraining report · {chain.begun['started']}", parts)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return path


class TrainedRun:
    """What a training has left: its record, and a row for every epoch.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            self.rows: list[Row] = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    @property
    def seconds(self) -> float:
        """Of training and validation, over all sittings."""
        return sum(row.get("train_seconds", 0.0) + row.get("val_seconds", 0.0) for row in self.rows)

    @property
    def losses(self) -> list[str]:
        """Names of the losses that add up to the loss."""
        return [name for name in self.rows[0] if name.endswith("_loss")]

    @property
    def best(self) -> Row:
        """Of stage 2: the epoch of the best model."""
        return max(self.rows, key=lambda row: (row.get("map50_95", -1.0), row["epoch"]))

    def agreement(self, row: Row) -> float:
        """Of stage 1: the mean cosine of activation and anomaly maps in an epoch; both forms are 2 - 2 cos."""
        weight = float(self.record["settings"]["map_weight"])
        found = [row[name] for name in self.losses if name != "task_loss"]
        return 1 - sum(found) / len(found) / (2 * weight) if weight and found else math.nan


def _result(chain: Chain, store: MapStore, backbone: TrainedRun, detector: TrainedRun) -> str:
    boxes = detector.record["boxes"]
    best = detector.best
    tiles = [
        ("images", str(len(chain.images)), False),
        ("data sets", str(len(set(store.sources))), False),
        ("pseudo-boxes", str(boxes["train"] + boxes["val"]), False),
        ("cosine of activation and anomaly map, first epoch", f"{backbone.agreement(backbone.rows[0]):.3f}", False),
        ("the same, last epoch", f"{backbone.agreement(backbone.rows[-1]):.3f}", True),
        ("map50 on held-out pseudo-boxes", f"{best.get('map50', math.nan):.3f}", True),
    ]
    cells = "".join(
        f'<div class="tile{" main" if main else ""}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value, main in tiles
    )
    rows = "".join(
        f'<tr><td>{escape(ModelFolder.open(folder).config.name)}</td><td class="path">{escape(str(folder))}</td>'
        f'<td class="text">{escape(use)}</td></tr>'
        for folder, use in (
            (backbone.folder / "last", "agssp-zoo finetune --backbone-weights, or agssp_zoo.load_backbone"),
            (detector.folder / "best", "agssp-zoo finetune --model"),
        )
    )
    return (
        f"<p>{escape(chain.settings.model)} pretrained on {len(chain.images)} images without labels. Anomaly maps say "
        "where an image departs from the usual; the backbone learned to respond there (AGBP), then the detector to "
        f'put boxes there (AGDP).</p><div class="tiles">{cells}</div>'
        '<div class="note-box">No figure here is measured on labels. What the pretraining is worth shows when the '
        "models are fine-tuned on labelled images, and measured on others that are not in this pool.</div>"
        '<div class="scroll"><table><tr><th>model</th><th class="text">folder</th><th class="text">use</th></tr>'
        f"{rows}</table></div>"
    )


def _maps(chain: Chain, store: MapStore, detector: TrainedRun, boxes: dict[str, PseudoBoxes]) -> str:
    highest: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for key, source in zip(store.keys, store.sources, strict=True):
        highest.setdefault(source, []).append(float(store.probability(key).max()))
        scores.setdefault(source, []).append(store.score(key))
    statistics: list[dict[str, Any]] = detector.record["boxes"]["statistics"]
    rows = "".join(_map_row(entry, highest[entry["source"]], scores[entry["source"]]) for entry in statistics)
    notes = "".join(f"<li>{escape(note)}</li>" for note in store.notes)
    sheets = ""
    if chain.settings.pictures:
        largest = sorted(highest, key=lambda name: (-len(highest[name]), name))[:MOST_SHEETS]
        pictures = chain.settings.folder("maps") / "pictures"
        drawn = map_sheets(store, chain.images, boxes, sorted(largest), pictures, chain.settings.pictures)
        shown = (f"<h3>{escape(name)}</h3>{picture(sheet, f'Maps of {name}')}" for name, sheet in drawn.items())
        sheets = (
            "<p>Each image beside its map with the pseudo-boxes over it (a green line goes around what a mask beside "
            "the image marks). A data set's images are spread evenly over the ranks of the image score, the highest "
            f"first; larger pictures are in <code>{escape(str(pictures))}</code>.</p>{''.join(shown)}"
        )
    return (
        f"<p>Method <b>{escape(str(store.settings.get('method')))}</b>, {store.grid[0]} x {store.grid[1]} cells an "
        "image, on a scale of 0 to 1. The regions of a map above the threshold become pseudo-boxes.</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + '<div class="scroll"><table><tr><th>data set</th><th>images</th><th>image score,<br>median</th>'
        "<th>map maximum,<br>median</th><th>threshold</th><th>images<br>with boxes</th><th>boxes</th>"
        "<th>boxes<br>an image</th><th>side of a box as a share of<br>the image's (quartiles)</th></tr>"
        f'{rows}</table></div><div class="plots"><figure><h3>How high the maps rise</h3>{_maxima(highest)}'
        f'<p class="soft">The share of the images whose map rises above a value somewhere.</p></figure></div>{sheets}'
    )


def _map_row(entry: Mapping[str, Any], highest: Sequence[float], scores: Sequence[float]) -> str:
    limit = "each its own" if entry["threshold"] is None else f"{entry['threshold']:.3f}"
    shares = " / ".join(f"{value:.0%}" for value in entry["share_of_side"] or ()) or "–"
    return (
        f"<tr><td>{escape(entry['source'])}</td><td>{entry['images']}</td><td>{np.median(scores):.3g}</td>"
        f"<td>{np.median(highest):.3f}</td><td>{limit}</td><td>{entry['with_boxes']}</td><td>{entry['boxes']}</td>"
        f"<td>{entry['boxes_per_image']:.2f}</td><td>{shares}</td></tr>"
    )


def _maxima(highest: Mapping[str, Sequence[float]]) -> str:
    """For every data set the share of its images whose map rises above a value, over that value."""
    plot = Plot("How high the maps rise", "value of the map", "share of the images", UNIT, UNIT)
    colors = class_colors(len(highest))
    for number, (name, values) in enumerate(sorted(highest.items())):
        ordered = sorted(values)
        points = [(0.0, 1.0), *((value, 1 - rank / len(ordered)) for rank, value in enumerate(ordered, 1))]
        plot.line(points, line_color(colors[number]), name=name, dash=line_style(number), steps=True)
    return plot.render()


def _backbone(run: TrainedRun) -> str:
    settings = run.record["settings"]
    image = run.folder / PICTURE
    shown = '<p class="soft">No pictures were drawn (--backbone pictures=8 draws them, with matplotlib).</p>'
    if image.is_file():
        with Image.open(image) as activations:
            shown = picture(activations.convert("RGB"), "Activations before and after")
    taps = ", ".join(name.removesuffix("_loss") for name in run.losses if name != "task_loss")
    task = settings["task"]
    beside = "nothing beside it" if task == "none" else f"task {task} beside it (weight {settings['task_weight']:g})"
    plots = [
        ("Losses", curves("Losses of the backbone", "loss", run.rows, ["loss", *run.losses]), "Means over an epoch."),
        (
            "Agreement",
            curves("Cosine", "cosine", [{"epoch": r["epoch"], "mean cosine": run.agreement(r)} for r in run.rows]),
            "Cosine between squared activations and anomaly maps, the mean over the tapped stages; 1 is the most.",
        ),
    ]
    return (
        f"<p>{escape(settings['model'])}, {len(run.rows)} epochs, weights at the start: "
        f"{escape(run.record['start']['source'])}. The squared activations of {escape(taps)} learn the maps, with "
        f"{escape(beside)}; {settings['freeze'] or 'no'} stages are frozen.</p>{figures(plots)}"
        f"<h3>Where the backbone responds, before and after</h3>{shown}"
    )


def _detector(chain: Chain, store: MapStore, run: TrainedRun, held_out: PseudoBoxes) -> str:
    data, boxes, settings = run.record["data"], run.record["boxes"], run.record["settings"]
    best = run.best
    measured = [row for row in run.rows if "map50" in row]
    plots = [
        ("Losses", curves("Losses of the detector", "loss", run.rows, ["loss", *run.losses]), "Means over an epoch."),
        (
            "Average precision",
            curves("Average precision", "average precision", measured, ["map50", "map50_95"]),
            "On the held-out images' pseudo-boxes: how well the detector foretells the maps, not the defects.",
        ),
    ]
    rows = "".join(
        f"<tr><td>{name}</td><td>{escape(value)}</td></tr>"
        for name, value in (
            ("images to learn from", str(data["train_images"])),
            ("images held out", str(data["val_images"])),
            ("pseudo-boxes to learn", str(boxes["train"])),
            (
                "images without a box",
                f"{boxes['images_without']} ({'kept' if boxes['empty'] == 'keep' else 'left out'})",
            ),
            ("stages of the backbone frozen", str(settings["freeze"])),
            ("best epoch", f"{best['epoch']:.0f}"),
            ("map50, held-out pseudo-boxes", f"{best.get('map50', math.nan):.4f}"),
            ("map50_95, held-out pseudo-boxes", f"{best.get('map50_95', math.nan):.4f}"),
        )
    )
    sheet = detection_sheet(run.folder / "best", held_out, store, DETECTIONS) if chain.settings.pictures else None
    shown = ""
    if sheet is not None:
        shown = (
            f"<h3>Held-out images</h3><p>Pseudo-boxes at the left, what the detector finds at the right (scores above "
            f"{CONF:g}).</p>{picture(sheet, 'Pseudo-boxes and detections')}"
        )
    return f'<div class="scroll"><table>{rows}</table></div>{figures(plots)}{shown}'


def _made(chain: Chain, store: MapStore, backbone: TrainedRun, detector: TrainedRun) -> str:
    record = chain.record()
    commands = "\n".join(record["commands"].values())
    facts = {
        "images": ", ".join(chain.settings.images),
        "left out": chain.settings.exclude,
        "fingerprint of the pool": record["pool"]["fingerprint"],
        "maps": json.dumps(store.settings, ensure_ascii=False),
        "time of training": f"backbone {backbone.seconds / 60:.1f} min, detector {detector.seconds / 60:.1f} min",
        "begun": chain.begun["started"],
        "commit": chain.begun["git_commit"] or "",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    rows = "".join(
        f'<tr><td>{name}</td><td class="path">{escape(value)}</td></tr>' for name, value in facts.items() if value
    )
    return (
        f"<p>One command, and what its three steps are by themselves:</p><pre>{escape(commands)}</pre><table>{rows}"
        "</table><p>Where the weights come from stands in full in the models' cards (README.md of each folder).</p>"
    )
