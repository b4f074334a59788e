"""``python -m agssp_zoo.registry_update [PUBLISHED.json]``: brings registry.json in line with model_cards.

Every folder in model_cards gets the SHA-256 and size of its files into the registry, under its name; a model that the
registry does not know yet is added. Where files have changed since the model was published, the pinned commit is
dropped. PUBLISHED.json is what ``agssp-zoo publish`` has printed; its commits are pinned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agssp_zoo import hub, registry
from agssp_zoo.errors import AgsspZooError, InvalidArgumentError
from agssp_zoo.folder import write_text
from agssp_zoo.publish import check_folder, registry_files


def update(document: dict[str, Any], folders: list[Path], published: dict[str, Any]) -> dict[str, Any]:
    """The registry with the files of the folders and the published commits in it.

    Args:
        document: registry.json as it stands.
        folders: model folders, each named like the model in it.
        published: model name -> ``revision`` and ``files``, as :func:`agssp_zoo.publish.publish` returns it.

    Raises:
        InvalidArgumentError: a folder's name is not its model's, or its architecture is not registered.
        IntegrityError: a folder does not match its checksums.
    """
    models: dict[str, Any] = {name: dict(entry) for name, entry in document["models"].items()}
    found: dict[str, Any] = {}
    for folder in folders:
        config = check_folder(folder)
        if config.name != folder.name:
            raise InvalidArgumentError(f"{folder} holds the model {config.name}; folder and model need the same name.")
        added = {
            "description": f"{config.architecture} detector or backbone; see its card.",
            "license": config.provenance.get("license"),
        }
        models.setdefault(config.name, added)
        found[config.name] = {"revision": None, "files": registry_files(folder)}
    for name, entry in {**found, **published}.items():
        if name.partition(".")[0] not in document["architectures"] or name not in models:
            raise InvalidArgumentError(f"{name}: its architecture, or the model, is not in the registry yet; add it.")
        known = models[name]
        revision = entry["revision"]
        if revision is None and known.get("files") == entry["files"]:
            revision = known.get("revision")  # published as it is
        known.pop("revision", None)
        known.update({"revision": revision} if revision else {}, files=entry["files"])
    return {**document, "models": dict(sorted(models.items()))}


def main(arguments: list[str]) -> int:
    """Rewrites registry.json."""
    document = json.loads(registry.REGISTRY.read_text(encoding="utf-8"))
    published = json.loads(Path(arguments[0]).read_text(encoding="utf-8")) if arguments else {}
    folders = sorted(path.parent for path in hub.CHECKOUT_MODELS.glob("*/config.json"))
    try:
        document = update(document, folders, published)
    except AgsspZooError as error:
        sys.stderr.write(f"registry_update: {error}\n")
        return 1
    write_text(registry.REGISTRY, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{registry.REGISTRY}: {len(folders)} model folders, {len(published)} published\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
