"""A model folder: config.json, weights, a model card, and checksums.json, which holds the SHA-256 of all of them.

What a Hub repository holds and what lies on disk is the same folder. Reading goes through :class:`ModelFolder`, which
checks every file before anyone opens it; writing goes through :func:`write_folder`, which builds the folder under a
temporary name and renames it, so that a model folder is either whole or not there.

``python -m agssp_zoo.folder DIR`` renews checksums.json after files were changed on purpose.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agssp_zoo.errors import IntegrityError, InvalidArgumentError, ModelNotFoundError
from agssp_zoo.file_names import user_path

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig

CONFIG = "config.json"
CHECKSUMS = "checksums.json"
CARD = "README.md"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Files of these kinds may run code when they are read; this package neither downloads nor publishes them."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, on disk or on the Hub, whose files are checked before they are read.

    Attributes:
        path: where the files lie; for a model of the Hub the snapshot in the cache, which may not be complete yet.
        checksums: file name -> SHA-256; a file that is not named here is not part of the model. Empty for a folder
            without checksums.json, whose files cannot be checked.
        fetch: brings a file of the Hub to disk, checked; ``None`` when all there is lies in ``path``.
    """

    path: Path
    checksums: Mapping[str, str] = field(default_factory=dict)
    fetch: Callable[[str], Path] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFolder:
        """A folder on disk.

        Raises:
            ModelNotFoundError: no such folder, or it holds no config.json.
            IntegrityError: its checksums.json cannot be read.
        """
        folder = user_path(path)
        if not (folder / CONFIG).is_file():
            what = f"holds no {CONFIG}, so it is not a model folder" if folder.is_dir() else "is not a folder"
            raise ModelNotFoundError(f"{folder} {what}; give a folder made by `agssp-zoo convert` or `download --to`.")
        return cls(folder, read_checksums(folder))

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config.json, read when it is first asked for.

        Raises:
            ConfigError: it is wrong, or of a newer version.
        """
        from agssp_zoo.config import ModelConfig

        return ModelConfig.load(self.file(CONFIG))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its files but checksums.json, here or on the Hub."""
        return tuple(self.checksums) if self.checksums else tuple(model_files(self.path))

    def has(self, name: str) -> bool:
        """Whether the model has a file of that name, here or on the Hub; asks nobody for it."""
        if self.fetch is not None:
            return name in self.checksums
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """The path of a file, downloaded first if need be, and checked.

        Raises:
            ModelNotFoundError: the model has no such file.
            HubError: it cannot be downloaded.
            IntegrityError: it differs from its checksum, or is truncated.
        """
        check_file_name(name)
        if self.fetch is not None:
            return self.fetch(name)
        path = self.path / name
        if not path.is_file():
            raise ModelNotFoundError(f"The model folder {self.path} holds no {name}; it holds {_listing(self.path)}.")
        renew = f"if you changed it on purpose, run `python -m agssp_zoo.folder {shlex.quote(str(self.path))}`"
        if not self.checksums or name == CHECKSUMS:
            check_structure(path)
        elif name not in self.checksums:
            raise IntegrityError(f"{path} is not listed in {CHECKSUMS}; {renew}.")
        elif sha256_file(path) != self.checksums[name]:
            raise IntegrityError(f"{path} differs from its checksum in {CHECKSUMS}; copy the folder anew, or {renew}.")
        return path


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file in hexadecimal; asked again for an untouched file, the answer is remembered."""
    status = Path(path).stat()
    return _sha256(os.fspath(path), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Hashes a file; the other arguments only tell the cache when the file has changed."""
    import hashlib

    with open(path, "rb") as file:  # noqa: PTH123 - the cache key is a string
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_structure(path: Path) -> None:
    """Refuses a truncated safetensors file by its own header, where no checksum would tell.

    Raises:
        IntegrityError: the header cannot be read, or the file does not end where the header says.
    """
    if path.suffix != ".safetensors":
        return
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= path.stat().st_size else None
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]  # type: ignore[union-attr]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = -1
    if whole != path.stat().st_size:
        raise IntegrityError(f"{path} is truncated or is no safetensors file; copy or download it again.")


def check_file_name(name: str) -> None:
    """Refuses names that lead out of the folder, or to a pickle.

    Raises:
        InvalidArgumentError: such a name.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or ":" in name:
        raise InvalidArgumentError(f"{name!r} is not the name of a file in a model folder.")
    if name.lower().endswith(PICKLE_SUFFIXES):
        raise InvalidArgumentError(f"{name!r} may be a pickle, which can run code; only safetensors and ONNX are read.")


def read_checksums(folder: Path) -> dict[str, str]:
    """What checksums.json of a folder says; empty when the folder has none.

    Raises:
        IntegrityError: the file is not an object of SHA-256 sums, or an empty one.
    """
    path = folder / CHECKSUMS
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    return parse_checksums(text, str(path))


def parse_checksums(text: bytes, where: str) -> dict[str, str]:
    """The content of a checksums.json; ``where`` names it in messages. Raises as :func:`read_checksums`.

    An empty list is refused: a folder's files would not be checked at all.
    """
    try:
        sums = json.loads(text)
    except (ValueError, RecursionError):
        sums = None
    if (
        not isinstance(sums, dict)
        or not sums
        or not all(isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef") for v in sums.values())
    ):
        raise IntegrityError(f"{where} is not a list of SHA-256 sums; copy or download the folder again.")
    return sums


def model_files(folder: Path) -> list[str]:
    """Names of the files of a model folder, relative to it, sorted; without checksums.json and hidden ones."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(n for n in names if n != CHECKSUMS and not any(part.startswith(".") for part in n.split("/")))


