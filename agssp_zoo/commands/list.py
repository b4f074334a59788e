"""``agssp-zoo list``: which models there are and where each is to be had."""

from __future__ import annotations

import argparse

from agssp_zoo import hub, registry
from agssp_zoo.commands.options import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``list``."""
    parser.add_argument("pattern", nargs="?", default="*", help="only names like this, e.g. 'yolo*' (default: all)")
    parser.add_argument("--task", choices=registry.TASKS, help="only models for this task")


def run(args: argparse.Namespace) -> int:
    """Prints the models."""
    models = [registry.model_info(name) for name in registry.list_models(args.pattern, task=args.task)]
    if args.json:
        print_json([{**info.to_dict(), "where": where(info)} for info in models])
    elif models:
        rows = [(info.name, info.task, where(info), info.description) for info in models]
        print_table([("NAME", "TASK", "WHERE", "DESCRIPTION"), *rows])
    return 0


def where(info: registry.ModelInfo) -> str:
    """Where a model is to be had: ``"disk"``, ``"hub"``, ``"convert"`` (the authors' file) or ``"-"`` (nowhere yet)."""
    if hub.local_folder(info.name):
        return "disk"
    if info.revision:
        return "hub"
    return "convert" if info.authors_file else "-"
