"""The methods by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agssp_zoo.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from .method import AnomalyMethod
    from .settings import MapSettings

METHODS = {
    "kead": ".kead",
    "memory": ".memory",
    "mutual": ".mutual",
    "own": ".own",
    "consensus": ".consensus",
    "gaussian": ".gaussian",
    "auto": ".auto",
}
"""Name -> its module, which has ``build(options: MapSettings) -> AnomalyMethod``."""
_OURS = tuple(METHODS)
_USED_BY = {("normal", "shots"): ("memory", "kead"), ("clip", "clip_weights", "object"): ("kead",)}
"""Options that only some methods use, and these methods."""


def method_names(text: str) -> tuple[str, ...]:
    """The methods of ``--method``, of which there are several in ``a+b``.

    Raises:
        InvalidArgumentError: one is unknown or stands twice.
    """
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise InvalidArgumentError(f"--method {text}: choose of {known}, or several with + between them.")
    if len(set(names)) < len(names):
        raise InvalidArgumentError(f"--method {text}: a method stands twice.")
    return names


def refuse_unused(settings: MapSettings) -> None:
    """Refuses what none of the methods asked for would use: maps would look as if it had been used.

    Raises:
        InvalidArgumentError: an unknown method, normal images for methods that compare with others, or what kead alone
            uses without kead.
    """
    names = method_names(settings.method)
    for options, users in _USED_BY.items():
        if any(name in users or name not in _OURS for name in names):
            continue
        given = [name for name in options if getattr(settings, name)]
        if given:
            flag = f"--{given[0].replace('_', '-')}"
            raise InvalidArgumentError(
                f"{flag}: --method {settings.method} does not use it; leave it out, or take "
                f"{' or '.join(f'--method {name}' for name in users)}."
            )


def build_method(name: str, options: MapSettings) -> AnomalyMethod:
    """Builds one method, its networks and weights on the CPU.

    Raises:
        InvalidArgumentError: no such method, or an option that it cannot use.
        MissingDependencyError: a package that it needs is not installed.
    """
    method_names(name)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError("Anomaly maps need torch; run `pip install 'agssp-zoo[train]'`.") from None
    method: AnomalyMethod = importlib.import_module(METHODS[name], __package__).build(options)
    return method
