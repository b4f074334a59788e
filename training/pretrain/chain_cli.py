"""``agssp-zoo agssp``: from a folder of unlabelled images to a pretrained backbone and a pretrained detector.

Three steps: ``anomaly-maps``, ``pretrain-backbone``, ``pretrain-detector``. The same command goes on where it was
stopped, by whatever; ``--plan`` prints the steps' own commands.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from agssp_zoo.surroundings import exit_code

from ..settings import add_setting_arguments, given_settings
from .chain_settings import STEPS, ChainSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``agssp-zoo agssp``."""
    add_setting_arguments(parser, ChainSettings, leave_out=STEPS)
    hints = {
        "maps": ("anomaly-maps", "size=224 layers=2,3"),
        "backbone": ("pretrain-backbone", "batch=128 task=none"),
        "detector": ("pretrain-detector", "optimizer=adamw margin=0.2"),
    }
    for step, (command, example) in hints.items():
        parser.add_argument(
            f"--{step}",
            nargs="+",
            default=argparse.SUPPRESS,
            metavar="NAME=VALUE",
            help=f"more options of {command}, e.g. {example}",
        )
    parser.add_argument("--plan", action="store_true", help="print the commands of the steps, and stop")


def run(args: argparse.Namespace) -> int:
    """Runs the chain; the exit codes are those of ``agssp-zoo finetune``."""
    from .chain import open_chain, run_chain

    as_json = bool(getattr(args, "json", False))
    given = given_settings(args, ChainSettings)
    if args.plan:
        commands = open_chain(given).commands()
        if as_json:
            from agssp_zoo.commands.options import print_json

            print_json(commands)
        else:
            sys.stdout.write("\n".join(commands.values()) + "\n")
        return 0
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        outcome = run_chain(**given)
    if as_json:
        from agssp_zoo.commands.options import print_json

        print_json({k: str(v) if isinstance(v, Path) else v for k, v in vars(outcome).items()})
    elif outcome.finished:
        sys.stdout.write(
            f"backbone: {outcome.backbone}\ndetector: {outcome.detector}\nreport: {outcome.report}\n"
            f"next: agssp-zoo finetune --data YOUR_DATA --model {shlex.quote(str(outcome.detector))}\n"
        )
    else:
        sys.stdout.write(
            f"{outcome.reason} in step {outcome.step}; its state is saved, the same command goes on, or: agssp-zoo "
            f"agssp --out {shlex.quote(str(outcome.folder))}\n"
        )
    return exit_code(outcome.signal)


def main() -> int:
    """``python -m agssp_zoo.training.pretrain.chain_cli``."""
    from agssp_zoo.cli import main as command

    return command(["agssp", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
