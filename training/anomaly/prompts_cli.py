"""``agssp-zoo prompts list`` and ``agssp-zoo prompts check FILE``: the descriptions that anomaly maps by text use."""

from __future__ import annotations

import argparse
import sys

from agssp_zoo.commands.options import print_json
from agssp_zoo.errors import InvalidArgumentError

from .prompts import check_prompts, find_prompts, load_prompts, prompt_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``prompts``."""
    parser.add_argument("action", choices=("list", "check"), help="list what there is, or check files")
    parser.add_argument("files", nargs="*", metavar="FILE", help="prompt files, or names of the package's")


def run(args: argparse.Namespace) -> int:
    """Runs ``prompts``; 1 when a checked file has an error."""
    if args.action == "list" and args.files:
        raise InvalidArgumentError("list shows what comes with the package; to look at a file give check FILE.")
    return _check(args.files or list(prompt_files()), args.json) if args.action == "check" else _list(args.json)


def _list(as_json: bool) -> int:
    """Prints what comes with the package."""
    found = {name: load_prompts(path) for name, path in prompt_files().items()}
    if as_json:
        rows = {
            name: {
                "object": prompts.object,
                "aliases": prompts.aliases,
                "normal": prompts.normal,
                "defects": {defect.name: defect.appearance for defect in prompts.defects},
                "path": prompts.path,
            }
            for name, prompts in found.items()
        }
        print_json(rows)
        return 0
    for name, prompts in found.items():
        sys.stdout.write(f"{name:20s} {prompts.object}: {', '.join(defect.name for defect in prompts.defects)}\n")
    sys.stdout.write("\nThey are described in the files below; copy one to describe a product of your own:\n")
    sys.stdout.write("".join(f"  {prompts.path}\n" for prompts in found.values()))
    return 0


def _check(files: list[str], as_json: bool) -> int:
    """Prints every problem of some files."""
    checked = {path: check_prompts(path, tokens=True) for path in map(find_prompts, files)}
    problems = [problem for _, found in checked.values() for problem in found]
    if as_json:
        print_json({"files": [str(path) for path in checked], "problems": [p.to_dict() for p in problems]})
    else:
        for path, (prompts, found) in checked.items():
            sys.stdout.write("".join(f"{problem}.\n" for problem in found))
            if prompts is not None:
                counts = f"{len(prompts.normal)} normal states, {len(prompts.defects)} defects"
                sys.stdout.write(f"{path}: fine ({prompts.object}: {counts})\n")
    return int(any(problem.severity == "error" for problem in problems))
