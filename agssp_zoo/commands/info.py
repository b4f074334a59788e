"""``agssp-zoo info``: what the registry and the model's config.json say about a model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agssp_zoo import hub, registry
from agssp_zoo.commands.list import where
from agssp_zoo.commands.options import human_size, print_json, print_table
from agssp_zoo.errors import WeightsNotPublishedError
from agssp_zoo.file_names import user_path
from agssp_zoo.folder import CONFIG, ModelFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``info``."""
    parser.add_argument("model", help="a model's name, the path of a model folder, or hf://owner/repo[@revision]")


def run(args: argparse.Namespace) -> int:
    """Prints what is known; only an hf:// address is looked up on the network.

    A model folder of that path comes before a name of the registry, as for whoever loads it.
    """
    is_folder = (user_path(args.model) / CONFIG).is_file()
    info = None if is_folder else registry.find(args.model)
    folder: ModelFolder | None = None
    if info is None:
        folder = hub.locate(args.model)
    elif path := hub.local_folder(info.name):
        folder = ModelFolder.open(path)
    about: dict[str, Any] = {}
    if info is not None:
        about.update(info.to_dict(), where=where(info))
    if folder is not None:
        about.update(folder=str(folder.path), config=folder.config.to_dict())
    if args.json:
        print_json(about)
        return 0
    _print(about)
    if info is not None and about["where"] in ("convert", "-"):
        sys.stdout.write(f"\n{WeightsNotPublishedError(hub.not_published(info))}\n")
    return 0


def _print(about: dict[str, Any]) -> None:
    """The facts in two columns."""
    config = about.pop("config", {})
    facts = {**about, **{key: config[key] for key in ("name", "architecture", "task") if key in config}}
    facts.pop("default", None)
    files = facts.pop("files", {})
    rows: list[tuple[str, ...]] = [
        (key.replace("_", " "), str(value)) for key, value in facts.items() if value is not None
    ]
    rows += [("file", f"{name} ({human_size(file['size'])}, sha256 {file['sha256']})") for name, file in files.items()]
    if config:
        rows.append(("classes", ", ".join(config["class_names"]) or "-"))
        for section in ("options", "preprocess", "postprocess", "provenance"):
            rows += [(f"{section}.{key}", str(value)) for key, value in (config[section] or {}).items()]
    print_table(rows)
