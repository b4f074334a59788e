"""``agssp-zoo download``: a model into the cache, or as a folder of its own to carry to a machine without a network."""

from __future__ import annotations

import argparse
import sys

from agssp_zoo import hub
from agssp_zoo.commands.options import add_hub_arguments, hub_options, print_json
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.folder import copy_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``download``."""
    parser.add_argument("model", help="a model's name, the path of a model folder, or hf://owner/repo[@revision]")
    parser.add_argument("--to", metavar="DIR", help="make DIR a whole model folder (default: fill the cache)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder DIR if it is there")
    add_hub_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Downloads, checks, and prints the folder."""
    if args.overwrite and not args.to:
        raise InvalidArgumentError("--overwrite replaces the folder that --to names; give --to DIR, too.")
    folder = hub.resolve(args.model, **hub_options(args))
    for name in folder.names:
        folder.file(name)
    path = copy_folder(folder, args.to, overwrite=args.overwrite) if args.to else folder.path
    if args.json:
        print_json({"folder": str(path), "name": folder.config.name, "files": list(folder.names)})
    else:
        sys.stdout.write(f"{path}\n")
    return 0
