"""What pretraining is worth: detectors fine-tuned on few labelled images, from every start, with the same budget.

    python -m benchmarks.gain --data DATA --maps runs/maps/pool --out runs/gain

``DATA`` holds the folders of :data:`~benchmarks.gain_arms.POOL`; ``--maps`` their anomaly maps (``agssp-zoo
anomaly-maps``). ``--arms`` names the starts; those of one detector have one budget. For every arm the command pretrains
once, then fine-tunes for every number of images and every seed and scores the weights of the last epoch on
``neu_det/val.txt``: nothing is chosen on those images. Each step is one of the commands that a user runs; what is
finished stays, what was stopped goes on. It prints the tables of docs/results.md; ``--write`` puts those there that it
has new runs for.

``--tune LR ...`` chooses the learning rate on images of train.txt alone: it fine-tunes on 100 of them and scores 300
others; the sets of 100 and 300 images that the arms learn from hold none of these 400.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, write_between
from benchmarks.gain_arms import ARMS, BUDGETS, NMS_IOU, POOL, STAGES, TABLES

DOCS = ROOT / "docs" / "results.md"
COUNTS = (100, 300, 1439)
"""Numbers of labelled images."""
TUNING = 400
"""Images of train.txt that the learning rate is chosen on: 100 to learn from, the others to score."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning: an arm, a number of images, a seed; to choose the learning rate when it has one of its own."""

    arm: str
    images: int
    seed: int
    lr: float | None = None

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.arm}_{self.images}_{self.seed}" + ("" if self.lr is None else f"_tune_{self.lr:g}")


@dataclass(frozen=True)
class Places:
    """Where things are, and what the commands are run with."""

    data: Path
    maps: Path
    out: Path
    encoder: Path | None
    imagenet: Path | None
    threads: int

    def fill(self, words: str) -> list[str]:
        """A command's words with the folders in their places.

        Raises:
            SystemExit: a file that it needs was not named.
        """
        pool = " ".join(str(self.data / name) for name in POOL)
        for name, file in (("encoder", self.encoder), ("imagenet", self.imagenet)):
            if f"{{{name}}}" in words and file is None:
                raise SystemExit(f"--{name}-weights FILE is needed for {words.split()[0]}.")
        known = {"encoder": self.encoder, "imagenet": self.imagenet, "data": self.data, "maps": self.maps}
        return words.format(**known, pool=pool, out=self.out).split()

    @property
    def machine(self) -> list[str]:
        """Options of every run."""
        return ["--device", "cpu", "--threads", str(self.threads)]


def main() -> int:
    """Runs what is missing of what was asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(POOL)}")
    parser.add_argument("--maps", type=Path, required=True, help="anomaly maps of those")
    parser.add_argument("--out", type=Path, default=Path("runs/gain"))
    parser.add_argument("--encoder-weights", type=Path, help="ViT-S/14 in DINOv2's layout, for maps of the studies")
    parser.add_argument("--imagenet-weights", type=Path, help="ImageNet ResNet-50 with v1 strides, for its arms")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(TABLES["yolov8_n"]))
    parser.add_argument("--images", nargs="*", type=int, choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", nargs="+", type=float, metavar="LR", help="try learning rates on a part of train")
    parser.add_argument("--stages-only", action="store_true", help="pretrain, and do not fine-tune")
    parser.add_argument("--table-only", action="store_true", help="run nothing: the runs that are finished")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    places = Places(args.data, args.maps, args.out, args.encoder_weights, args.imagenet_weights, args.threads)
    if args.tune:
        runs = [Run(arm, 100, seed, lr) for seed in args.seeds for arm in args.arms for lr in args.tune]
    else:
        runs = [
            Run(arm, count, seed)
            for count in args.images
            for seed in args.seeds
            for arm in args.arms
            if count in BUDGETS[ARMS[arm].detector].epochs
        ]
    if not args.table_only:
        for arm in args.arms:
            pretrain(ARMS[arm].stage, places)
        for run in () if args.stages_only else runs:
            finetune(run, places)
    if args.tune:
        for lr in args.tune:
            files = [places.out / f"{run.name}.json" for run in runs if run.lr == lr]
            found = [json.loads(file.read_text()) for file in files if file.is_file()]
            print(f"lr {lr:g}: map50_95 {statistics.mean(s['map50_95'] for s in found):.4f} of {len(found)} runs")
        return 0
    for name in TABLES:
        if text := table(places.out, name):
            print(text)
            if args.write:
                write_between(DOCS, f"<!-- begin of {name} -->", f"<!-- end of {name} -->", f"\n{text}")
    return 0


def pretrain(name: str, places: Places) -> None:
    """Runs a stage and those before it, unless it is finished."""
    if not name or (places.out / f"{name}.done").is_file():
        return
    stage = STAGES[name]
    pretrain(stage.after, places)
    out = places.out / name
    if stage.module == "agssp_zoo":
        run_resumable(places.fill(stage.words), out, places)
    else:
        call([*places.fill(stage.words), "--out", str(out)], stage.module)
    (places.out / f"{name}.done").touch()


def finetune(run: Run, places: Places) -> None:
    """Fine-tunes and scores, unless that is finished."""
    result = places.out / f"{run.name}.json"
    if result.is_file():
        return
    arm = ARMS[run.arm]
    budget = BUDGETS[arm.detector]
    data = labelled(places, run)
    lr = budget.lr if run.lr is None else run.lr
    epochs = budget.epochs[run.images]
    train = f"finetune --data {data} --size {budget.size} --epochs {epochs} --lr {lr:g} --seed {run.seed}"
    unseen = f"--val-every {epochs} --no-plots --no-report"
    measure(result, [*train.split(), *unseen.split(), *places.fill(arm.start)], data, places, arm.nms_iou)


def measure(result: Path, words: Sequence[str], data: Path, places: Places, nms_iou: float = NMS_IOU) -> None:
    """Fine-tunes in the folder of the result's name, scores the weights of the last epoch, and writes the result."""
    out = result.with_suffix("")
    run_resumable(words, out, places)
    score(result, out / "last", data, nms_iou)


