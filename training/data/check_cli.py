"""``agssp-zoo check-data DIR``: every problem of a data set with file and line, what is in it, and pictures of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import DataError, InvalidArgumentError

from .input_sizes import THIN
from .ours import own_pictures
from .places import check_out
from .recognise import FORMATS, read_dataset
from .text import readable

if TYPE_CHECKING:
    from .check import CheckReport
    from .dataset import Dataset

_BAR = 40
_PAIRS = 12
SAMPLES = 24
"""Images on the sheet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``check-data``."""
    parser.add_argument("data", help="folder of labelled images, COCO .json, data.yaml, or shards (folder or URL)")
    parser.add_argument("--format", default="auto", choices=FORMATS, help="format of the labels (default: auto)")
    parser.add_argument("--out", help="folder for report.json, samples.png and duplicates.png")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share of errors that is accepted (default: 0)")
    parser.add_argument("--limit", type=int, default=20, help="problems of a kind to print, 0 for all (default: 20)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"images on the sheet (default: {SAMPLES})")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")
    parser.add_argument("--labels-only", action="store_true", help="do not decode the images")


def run(args: argparse.Namespace) -> int:
    """Runs ``check-data``; 0 when the data can be trained on, 1 when there are more errors than tolerated."""
    from .check import check_dataset

    if not 0.0 <= args.tolerance <= 1.0:
        raise InvalidArgumentError(f"--tolerance is {args.tolerance}; it must lie in 0-1.")
    for name, least in (("samples", 1), ("limit", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InvalidArgumentError(f"--{name} is {getattr(args, name)}; it must be at least {least}.")
    if args.out is None and (args.samples, args.seed) != (SAMPLES, 0):
        raise InvalidArgumentError("--samples and --seed are of the sheet that --out DIR holds; give that, too.")
    out = Path(args.out) if args.out else None
    if out is not None:
        check_out(out)
    dataset = read_dataset(args.data, format=args.format)
    report = check_dataset(dataset, decode=not args.labels_only)
    enough = bool(len(dataset)) if dataset.unlabelled else bool(sum(v.sum() for v in report.boxes.values()))
    full = [
        split for split in ("train", "val") if "val" in dataset.splits and _too_many(dataset, split, args.tolerance)
    ]
    usable = len(report.errors) <= args.tolerance * len(dataset) and enough and not full
    if out is not None:
        _write(report, out, args.samples, args.seed)
    if args.json:
        print(json.dumps({**report.to_dict(), "usable": usable}, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        sys.stdout.write(to_text(report, args.limit))
        sys.stdout.write(_verdict(report, usable, args.tolerance, out, full))
    return 0 if usable else 1


def _too_many(dataset: Dataset, split: str, tolerance: float) -> bool:
    """Whether training, which judges the splits that it uses each by itself, would refuse this one."""
    if split not in dataset.splits:
        return False
    try:
        dataset.split(split).require_clean(tolerance, labels=False, whole=len(dataset))
    except DataError:
        return True
    return False


def _write(report: CheckReport, out: Path, samples: int, seed: int) -> None:
    from .sheet import draw_pairs, draw_samples, save_png

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in own_pictures(out, ["samples.png", "duplicates.png"]):  # of a report before this one
            (out / name).unlink(missing_ok=True)
        temporary = out / ".report.json.tmp"
        temporary.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(out / "report.json")
        if report.dataset.records:
            save_png(draw_samples(report.dataset, samples, seed), out / "samples.png")
        if report.duplicates:
            pairs = [(pair.first, pair.second) for pair in report.duplicates[:_PAIRS]]
            save_png(draw_pairs(report.dataset, pairs), out / "duplicates.png")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); give another folder, or make room.") from None


def to_text(report: CheckReport, limit: int = 20) -> str:
    """The report for people: problems, then what is in the data set."""
    dataset = report.dataset
    lines = _problem_lines(report, limit)
    lines += [
        "",
        f"{readable(dataset.path)}: {dataset.format}, {len(dataset)} images, {len(dataset.class_names)} classes",
        "",
    ]
    splits = list(dataset.splits)
    wide = max([len(name) for name in dataset.class_names] + [len("(no boxes)")])
    lines.append(f"{'boxes (images)':<{wide}}" + "".join(f"{split:>18}" for split in splits))
    for label, name in enumerate(dataset.class_names):
        cells = [f"{report.boxes[s][label]} ({report.images[s][label]})" for s in splits]
        lines.append(f"{name:<{wide}}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append(f"{'(no boxes)':<{wide}}" + "".join(f"{f'({report.images[s][-1]})':>18}" for s in splits))
    totals = [f"{report.boxes[s].sum()} ({dataset.splits[s]})" for s in splits]
    lines.append(f"{'total':<{wide}}" + "".join(f"{total:>18}" for total in totals))
    values = report.to_dict()
    sizes = [f"{w}x{h} ({count})" for w, h, count in values["image_sizes"][:4]]
    more = len(values["image_sizes"]) - 4
    lines += ["", f"image sizes: {', '.join(sizes)}" + (f" and {more} more" if more > 0 else "")]
    lines += [f"difficult boxes: {values['difficult_boxes']}, crowd boxes: {values['crowd_boxes']}"]
    lines += ["", "box size (square root of the area, pixels)"]
    most = max(1, int(report.sizes.max()))
    for entry in values["box_sizes"] if report.sizes.any() else ():
        span = f"{entry['from']}-{entry['to']}" if entry["to"] else f"{entry['from']}-"
        lines.append(f"{span:>9} {entry['boxes']:>7} {'#' * round(_BAR * entry['boxes'] / most)}".rstrip())
    if report.sizes.any():
        lines += _input_size_lines(values["input_sizes"])
    if report.decoded:
        same = sum(pair.same for pair in report.duplicates)
        where = "across splits" if len(splits) > 1 else "within the only split"
        pairs, images = len(report.duplicates), len({key for d in report.duplicates for key in (d.first, d.second)})
        many = "1 pair" if pairs == 1 else f"{pairs} pairs"
        among = f" ({images} images)" if pairs else ""
        lines += ["", f"{where}: {many} of near duplicates{among}, {same} of the pairs exactly equal"]
    lines += [f"fingerprint: {values['fingerprint']}", ""]
    return "\n".join(lines)


def _input_size_lines(entries: list[dict[str, Any]]) -> list[str]:
    """What the options of ``finetune`` would do to the boxes."""
    thinner = f"boxes thinner than {THIN} px"
    lines = ["", f"{'what finetune would see':<24}{'scale':>8}{thinner:>26}{'Mpixel an image':>18}"]
    for entry in entries:
        thin = f"{entry['thin']} of {entry['boxes']}"
        lines.append(f"{entry['option']:<24}{entry['scale']:>8.2f}{thin:>26}{entry['megapixels']:>18.2f}")
    return lines


def _problem_lines(report: CheckReport, limit: int) -> list[str]:
    """Problems, errors first, at most ``limit`` of a kind."""
    lines = []
    shown: Counter[str] = Counter()
    total = Counter(problem.code for problem in report.problems)
    for severity in ("error", "warning"):
        for problem in report.problems:
            if problem.severity != severity:
                continue
            shown[problem.code] += 1
            if not limit or shown[problem.code] <= limit:
                lines.append(str(problem))
            elif shown[problem.code] == total[problem.code]:
                lines.append(f"... and {total[problem.code] - limit} more [{problem.code}] (--limit 0 prints all)")
    return lines


def _verdict(report: CheckReport, usable: bool, tolerance: float, out: Path | None, full: Sequence[str]) -> str:
    errors, warnings = len(report.errors), len(report.problems) - len(report.errors)
    counts = f"{errors} errors, {warnings} warnings"
    if usable and report.dataset.unlabelled:
        verdict = f"{counts}: anomaly maps can be made of it, and a backbone pretrained on it; it has no labels."
    elif usable:
        verdict = f"{counts}: can be trained on."
    elif not report.dataset.unlabelled and not sum(int(boxes.sum()) for boxes in report.boxes.values()):
        verdict = f"{counts}: there is not one box to train on."
    elif full and len(report.errors) <= tolerance * len(report.dataset):
        places = " and in ".join(f"{split} ({report.dataset.splits[split]} images)" for split in full)
        verdict = f"{counts}: more errors in {places} than the tolerance of {tolerance:.2%}."
    else:
        verdict = f"{counts}: more errors than the tolerance of {tolerance:.2%} of {len(report.dataset)} images."
    where = f"Report and pictures: {out}" if out else "--out DIR writes the report and a sheet of samples."
    return f"{verdict} {where}\n"
