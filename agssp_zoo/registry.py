"""Which models exist: registry.json as :class:`ModelInfo`.

A model's name is ``architecture.tag``; the bare architecture means its default tag. The registry pins what is
published: the Hub repository's commit and the SHA-256 of every file. Nothing here touches the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from agssp_zoo.errors import InvalidArgumentError, ModelNotFoundError

REGISTRY = Path(__file__).with_name("registry.json")
TASKS = ("backbone", "detector")
Task = Literal["backbone", "detector"]


@dataclass(frozen=True)
class FileInfo:
    """A published file.

    Attributes:
        sha256: its checksum in hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows about a model.

    Attributes:
        name: ``architecture.tag``.
        architecture: which network it is.
        tag: how its weights came to be.
        task: ``"backbone"`` or ``"detector"``.
        default: whether the bare architecture name means this model.
        description: one line.
        license: SPDX identifier of the weights' licence; ``None`` where their authors state none.
        repo_id: its repository on the Hub, whether or not it is published yet.
        revision: the pinned commit of that repository; ``None`` while nothing is published.
        files: file name -> checksum and size, of every file that is published or lies in model_cards.
        authors_file: Google Drive id of the AGSSP authors' checkpoint, for models that can be converted from it.
    """

    name: str
    architecture: str
    tag: str
    task: Task
    default: bool
    description: str
    license: str | None
    repo_id: str
    revision: str | None = None
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    authors_file: str | None = None

    @property
    def authors_link(self) -> str | None:
        """Where the authors' checkpoint lies; ``None`` when they publish none."""
        return f"https://drive.google.com/file/d/{self.authors_file}/view" if self.authors_file else None

    @property
    def checksums(self) -> dict[str, str]:
        """File name -> SHA-256."""
        return {name: info.sha256 for name, info in self.files.items()}

    @property
    def size(self) -> int:
        """All its files together, in bytes; 0 when none is known."""
        return sum(info.size for info in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The plain values, as ``agssp-zoo info --json`` prints them."""
        plain = {key: value for key, value in vars(self).items() if key != "files"}
        files = {name: {"sha256": info.sha256, "size": info.size} for name, info in self.files.items()}
        return {**plain, "authors_link": self.authors_link, "files": files}


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Names of the registered models, sorted.

    Args:
        pattern: shell pattern on the name or the bare architecture, e.g. ``"yolo*"`` or ``"*.agbp"``.
        task: ``"detector"`` or ``"backbone"``; ``None`` for both.

    Raises:
        InvalidArgumentError: no such task, or a pattern that is no text.
    """
    from fnmatch import fnmatchcase

    _check_text("pattern", pattern)
    if task is not None and task not in TASKS:
        raise InvalidArgumentError(f"task is {task!r}; choose one of {', '.join(map(repr, TASKS))}.")
    return sorted(
        info.name
        for info in _models().values()
        if (task is None or info.task == task)
        and (fnmatchcase(info.name, pattern) or fnmatchcase(info.architecture, pattern))
    )


def model_info(name: str) -> ModelInfo:
    """What the registry knows about a model.

    Args:
        name: ``architecture.tag``, or a bare architecture for its default tag.

    Raises:
        ModelNotFoundError: no such model; the message offers close names.
        InvalidArgumentError: a name that is no text.
    """
    _check_text("name", name)
    info = find(name)
    if info is None:
        raise ModelNotFoundError(unknown_name(name))
    return info


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{what} is {value!r}; give a text, such as 'yolov8_n'.")


def find(name: str) -> ModelInfo | None:
    """As :func:`model_info`, with ``None`` for a name that is not registered."""
    return _models().get(resolve_name(name))


def resolve_name(name: str) -> str:
    """The full name: a bare, registered architecture gets its default tag, everything else stays."""
    entry = _document()["architectures"].get(name)
    return f"{name}.{entry['default_tag']}" if entry else name


def default_detector() -> str:
    """The name of the detector that ``load_detector()`` loads."""
    return str(_document()["default_detector"])


def architectures() -> dict[str, str]:
    """Every registered architecture -> its task."""
    return {name: entry["task"] for name, entry in _document()["architectures"].items()}


def default_namespace() -> str:
    """The Hub namespace that the models are published under."""
    return str(_document()["namespace"])


def unknown_name(name: str) -> str:
    """The message about a name that is not registered, with close names."""
    import difflib

    known = [*_document()["architectures"], *_models()]
    architecture = name.split(".", 1)[0]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    close += [m for m in known if m.startswith(f"{architecture}.") and m not in close]
    hint = f"did you mean {' or '.join(map(repr, close[:4]))}?" if close else "see `agssp-zoo list`."
    return f"There is no model named {name!r}; {hint}"


@cache
def _document() -> dict[str, Any]:
    """registry.json as it stands."""
    document: dict[str, Any] = json.loads(REGISTRY.read_text(encoding="utf-8"))
    return document


@cache
def _models() -> dict[str, ModelInfo]:
    """Full name -> info."""
    document = _document()
    models = {}
    for name, entry in document["models"].items():
        architecture, _, tag = name.partition(".")
        described = document["architectures"][architecture]
        models[name] = ModelInfo(
            name=name,
            architecture=architecture,
            tag=tag,
            task=described["task"],
            default=tag == described["default_tag"],
            description=entry["description"],
            license=entry["license"],
            repo_id=f"{document['namespace']}/{name}",
            revision=entry.get("revision"),
            files={file: FileInfo(**about) for file, about in entry.get("files", {}).items()},
            authors_file=entry.get("authors_file"),
        )
    return models