def score(result: Path, model: Path, data: Path, nms_iou: float = NMS_IOU) -> None:
    """Scores a model on the split val, and writes the result."""
    out = result.with_suffix("") / f"score_{nms_iou:g}"
    words = ["val", "--data", str(data), "--model", str(model), "--out", str(out), "--split", "val"]
    call([*words, "--device", "cpu", "--images", "0", "--iou", f"{nms_iou:g}"])
    values = json.loads((out / "metrics.json").read_text())
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps({key: values[key] for key in ("map50", "map50_95", "images")}) + "\n")
    temporary.replace(result)


def run_resumable(words: Sequence[str], out: Path, places: Places) -> None:
    """Runs a training command, or goes on with it."""
    if (out / "config.json").is_file():
        call([words[0], "--out", str(out), "--resume", "--threads", str(places.threads)])
    else:
        call([*words, *places.machine, "--out", str(out)])


def call(words: Sequence[str], module: str = "agssp_zoo") -> None:
    """Runs a command.

    Raises:
        CalledProcessError: it failed; what it said stands above.
    """
    print(module, *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=sys.stderr)


def labelled(places: Places, run: Run) -> Path:
    """The folder of a run's labelled images: links to NEU-DET's, and lists of its own."""
    source = (places.data / "neu_det").resolve()
    tuning, rest = split_train((source / "train.txt").read_text().split())
    if run.lr is None:
        train, val = draw(rest if run.images <= len(rest) else tuning + rest, run.images, run.seed), None
    else:
        train, val = draw(tuning, run.images, run.seed), tuning
        val = [name for name in tuning if name not in set(train)]
    folder = places.out / "data" / (f"tune_{run.seed}" if run.lr is not None else f"{run.images}_{run.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "annotations"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(source / name)
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in train))
    (folder / "val.txt").write_text((source / "val.txt").read_text() if val is None else "\n".join(val) + "\n")
    return folder


def split_train(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits the names of train.txt into those for choosing the learning rate and the others."""
    names = sorted(names)
    tuning = draw(names, TUNING, seed=-1)
    chosen = set(tuning)
    return tuning, [name for name in names if name not in chosen]


def draw(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draws names, as many of every class as there are in proportion; NEU-DET's names begin with their class."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        by_class[name.rsplit("_", 1)[0]].append(name)
    generator = random.Random(seed)
    places = []
    for name in sorted(by_class):
        members = generator.sample(by_class[name], len(by_class[name]))
        places += [((rank + 0.5) / len(members), generator.random(), member) for rank, member in enumerate(members)]
    return [member for *_, member in sorted(places)[:count]]


def read_scores(out: Path, name: str) -> dict[int, dict[str, float]]:
    """What the finished runs ``NAME_SEED`` scored, by seed."""
    files = {seed: out / f"{name}_{seed}.json" for seed in range(10)}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.is_file()}


def table(out: Path, name: str) -> str:
    """One of :data:`~benchmarks.gain_arms.TABLES`; nothing where only its first arm was run."""
    what = "backbone pretrained on" if name == "studies" else "start"
    text = f"| images | {what} | map50 of each seed | mean | gain | map50_95 of each seed | mean | gain |\n"
    text += "|--:|---|---|--:|--:|---|--:|--:|\n"
    rows = [line for count in COUNTS for line in lines(out, TABLES[name], count)]
    labels = {line.split("|")[2] for line in rows}
    return text + "".join(rows) if len(labels) > 1 else ""


def lines(out: Path, arms: Sequence[str], count: int) -> list[str]:
    """A line for every arm: the scores of all seeds, their mean, and the gain over the first arm."""
    text, base = [], {}
    for name in arms:
        found = read_scores(out, f"{name}_{count}")
        if name == arms[0]:
            base = found
        if found:
            cells = [str(count), ARMS[name].label, *both_columns(found, base if name != arms[0] else {})]
            text.append(f"| {' | '.join(cells)} |\n")
    return text


def both_columns(found: dict[int, dict[str, float]], base: dict[int, dict[str, float]]) -> list[str]:
    """The cells of map50 and map50_95; see :func:`columns`."""
    return [cell for key in ("map50", "map50_95") for cell in columns(key, found, base)]


def columns(key: str, found: dict[int, dict[str, float]], base: dict[int, dict[str, float]]) -> list[str]:
    """The cells of one metric, in points: all seeds, mean, and mean difference to the baseline of the same seeds."""
    values = [100 * score[key] for score in found.values()]
    both = [100 * (found[seed][key] - base[seed][key]) for seed in found if seed in base]
    spread = f" ± {statistics.stdev(both):.1f}" if len(both) > 1 else ""
    gain = f"{statistics.mean(both):+.1f}{spread}" if both else ""
    return [", ".join(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}", gain]


if __name__ == "__main__":
    sys.exit(main())
