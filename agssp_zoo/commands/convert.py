"""``agssp-zoo convert``: the authors' OpenMMLab checkpoint -> a model folder."""

from __future__ import annotations

import argparse
import sys

from agssp_zoo import registry
from agssp_zoo.commands.options import print_json
from agssp_zoo.config import ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``convert``."""
    parser.add_argument("checkpoint", help="the .pth file")
    parser.add_argument("--arch", required=True, metavar="NAME", help=f"one of {', '.join(registry.architectures())}")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder to make")
    parser.add_argument("--class-names", metavar="A,B,...", help="names of the classes, in label order")


def run(args: argparse.Namespace) -> int:
    """Converts, and prints the folder."""
    from agssp_zoo.convert import convert_checkpoint

    names = [name.strip() for name in args.class_names.split(",")] if args.class_names else None
    path = convert_checkpoint(args.checkpoint, args.arch, args.out, class_names=names)
    filled = list(ModelConfig.load(path).provenance.get("not_in_file", ()))
    if args.json:
        print_json({"folder": str(path), "not_in_file": filled})
        return 0
    if filled:
        sys.stderr.write(f"Not in the checkpoint, and left as they begin (ones and zeros): {', '.join(filled)}.\n")
    sys.stdout.write(f"{path}\n")
    return 0
