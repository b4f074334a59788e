"""The same work by this project and by public tools, each in its own environment: docs/benchmarks.md.

    python -m benchmarks.peers            # measures what is missing, prints the tables
    python -m benchmarks.peers --write    # puts them into docs/benchmarks.md

The tools (ultralytics, torchvision, anomalib; mmdet is tried) are installed on demand below ``runs``, in environments
that see the packages of this one, so that all compute with the same torch. Every part is kept in ``--out`` as soon as
it is measured and is not measured again; ``--again`` does. CPU seconds, one thread, bound to one core; in every round
all take their turn, and a ratio is the median of the rounds' ratios. Weights are random: they change no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import ROOT, other_settings, single_threaded, use_one_core, versions, write_between
from benchmarks.peers_page import tables
from benchmarks.peers_parts import PARTS

DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin of the tables -->", "<!-- end of the tables -->"


def main() -> int:
    """Measures what is missing, and prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts to measure")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=FILE",
        help="another ONNX file of ours of yolov8_s with 6 classes, e.g. INT8=model_int8.onnx; may be repeated",
    )  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    args = parser.parse_args()
    os.environ |= {**single_threaded(), **other_settings()}
    about = versions()  # before we bind ourselves to one core
    use_one_core()
    args.out.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name, measure in PARTS.items():
        result = args.out / f"{name}.json"
        if (args.again or not result.is_file()) and (not args.only or name in args.only):
            print(f"{name} ...", file=sys.stderr, flush=True)
            values = measure(args.rounds, dict(text.split("=", 1) for text in args.also))
            when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            entry = {"measured": when, "rounds": args.rounds, "load": os.getloadavg()[0], "versions": about, **values}
            temporary = result.with_suffix(".tmp")
            temporary.write_text(json.dumps(entry, indent=1) + "\n")
            temporary.replace(result)
        if result.is_file():
            measured[name] = json.loads(result.read_text())
    text = tables(measured)
    print(text)
    if args.write:
        write_between(DOCS, BEGIN, END, f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
