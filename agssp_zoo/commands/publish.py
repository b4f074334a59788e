"""``agssp-zoo publish``: a model folder -> a repository on the Hub, and the line that pins it in the registry."""

from __future__ import annotations

import argparse
from pathlib import Path

from agssp_zoo import hub
from agssp_zoo.commands.options import print_json
from agssp_zoo.errors import InvalidArgumentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``publish``."""
    parser.add_argument("folder", nargs="?", metavar="DIR", help="the model folder; with --all the folder of folders")
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="the repository (default: NAMESPACE/name of the model)")
    parser.add_argument("--all", action="store_true", help="publish every model folder in DIR (default: model_cards)")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--token", help="access token with write permission (default: HF_TOKEN, or `hf auth login`)")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="check everything, upload nothing")


def run(args: argparse.Namespace) -> int:
    """Publishes and prints what goes into the registry, as JSON in either case.

    Every folder is checked before the first one is uploaded.
    """
    from agssp_zoo.publish import check_folder, publish

    if args.all:
        if args.repo_id:
            raise InvalidArgumentError("--repo-id names one repository, --all publishes several; give one of them.")
        root = Path(args.folder or hub.CHECKOUT_MODELS)
        folders = sorted(path.parent for path in root.glob("*/config.json"))
        if not folders:
            raise InvalidArgumentError(f"{root} holds no model folders.")
    elif args.folder:
        folders = [Path(args.folder)]
    else:
        raise InvalidArgumentError("Give the model folder to publish, or --all.")
    checked = {folder: check_folder(folder) for folder in folders}
    lines = {}
    for folder, config in checked.items():
        repo_id = args.repo_id or f"{hub.namespace()}/{config.name}"
        lines.update(
            publish(
                folder,
                repo_id,
                token=args.token,
                private=args.private,
                message=args.message,
                dry_run=args.dry_run,
            )
        )
    print_json(lines)
    return 0
