"""Measures, prints, and writes benchmarks/results.json and the table of benchmarks/README.md.

Every benchmark runs in a process of its own. With ``--only`` the other figures stay as they were measured before.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Figure, single_threaded, to_json, use_one_core, versions, write_between

BENCHMARKS = {
    "import": "startup:import_package",
    "help": "startup:command_help",
    "first-prediction": "startup:first_prediction",
    "load-backbone": "startup:load_backbone",
    "network": "inference:network",
    "strip": "inference:strip",
    "throughput": "throughput:stream",
    "postprocess": "inference:postprocess",
    "resize": "images:resize",
    "int8": "deployment:int8",
    "openvino": "deployment:openvino",
    "swin": "swin:features",
    "kept-weights": "kept_weights:against_modules",
    "training-loader": "training:loader",
    "training-epoch": "training:epoch",
    "training-loss": "training:loss",
    "kead": "anomaly:kead",
    "winclip": "anomaly:winclip",
    "own": "anomaly:own",
    "maps": "anomaly:maps",
    "pretrain-step": "pretrain:step",
    "pretrain-loader": "pretrain:loader",
    "install": "install:base_install",
}
"""Name -> module and function; a function takes the number of rounds and answers figures."""
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def main() -> int:
    """Runs the benchmarks asked for; 1 when one fails or a limit is not reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="measure this one (may be repeated)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each thing is measured (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        use_one_core()
        module, function = BENCHMARKS[args.child].split(":")
        figures = getattr(importlib.import_module(f"benchmarks.{module}"), function)(args.rounds)
        print(to_json(figures))
        return 0
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    bad = False
    for name in args.only or BENCHMARKS:
        entry = _measure(name, args.rounds)
        results[name] = entry
        for figure in entry["figures"]:
            bad |= _print(Figure(**figure))
        if "failed" in entry:
            bad = True
            print(f"{name}: failed: {entry['failed']}")
    if not args.dry_run:
        ordered = {name: results[name] for name in BENCHMARKS if name in results}
        RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
        _write_table(ordered)
    return int(bad)


def _measure(name: str, rounds: int) -> dict[str, Any]:
    """One benchmark in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--child", name, "--rounds", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, env=single_threaded(), capture_output=True, text=True)
    entry: dict[str, Any] = {"measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "versions": versions()}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {**entry, "figures": [], "failed": said[-1][:500]}
    return {**entry, "figures": json.loads(done.stdout.splitlines()[-1])}


def _print(figure: Figure) -> bool:
    """Prints a figure; whether its limit is not reached."""
    print(f"{figure.name:48s} {figure.value:9.4g} {figure.unit:3s} {_limit(figure):>10s}  {figure.note}", flush=True)
    return figure.reached is False


def _limit(figure: Figure) -> str:
    """The limit and whether it is kept."""
    if figure.limit is None:
        return ""
    return f"{'≥' if figure.at_least else '≤'} {figure.limit:g} {'✓' if figure.reached else '✗'}"


def _write_table(results: dict[str, Any]) -> None:
    """Puts the results into the README."""
    lines = ["| | measured | to reach | |", "|---|--:|--:|---|"]
    for name, entry in results.items():
        if "failed" in entry:
            lines.append(f"| {name} | failed | | {entry['failed']} |")
        for values in entry["figures"]:
            figure = Figure(**values)
            lines.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {_limit(figure)} | {figure.note} |")
    newest = max(results.values(), key=lambda entry: entry["measured"])
    lines += [
        "",
        "Measured " + newest["measured"] + ": " + ", ".join(f"{k} {v}" for k, v in newest["versions"].items()) + ".",
    ]
    write_between(README, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
