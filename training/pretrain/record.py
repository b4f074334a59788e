"""What a pretraining says about itself: config.json of its folder, and the provenance that its model carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..record import circumstances, command_line, folder_name, names_only
from .pool import Pool
from .settings import PretrainSettings
from .start import BackboneStart

COMMAND = "pretrain-backbone"


def describe(settings: PretrainSettings, pool: Pool, start: BackboneStart) -> dict[str, Any]:
    """The content of the run's config.json."""
    return {
        "settings": settings.to_dict(),
        "data": {
            "paths": [path if "://" in path else str(Path(path).resolve()) for path in settings.images],
            "names": [folder_name(path) for path in settings.images],
            "fingerprint": pool.images.fingerprint(),
            "images": len(pool),
            "images_by_source": pool.counts,
            "class_names": list(pool.class_names),
        },
        "maps": {
            "path": str(Path(settings.maps).resolve()),
            "fingerprint": pool.maps.fingerprint,
            "grid": list(pool.maps.grid),
            "settings": pool.maps.settings,
        },
        "start": {"source": start.source, "provenance": dict(start.provenance)},
        **circumstances(),
        "command": command_line(COMMAND, settings),
    }


def same_data(record: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether a run that goes on has the images and maps that it began with."""
    checked = (("data", "fingerprint"), ("maps", "fingerprint"), ("maps", "settings"))
    return all(record[part][key] == stored[part][key] for part, key in checked)


def provenance(record: dict[str, Any], settings: PretrainSettings) -> dict[str, Any]:
    """What the model's config.json, and from it its card, say about its origin, without paths of this machine."""
    data, maps = record["data"], record["maps"]
    places = ("images", "exclude", "maps", "out", "license")
    return {
        **({"license": settings.license} if settings.license else {}),
        "datasets": sorted(data["images_by_source"]),
        "pretrained_on": {k: data[k] for k in ("fingerprint", "images", "images_by_source")},
        "anomaly_maps": names_only({k: maps[k] for k in ("fingerprint", "grid", "settings")}),
        "start": record["start"],
        "seed": settings.seed,
        "command": published_command(settings),
        "settings": names_only({k: v for k, v in settings.to_dict().items() if k not in places}),
        "versions": record["versions"],
        "git_commit": record["git_commit"],
    }


def published_command(settings: PretrainSettings) -> str:
    """The command with the names of folders and files instead of their paths."""
    instead = {
        "images": tuple(folder_name(path) for path in settings.images),
        "exclude": folder_name(settings.exclude),
        "maps": folder_name(settings.maps),
        "weights": folder_name(settings.weights),
        "recipe": folder_name(settings.recipe) if settings.recipe else "",
    }
    return command_line(COMMAND, settings, instead, leave_out=("out", "license"))
