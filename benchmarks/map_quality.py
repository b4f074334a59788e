"""How good anomaly maps are on labelled data sets: every method, by the two commands that a user runs.

    python -m benchmarks.map_quality --data DATA --encoder-weights vit_s14_dinov2.safetensors --out runs/maps

runs ``agssp-zoo anomaly-maps`` and ``agssp-zoo anomaly-eval`` for each row and prints the tables of
docs/anomaly-maps.md; ``--write`` puts them there. Finished rows are kept in ``--out`` and not run again; a row that was
stopped goes on where it was. ``--resnet50`` names a model folder with ImageNet weights for the rows of that network:

    python -m benchmarks.backbone_folder --weights resnet50_imagenet.safetensors --options v1_strides=true --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_between

DOCS = ROOT / "docs" / "anomaly-maps.md"
BEGIN, END = "<!-- begin of the tables -->", "<!-- end of the tables -->"
COLUMNS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1",
    "aupro": "AUPRO",
    "image_auroc": "image AUROC",
    "box_recall_10": "boxes found, IoU 0.1",
    "box_recall_30": "IoU 0.3",
}


@dataclass(frozen=True)
class Row:
    """One run: a data set, a method, the side of the network's input, further options of anomaly-maps, the network."""

    data: str
    method: str
    size: int = 224
    options: tuple[str, ...] = ()
    label: str = ""
    encoder: str = ""

    @property
    def name(self) -> str:
        """The row's folder."""
        options = (option.lstrip("-") for option in self.options)
        return "_".join(part for part in (self.data, self.method, str(self.size), *options, self.encoder) if part)


_FREE = ("--normal", "MT_Free", "--shots")


def _resnet50(data: str) -> Row:
    return Row(data, "auto", label="auto, ResNet-50 of ImageNet", encoder="resnet50")


def _square(data: str) -> Row:
    return Row(data, "auto", 224, ("--aspect", "square"), "auto, images squashed onto a square")


ROWS = (
    *(Row("neu_det", method) for method in ("own", "gaussian", "mutual", "consensus", "auto")),
    _resnet50("neu_det"),
    *(Row("kolektorsdd", method) for method in ("own", "gaussian", "mutual", "consensus", "auto")),
    Row("kolektorsdd", "memory", 224, ("--normal", "all", "--shots", "32"), "memory, 32 normal"),
    Row("kolektorsdd", "memory", 224, ("--normal", "all", "--shots", "32", "--layers", "6"), "the same, block 6 only"),
    Row("kolektorsdd", "memory", 224, ("--normal", "all", "--shots", "128", "--layers", "6"), "128 normal, block 6"),
    _square("kolektorsdd"),
    _resnet50("kolektorsdd"),
    *(Row("magnetic_tile", method) for method in ("own", "gaussian", "mutual", "consensus", "auto")),
    *(Row("magnetic_tile", "memory", 224, (*_FREE, k), f"memory, {k} normal") for k in ("4", "256")),
    _square("magnetic_tile"),
    _resnet50("magnetic_tile"),
    Row("bsdata", "auto"),
    _square("bsdata"),
)


def main() -> int:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help=f"folder with {', '.join(dict.fromkeys(row.data for row in ROWS))}"
    )
    parser.add_argument("--encoder-weights", required=True, help="ViT-S/14 in DINOv2's layout")
    parser.add_argument("--resnet50", help="model folder of that backbone, for its rows")
    parser.add_argument("--out", type=Path, default=Path("runs/maps"))
    parser.add_argument("--only", help="rows whose folder's name begins so")
    parser.add_argument("--table-only", action="store_true", help="run nothing: the rows that are finished")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    args = parser.parse_args()
    found: dict[Row, dict[str, Any]] = {}
    for row in ROWS:
        result = args.out / f"{row.name}.json"
        wanted = not args.only or row.name.startswith(args.only)
        weights = ["--encoder", args.resnet50] if row.encoder else ["--encoder-weights", args.encoder_weights]
        if not result.is_file() and wanted and not args.table_only and None not in weights:
            measure(row, args.data / row.data, args.out / row.name, weights, result)
        if result.is_file():
            found[row] = json.loads(result.read_text())
    text = tables(found)
    print(text)
    if args.write:
        write_between(DOCS, BEGIN, END, f"\n{text}")
    return 0


def measure(row: Row, data: Path, out: Path, weights: list[str], result: Path) -> None:
    """Makes a row's maps and scores them."""
    tool = [sys.executable, "-m", "agssp_zoo"]
    make = [
        *tool, "anomaly-maps", str(data), "--method", row.method, *weights, "--size", str(row.size), *row.options,
        "--precision", "bf16", "--threads", "1", "--batch", "16", "--out", str(out),
    ]  # fmt: skip
    print(*make[2:], file=sys.stderr)
    subprocess.run(make, check=True, stdout=sys.stderr)
    score = [*tool, "anomaly-eval", str(out), "--data", str(data), "--json"]
    done = subprocess.run(score, check=True, stdout=subprocess.PIPE, text=True)
    temporary = result.with_suffix(".tmp")
    temporary.write_text(done.stdout)
    temporary.replace(result)


def tables(found: dict[Row, dict[str, Any]]) -> str:
    """One table a data set."""
    text = ""
    for data in dict.fromkeys(row.data for row in found):
        rows = {row: values for row, values in found.items() if row.data == data}
        first = next(iter(rows.values()))
        counts = f"{first['images']} images, {first['with_mask']} with a mask, {first['normal']} without defects"
        text += f"**{data}**: {counts}\n\n"
        columns = [key for key in COLUMNS if any(values.get(key) is not None for values in rows.values())]
        text += "| method | size | " + " | ".join(COLUMNS[key] for key in columns) + " |\n"
        text += "|---|--:|" + "--:|" * len(columns) + "\n"
        for row, values in rows.items():
            cells = ("" if values.get(key) is None else f"{values[key]:.3f}" for key in columns)
            text += f"| {row.label or row.method} | {row.size} | " + " | ".join(cells) + " |\n"
        text += "\n"
    return text.rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.exit(main())
