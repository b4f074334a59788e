"""Which settings of fine-tuning matter with few images: one changed at a time, from the defaults.

    python -m benchmarks.settings --data DATA --out runs/settings --write

``DATA`` holds ``neu_det``. A run starts from ``yolov8_n.agssp``, learns from 100 images of train.txt and is scored, by
the weights of its last epoch, on 300 others of train.txt (those that :mod:`benchmarks.gain` chooses its learning rate
on), so the validation images stay unseen by what is decided here. What is finished stays, what was stopped goes on. It
prints the table of docs/finetuning.md with all runs in ``--out``; ``--write`` puts it there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import ROOT, write_between
from benchmarks.gain import Places, Run, both_columns, labelled, measure, read_scores, score
from benchmarks.gain_arms import NMS_IOU

DOCS = ROOT / "docs" / "finetuning.md"
ALL = "--size 224 --epochs 80"
"""What all runs have in common, unless a case says otherwise."""
CASES = {
    "default": (f"`--nms-iou {NMS_IOU:g}`, else the defaults", ""),
    "lr_002": ("`--lr 0.002`", "--lr 0.002"),
    "ema_short": ("`--ema-decay 0.98 --ema-ramp 20`", "--ema-decay 0.98 --ema-ramp 20"),
    "freeze": ("`--freeze 2`", "--freeze 2"),
    "no_mosaic": ("`--mosaic 0`", "--mosaic 0"),
    "quarter_turn": ("`--quarter-turn 0.5`", "--quarter-turn 0.5"),
    "turn_classes": (
        "`--quarter-turn 0.5 --turn-classes scratches`",
        "--quarter-turn 0.5 --turn-classes scratches",
    ),
    "size_320": ("`--size 320`", "--size 320"),
    "size_640": ("`--size 640`", "--size 640"),
}
"""Name -> as in the table, options that differ."""
SCORED = {
    **{
        f"nms_{iou:g}": (f"`--nms-iou {iou:g}`" + ", the default" * (iou == 0.5), "default", iou)
        for iou in (0.3, 0.4, 0.5, 0.6, 0.8)
    },
    "both": ("`--mosaic 0 --nms-iou 0.5`", "no_mosaic", 0.5),
}
"""Name -> as in the table, whose weights are scored again, with what IoU of the suppression."""


def main() -> int:
    """Runs what is missing of what was asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with neu_det")
    parser.add_argument("--out", type=Path, default=Path("runs/settings"))
    parser.add_argument("--cases", nargs="*", choices=[*CASES, *SCORED], default=[*CASES, *SCORED])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--table-only", action="store_true", help="run nothing: the runs that are finished")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    places = Places(args.data, Path(), args.out, None, None, args.threads)
    if not args.table_only:
        for seed in args.seeds:
            for case in args.cases:
                finetune(case, seed, places)
    text = table(args.out)
    print(text)
    if args.write:
        write_between(DOCS, "<!-- begin of settings -->", "<!-- end of settings -->", f"\n{text}")
    return 0


def finetune(case: str, seed: int, places: Places) -> None:
    """Fine-tunes and scores, unless that is finished."""
    result = places.out / f"{case}_{seed}.json"
    if result.is_file():
        return
    data = labelled(places, Run(case, 100, seed, lr=0.0))
    if case in SCORED:
        _, base, nms_iou = SCORED[case]
        finetune(base, seed, places)
        score(result, places.out / f"{base}_{seed}" / "last", data, nms_iou)
        return
    start = f"finetune --data {data} --seed {seed} --val-every 1000 --no-plots --no-report".split()
    measure(result, [*start, *merged(f"--model yolov8_n.agssp {ALL}", CASES[case][1])], data, places)


def merged(words: str, changed: str) -> list[str]:
    """Options and values, where those of ``changed`` take the place of the others."""
    options = dict[str, str]()
    for text in (words, changed):
        found = text.split()
        options.update(zip(found[::2], found[1::2], strict=True))
    return [word for pair in options.items() for word in pair]


def table(out: Path) -> str:
    """The scores of every case, and what it changes against the defaults with the same images and seed."""
    metrics = " | ".join(f"{key} of each seed | mean | change" for key in ("map50", "map50_95"))
    text = f"| changed | {metrics} |\n|---|---|--:|--:|---|--:|--:|\n"
    base: dict[int, dict[str, float]] = {}
    labels = {name: text for name, (text, *_) in [*CASES.items(), *SCORED.items()]}
    for case, label in labels.items():
        found = read_scores(out, case)
        base = base or found
        if found:
            cells = both_columns(found, {} if found is base else base)
            text += f"| {label} | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
