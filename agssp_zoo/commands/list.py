"""``agssp-zoo list``: which models there are and where each is to be had."""

from __future__ import annotations

import argparse
import dataclasses
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from agssp_zoo import hub, registry
from agssp_zoo.commands.options import print_json, print_table
from agssp_zoo.errors import AgsspZooError
from agssp_zoo.folder import ModelFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``list``."""
    parser.add_argument("pattern", nargs="?", default="*", help="only names like this, e.g. 'yolo*' (default: all)")
    parser.add_argument("--task", choices=registry.TASKS, help="only models for this task")


def run(args: argparse.Namespace) -> int:
    """Prints the models: the registered ones, and those of $AGSSP_ZOO_HOME with names of their own."""
    models = [registry.model_info(name) for name in registry.list_models(args.pattern, task=args.task)]
    entries = [{**info.to_dict(), "where": where(info)} for info in models]
    for name, folder in hub.local_models().items():
        entry = _local(name, folder)
        alike = any(fnmatchcase(text, args.pattern) for text in (name, entry["architecture"] or ""))
        if alike and args.task in (None, entry["task"]):
            entries.append(entry)
    entries.sort(key=lambda entry: str(entry["name"]))
    if args.json:
        print_json(entries)
    elif entries:
        rows = [(entry["name"], entry["task"] or "-", entry["where"], entry["description"]) for entry in entries]
        print_table([("NAME", "TASK", "WHERE", "DESCRIPTION"), *rows])
    return 0


def where(info: registry.ModelInfo) -> str:
    """Where a model is to be had: ``"disk"``, ``"hub"``, ``"convert"`` (the authors' file) or ``"-"`` (nowhere yet)."""
    if hub.local_folder(info.name):
        return "disk"
    if info.revision:
        return "hub"
    return "convert" if info.authors_file else "-"


def _local(name: str, folder: Path) -> dict[str, Any]:
    """The entry of a model that is not registered; it has the keys of the others, ``None`` where nothing is known.

    A folder that cannot be read is listed as well, with the reason as its description.
    """
    keys = [field.name for field in dataclasses.fields(registry.ModelInfo)]
    entry: dict[str, Any] = dict.fromkeys([*keys, "authors_link"])
    entry.update(name=name, default=False, files={}, where="local")
    try:
        config = ModelFolder.open(folder).config
    except AgsspZooError as error:
        return {**entry, "description": " ".join(str(error).split())}
    entry.update(architecture=config.architecture, task=config.task, license=config.provenance.get("license"))
    return {**entry, "description": f"{config.architecture} in {folder}"}
