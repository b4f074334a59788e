"""Whether what pretraining brings carries over: detectors fine-tuned on other data sets than NEU-DET.

    python -m benchmarks.transfer --data DATA --out runs/transfer --write

``DATA`` holds ``kolektorsdd`` (commutators; no image of it was in the pool that the zoo's weights come from) and
``magnetic_tile`` (in the pool, without labels). The starts are those that a user has: random weights, and the zoo's
models. Every start gets the same images, seed, epochs and learning rate, and the weights of the last epoch are scored.
Splits keep the images of one part together: all those of a commutator, or of a tile, are on one side. ``--arms`` takes
a name of :data:`ARMS`, or ``NAME=FOLDER`` for a model folder of your own. What is finished stays, what was stopped goes
on. It prints the tables of docs/results.md with all runs in ``--out``; ``--write`` puts those asked for there.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.common import write_between
from benchmarks.gain import DOCS, Places, both_columns, read_scores, run_resumable, score
from benchmarks.gain_arms import NMS_IOU

IMAGES = re.compile(r".*\.(jpg|png|bmp)")


@dataclass(frozen=True)
class Target:
    """A data set to fine-tune on.

    Attributes:
        name: its folder.
        label: as in the table.
        defective: images with defects to learn from; the parts of the others are scored.
        free: images without defects to learn from.
        size: longer side of the network's input in pixels.
        epochs: of every run.
    """

    name: str
    label: str
    defective: int
    free: int
    size: int
    epochs: int


TARGETS = {
    target.name: target
    for target in (
        Target("kolektorsdd", "KolektorSDD, not in the pool", 25, 25, 320, 80),
        Target("magnetic_tile", "magnetic tiles, in the pool", 100, 50, 224, 53),
    )
}
LR = 0.002
"""The learning rate that NEU-DET's runs have: the better of three for random weights there."""


@dataclass(frozen=True)
class Start:
    """What a detector is fine-tuned from.

    Attributes:
        label: as in the table.
        options: of the command.
        nms_iou: of the suppression when it is scored.
        like: the start whose runs are scored; empty: its own.
    """

    label: str
    options: str
    nms_iou: float = NMS_IOU
    like: str = ""


_RANDOM = Start("random weights", "--model yolov8_n --weights none")
_AGSSP = Start("AGSSP (`yolov8_n.agssp`)", "--model yolov8_n.agssp")
ARMS = {
    "random": _RANDOM,
    "agbp": Start("AGBP (`cspdarknet_n.agbp`)", f"{_RANDOM.options} --backbone-weights cspdarknet_n.agbp"),
    "agssp": _AGSSP,
    "now_random": dataclasses.replace(_RANDOM, nms_iou=0.5, like="random"),
    "now_agssp": dataclasses.replace(_AGSSP, nms_iou=0.5, like="agssp"),
}
NOW = "now_"
"""Of the names of starts that are scored as a user now gets them; they have a table of their own."""


