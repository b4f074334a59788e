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
