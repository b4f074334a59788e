"""``agssp-zoo anomaly-maps DATA --method M --out DIR``: a store of anomaly maps of a pool of images.

For several processes, with the same arguments: ``accelerate launch --multi_gpu --num_processes 2 -m
agssp_zoo.training.anomaly.maps_cli DATA ...`` (add ``--device cpu`` for two on the CPU).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agssp_zoo.errors import AgsspZooError

from ..data.problems import some
from ..settings import add_setting_arguments, given_settings
from .settings import MapSettings

if TYPE_CHECKING:
    from .maps import Outcome

PICTURES = 24
"""Images of a data set that ``--visualize`` draws."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``anomaly-maps``."""
    parser.add_argument("data", nargs="+", help="folders of images, or of shards; several make one pool")
    add_setting_arguments(parser, MapSettings, leave_out=("data", "visualize"))
    parser.add_argument(
        "--visualize",
        type=int,
        nargs="?",
        const=PICTURES,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"draw N images of every data set ({PICTURES} without a number), and a sheet of them",
    )


def run(args: argparse.Namespace) -> int:
    """Runs ``anomaly-maps``."""
    from ..devices import is_main
    from .maps import make_maps

    settings = MapSettings(**{**given_settings(args, MapSettings), "data": tuple(args.data)})
    as_json = bool(getattr(args, "json", False))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        outcome = make_maps(settings)
        if not is_main() or outcome.store is None:
            return 0
        pictures: list[str] = []
        if settings.visualize:
            from .visualize import write_pictures

            folder = outcome.store.path / "pictures"
            pictures = [str(f) for f in write_pictures(outcome.store, outcome.images, folder, limit=settings.visualize)]
    if as_json:
        from agssp_zoo.commands.options import print_json

        print_json({**to_dict(outcome), "pictures": pictures})
    else:
        sys.stdout.write(to_text(outcome, pictures))
    return 0


def to_dict(outcome: Outcome) -> dict[str, object]:
    """The outcome as JSON values."""
    store = outcome.store
    assert store is not None
    return {
        "path": str(store.path),
        "method": store.settings["method"],
        "images": len(store),
        "unreadable": list(outcome.unreadable),
        "grid": list(store.grid),
        "sources": dict(Counter(store.sources)),
        "settings": store.settings,
        "made": outcome.made,
        "seconds": round(outcome.seconds, 3),
        "images_per_second": round(outcome.made / outcome.seconds, 2) if outcome.made and outcome.seconds else None,
        "notes": list(outcome.notes),
    }


def to_text(outcome: Outcome, pictures: Sequence[str] = ()) -> str:
    """The outcome for people."""
    store = outcome.store
    assert store is not None
    counts = Counter(store.sources)
    of = f" of {len(counts)} data sets ({', '.join(f'{k} {v}' for k, v in counts.items())})" if len(counts) > 1 else ""
    lines = [
        f"{store.path}: maps {store.grid[0]}x{store.grid[1]} of {len(store)} images{of}, {store.settings['method']}"
    ]
    if outcome.made:
        lines.append(
            f"{outcome.made} made in {outcome.seconds:.1f} s, {outcome.made / outcome.seconds:.1f} images a second"
        )
    else:
        lines.append("all of them were there already")
    if lost := outcome.unreadable:
        images = "an image" if len(lost) == 1 else f"{len(lost)} images"
        lines.append(f"without {images} that cannot be read: {some(lost, 5)}")
    lines += [*outcome.notes, *([f"pictures: {pictures[0]}"] if pictures else [])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """``python -m agssp_zoo.training.anomaly.maps_cli``."""
    parser = argparse.ArgumentParser(prog="python -m agssp_zoo.training.anomaly.maps_cli", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return run(args)
    except AgsspZooError as error:
        rank = os.environ.get("RANK")
        sys.stderr.write(f"error{f' (process {rank})' if rank else ''}: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