def update_checksums(path: str | os.PathLike[str], names: Iterable[str] | None = None) -> dict[str, str]:
    """Writes checksums.json anew, after a file was added or changed on purpose.

    Args:
        path: the model folder.
        names: the files that changed; ``None`` takes all of them. Files that are gone are dropped from the list.

    Returns:
        File name -> SHA-256.
    """
    folder = Path(path)
    there = model_files(folder)
    known = {} if names is None else read_checksums(folder)
    changed = there if names is None else list(names)
    sums = {name: sha256_file(folder / name) if name in changed else known.get(name) for name in there}
    checked = {name: value for name, value in sums.items() if value is not None}
    write_text(folder / CHECKSUMS, json.dumps(checked, indent=2) + "\n")
    return checked


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name beside it and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(
    out: str | os.PathLike[str],
    config: ModelConfig,
    write_files: Mapping[str, Callable[[Path], None]],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a whole model folder: config.json, the given files, README.md and checksums.json.

    Everything is built under a temporary name beside ``out`` and renamed at the end, so that a failure leaves nothing.

    Args:
        out: the folder to make.
        config: what config.json will hold.
        write_files: file name -> function that writes it to the path it is given.
        card: the text of README.md; ``None`` makes one from the config.
        overwrite: whether a model folder that is there may be replaced.

    Returns:
        The folder.

    Raises:
        InvalidArgumentError: ``out`` is there and may not be replaced, or a file name is none.
    """
    for name in write_files:
        check_file_name(name)
    if card is None:
        from agssp_zoo.card import render_card

        card = render_card(config, files=[CONFIG, *write_files])

    def text(content: str) -> Callable[[Path], None]:
        return lambda path: write_text(path, content)

    return _build(out, {CONFIG: text(config.to_json()), CARD: text(card), **write_files}, overwrite)


def copy_folder(folder: ModelFolder, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Makes a whole model folder of another one, from disk or the Hub, checking every file.

    Args:
        folder: the model.
        out: the folder to make.
        overwrite: whether a model folder that is there may be replaced.

    Returns:
        The folder made.

    Raises:
        InvalidArgumentError: ``out`` is there and may not be replaced.
        HubError: a file cannot be downloaded.
        IntegrityError: a file differs from its checksum.
    """

    def copy(name: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            shutil.copyfile(folder.file(name), path)

        return write

    return _build(out, {name: copy(name) for name in folder.names}, overwrite)


def check_target(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuses a place where no model folder may be made; for whoever works long before making it.

    Args:
        out: the folder to make.
        overwrite: whether a model folder that is there may be replaced.

    Raises:
        InvalidArgumentError: ``out`` is there, neither empty nor to be replaced.
    """
    out = user_path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise InvalidArgumentError(f"{out} is there already; give another folder, or allow overwriting it.")
    if not (out / CONFIG).is_file():
        raise InvalidArgumentError(f"{out} is no model folder, so it is not overwritten; give another folder.")


def _build(out: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], None]], overwrite: bool) -> Path:
    """Builds a folder under a temporary name, with checksums.json, and renames it.

    A link to a folder stays one; what it leads to is written. An empty folder may be one that cannot be renamed (the
    current one, a mounted disk), so it is built in, and filled at the end, config.json last.
    """
    given = user_path(out)
    out = given.resolve()
    check_target(given, overwrite=overwrite)
    empty = out.is_dir() and not any(out.iterdir())
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = f".{out.name}.{os.getpid()}.tmp"
    building = out / temporary if empty else out.with_name(temporary)
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        for name, write in writers.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            write(building / name)
        update_checksums(building)
        if empty:
            _fill(out, building)
        else:
            _replace_folder(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return given


def _fill(out: Path, building: Path) -> None:
    """Moves what is in ``building`` to ``out``, config.json last; nothing stays there if that fails."""
    moved = []
    try:
        for path in sorted(building.iterdir(), key=lambda path: path.name == CONFIG):
            moved.append(out / path.name)
            path.replace(moved[-1])
    except OSError:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise


def _replace_folder(new: Path, out: Path) -> None:
    """Renames ``new`` to ``out``; a folder that is there is put aside first, and back if the renaming fails."""
    if not out.exists():
        new.replace(out)
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.replace(aside)
    try:
        new.replace(out)
    except OSError:
        aside.replace(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _listing(folder: Path) -> str:
    """The files of a folder in words."""
    return ", ".join(model_files(folder)) or "nothing"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(f"{argument}: {len(update_checksums(argument))} files\n")