def main() -> int:
    """Runs what is missing of what was asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(TARGETS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), metavar="ARM", help=f"{', '.join(ARMS)} or NAME=MODEL")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true", help="run nothing: the runs that are finished")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    own = dict(word.split("=", 1) for word in args.arms if "=" in word)
    arms = {**ARMS, **{name: Start(name.replace("_", " "), f"--model {folder}") for name, folder in own.items()}}
    names = [word.split("=", 1)[0] for word in args.arms]
    if unknown := [name for name in names if name not in arms]:
        parser.error(f"--arms: no {', '.join(unknown)}; there are {', '.join(ARMS)}, or give NAME=MODEL")
    if not args.table_only:
        for target in args.targets:
            for seed in args.seeds:
                for name in names:
                    finetune(TARGETS[target], name, arms[name], seed, args)
    for place, now in (("transfer", False), ("transfer_now", True)):
        labels = {name: start.label for name, start in arms.items() if name.startswith(NOW) == now}
        if not labels.keys() & set(names):
            continue
        text = table(args.out, labels)
        print(text)
        if args.write:
            write_between(DOCS, f"<!-- begin of {place} -->", f"<!-- end of {place} -->", f"\n{text}")
    return 0


def finetune(target: Target, arm: str, start: Start, seed: int, args: argparse.Namespace) -> None:
    """Fine-tunes and scores, unless that is finished."""
    result = args.out / f"{target.name}_{arm}_{seed}.json"
    if result.is_file():
        return
    data = labelled(args.data, args.out, target, seed)
    how = f"--size {target.size} --epochs {target.epochs} --lr {LR:g} --seed {seed}"
    unseen = f"--val-every {target.epochs} --no-plots --no-report"
    places = Places(args.data, Path(), args.out, None, None, args.threads)
    run = args.out / f"{target.name}_{start.like or arm}_{seed}"
    if not (start.like and run.with_suffix(".json").is_file()):
        run_resumable(f"finetune --data {data} {how} {unseen} {start.options}".split(), run, places)
    score(result, run / "last", data, start.nms_iou)


def labelled(data: Path, out: Path, target: Target, seed: int) -> Path:
    """The folder of a run's labelled images: links to the data set's, and lists of its own."""
    source = (data / target.name).resolve()
    folder = out / "data" / f"{target.name}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "masks"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(source / name)
    train, val = split(source, target, seed)
    for name, names in (("train", train), ("val", val)):
        (folder / f"{name}.txt").write_text("".join(f"{entry}\n" for entry in names))
    return folder


def split(source: Path, target: Target, seed: int) -> tuple[list[str], list[str]]:
    """The images to learn from and those to score, as paths below ``images``; no part is in both.

    Whole parts are drawn until there are enough defective images of every kind, then until there are enough without
    defects; of those parts only as many images are learned from as were asked for.
    """
    names = sorted(
        str(p.relative_to(source / "images")) for p in (source / "images").rglob("*") if IMAGES.match(p.name)
    )
    defects = {str(p.relative_to(source / "masks").with_suffix("")) for p in (source / "masks").rglob("*.png")}
    kinds: dict[str, list[list[str]]] = {}
    for part in parts(names):
        kind = str(Path(part[0]).parent)
        defective = any(str(Path(name).with_suffix("")) in defects for name in part)
        kinds.setdefault(f"{kind} {'with' if defective else 'free'}", []).append(part)
    generator = random.Random(seed)
    total = {kind: sum(map(len, found)) for kind, found in kinds.items() if kind.endswith("with")}
    wanted = {False: target.free, True: target.defective}
    train, taken = dict[bool, list[str]]({False: [], True: []}), set[str]()
    for kind, found in sorted(kinds.items(), key=lambda item: item[0].endswith("free")):
        share = total.get(kind, 0) / sum(total.values()) * target.defective
        drawn: list[str] = []
        for part in generator.sample(found, len(found)):
            own = [name for name in part if str(Path(name).with_suffix("")) in defects]
            if kind.endswith("with") and len(drawn) >= round(share):
                break
            if kind.endswith("free") and len(train[False]) >= wanted[False]:
                break
            taken.update(part)
            drawn += own
            train[True] += own
            train[False] += [name for name in part if name not in own]
    learned = [name for has in (True, False) for name in train[has][: wanted[has]]]
    return sorted(learned), [name for name in names if name not in taken]


def parts(names: Sequence[str]) -> list[list[str]]:
    """The images of one part each, by their names.

    ``kos07_Part3.jpg`` names its commutator. A tile was taken up to six times in a row, with rising numbers of both
    kinds (``MT_Break/exp2_num_26130.jpg``): where the first does not rise, another tile begins.
    """
    if all(name.startswith("kos") for name in names):
        by_part: dict[str, list[str]] = {}
        for name in names:
            by_part.setdefault(name.split("_")[0], []).append(name)
        return list(by_part.values())

    def place(name: str) -> tuple[str, int, int]:
        found = re.fullmatch(r"exp(\d+)_num_(\d+)", Path(name).stem)
        if not found:
            raise SystemExit(f"{name}: is not named as the magnetic tiles are (exp1_num_12345.jpg).")
        return str(Path(name).parent), int(found[2]), int(found[1])

    ordered = sorted(names, key=place)
    found = [[ordered[0]]]
    for last, name in pairwise(ordered):
        (kind, number, turn), (last_kind, last_number, last_turn) = place(name), place(last)
        if kind != last_kind or turn <= last_turn or number - last_number > 300:
            found.append([])
        found[-1].append(name)
    return found


def table(out: Path, labels: dict[str, str]) -> str:
    """The scores of every data set and start, and the gain over the first start."""
    metrics = " | ".join(f"{key} of each seed | mean | gain" for key in ("map50", "map50_95"))
    text = f"| data set | learned from | scored on | start | {metrics} |\n"
    text += "|---|--:|--:|---|---|--:|--:|---|--:|--:|\n"
    for target in TARGETS.values():
        base: dict[int, dict[str, float]] = {}
        for name, label in labels.items():
            found = read_scores(out, f"{target.name}_{name}")
            if not found:
                continue
            base = base or found
            counts = sorted({score["images"] for score in found.values()})
            scored = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
            cells = [target.label, f"{target.defective} + {target.free}", scored, label]
            cells += both_columns(found, {} if found is base else base)
            text += f"| {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
