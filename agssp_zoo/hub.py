"""Model name -> a model folder whose files are checked before they are read.

Looked for in this order: a local folder path, or ``hf://owner/repo[@revision]``; ``$AGSSP_ZOO_HOME/<name>/``; in a
source checkout ``model_cards/<name>/``; the Hub, at the commit that the registry pins.

A file that is in the cache is taken from there without any request, also where the revision is a branch: pass
``force_download=True`` to see whether the branch has moved. Downloading itself, the cache's layout and its locks are
huggingface_hub's.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp_zoo import registry
from agssp_zoo.errors import (
    HubError,
    IntegrityError,
    InvalidArgumentError,
    ModelNotFoundError,
    WeightsNotPublishedError,
)
from agssp_zoo.file_names import user_path
from agssp_zoo.folder import CHECKSUMS, CONFIG, ModelFolder, check_file_name, parse_checksums, sha256_file

if TYPE_CHECKING:
    from types import ModuleType

    from agssp_zoo.registry import ModelInfo

CHECKOUT_MODELS = Path(__file__).parents[1] / "model_cards"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Options:
    """How the Hub is asked; the keywords of ``load_detector(..., **hub)``, named as in huggingface_hub.

    Attributes:
        revision: commit, branch or tag instead of the pinned one.
        cache_dir: the cache; ``None`` takes huggingface_hub's own, shared with other libraries.
        token: access token; ``None`` takes the one of ``hf auth login`` or HF_TOKEN, ``False`` none.
        local_files_only: whether only what lies on this machine may be used; HF_HUB_OFFLINE=1 says the same.
        force_download: whether files are downloaded even if they are in the cache.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    files: Sequence[str] = (CONFIG,),
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> ModelFolder:
    """Finds a model, and sees to it that some of its files are here and whole.

    Args:
        name_or_path: a model's name, the path of a model folder, or ``hf://owner/repo[@revision]``.
        files: the files needed now; the others come when :meth:`ModelFolder.file` is asked for them.
        revision: see :class:`Options`, as the following.
        cache_dir: as above.
        token: as above.
        local_files_only: as above.
        force_download: as above.

    Raises:
        ModelNotFoundError: no such model or folder; WeightsNotPublishedError where its weights are not published yet.
        HubError: the Hub cannot be reached, refuses, or lacks the file.
        IntegrityError: a file differs from its checksum.
        InvalidArgumentError: a name or a combination of arguments that makes no sense.
    """
    options = Options(revision, cache_dir, token, local_files_only, force_download)
    if local_files_only and force_download:
        raise InvalidArgumentError("local_files_only and force_download exclude each other; give one of them.")
    folder = locate(name_or_path, options)
    for file in files:
        folder.file(file)
    return folder


def locate(name_or_path: str | os.PathLike[str], options: Options = Options()) -> ModelFolder:
    """Finds a model; of its files only checksums.json may be fetched. Arguments and errors as for :func:`resolve`."""
    text = os.fspath(name_or_path)
    if not text:
        raise InvalidArgumentError("The model name is empty; see `agssp-zoo list`.")
    if text.startswith("hf://"):
        return _open_address(text, options)
    path = user_path(text)
    looks_like_path = isinstance(name_or_path, os.PathLike) or not _NAME.fullmatch(text)
    if (path / CONFIG).is_file() or looks_like_path:
        if options.revision is not None:
            raise InvalidArgumentError(f"{text} is a folder on disk, which has no revisions; leave out revision.")
        if _REPO_ID.fullmatch(text) and not path.exists():
            raise ModelNotFoundError(
                f"There is no folder {text}; for the Hub repository of that name give hf://{text}."
            )
        return ModelFolder.open(path)
    name = registry.resolve_name(text)
    if options.revision is None and (local := local_folder(name) or local_folder(text)):
        return ModelFolder.open(local)
    return _open_name(name, options)


def local_folder(name: str) -> Path | None:
    """Where a model of that name lies outside the Hub's cache, in $AGSSP_ZOO_HOME or in a checkout's model_cards."""
    return next((place / name for place in _places() if (place / name / CONFIG).is_file()), None)


def local_models() -> dict[str, Path]:
    """Name -> folder of the models there whose names are not registered, but load; sorted by name."""
    names: set[str] = set()
    for place in _places():
        with contextlib.suppress(OSError):  # no such folder, or a closed one
            names.update(path.name for path in place.iterdir() if (path / CONFIG).is_file())
    found = {}
    for name in sorted(names):
        full = registry.resolve_name(name)
        if local_folder(full) if full != name else registry.find(name):
            continue  # an architecture's name that another folder answers to, or a registered one
        if _NAME.fullmatch(name) and (folder := local_folder(name)):
            found[name] = folder
    return found


def _places() -> list[Path]:
    """The folders of model folders, in the order in which they are looked through."""
    places = []
    if home := os.environ.get("AGSSP_ZOO_HOME"):
        places.append(user_path(home))
    if (CHECKOUT_MODELS.parent / "setup.cfg").is_file():
        places.append(CHECKOUT_MODELS)
    return places


def namespace() -> str:
    """The Hub namespace that models are looked for in: $AGSSP_ZOO_NAMESPACE, or the registry's."""
    return os.environ.get("AGSSP_ZOO_NAMESPACE") or registry.default_namespace()


def _open_address(address: str, options: Options) -> ModelFolder:
    """``hf://owner/repo[@revision]``."""
    repo_id, _, revision = address.removeprefix("hf://").rstrip("/").partition("@")
    if not _REPO_ID.fullmatch(repo_id) or address.endswith("@"):
        raise InvalidArgumentError(f"{address!r} is not of the form hf://owner/repo or hf://owner/repo@revision.")
    if revision and options.revision is not None and revision != options.revision:
        raise InvalidArgumentError(f"{address!r} names a revision, and revision is {options.revision!r}; give one.")
    return _open_repository(_Repository(repo_id, revision or options.revision or "main", options))


def _open_name(name: str, options: Options) -> ModelFolder:
    """A model that only the Hub can have."""
    info = registry.find(name)
    elsewhere = bool(os.environ.get("AGSSP_ZOO_NAMESPACE"))  # the registry's commits and checksums do not hold there
    if info is None and not elsewhere:
        raise ModelNotFoundError(registry.unknown_name(name))
    if info is not None and not elsewhere:
        if info.revision is None and options.revision is None:
            raise WeightsNotPublishedError(not_published(info))
        if info.revision is not None and options.revision in (None, info.revision):
            repository = _Repository(info.repo_id, info.revision, options, pinned=info.checksums)
            return _open_repository(repository)
    repository = _Repository(f"{namespace()}/{name}", options.revision or "main", options)
    try:
        return _open_repository(repository)
    except HubError as error:
        if info is None and error.__cause__ is not None and type(error.__cause__).__name__ == "RepositoryNotFoundError":
            raise ModelNotFoundError(f"{error} {registry.unknown_name(name)}") from error.__cause__
        raise


def not_published(info: ModelInfo) -> str:
    """What to do about a model whose weights are not on the Hub yet."""
    what = f"The weights of {info.name}"
    if info.name == registry.default_detector():
        what += ", the default detector,"
    put = f"give the path of its folder instead of the name, or move it to $AGSSP_ZOO_HOME/{info.name} to use the name"
    if info.files:
        return (
            f"{what} are not published on the Hub yet; they lie in model_cards/{info.name} of agssp-zoo's repository. "
            "Clone it, and set AGSSP_ZOO_HOME to its folder model_cards, or give the path of the model's folder "
            "instead of the name."
        )
    if info.authors_link:
        return (
            f"{what} are not published on the Hub yet. Download the authors' checkpoint from {info.authors_link} and "
            f"run `agssp-zoo convert CHECKPOINT --arch {info.architecture} --out DIR`, then {put}."
        )
    if info.task == "detector":
        return (
            f"{what} are not published on the Hub yet. Train one (`agssp-zoo finetune --help`) or convert one of the "
            f"authors' (`agssp-zoo info yolov8_s` tells where it is), then {put}."
        )
    return f"{what} are not published on the Hub yet. Build it with weights=False, or {put}."


@dataclass(frozen=True)
class _Repository:
    """A Hub repository at a revision.

    Attributes:
        repo_id: ``owner/repo``.
        revision: commit, branch or tag.
        options: the user's.
        pinned: file name -> SHA-256 as the registry states it; ``None`` where the repository's checksums.json counts.
        fetched: files that this object has already downloaded, so that force_download does so once.
    """

    repo_id: str
    revision: str
    options: Options
    pinned: Mapping[str, str] | None = None
    fetched: set[str] = field(default_factory=set)

    def fetch(self, file: str, check: Callable[[Path], str | None]) -> Path:
        """A file on disk, from the cache or downloaded.

        Args:
            file: its name in the repository.
            check: says what is wrong with the file at a path; ``None`` when nothing is. A bad file leaves the cache.

        Raises:
            HubError: it is not in the cache, and cannot be downloaded.
            IntegrityError: what was downloaded is wrong.
        """
        hf = huggingface_hub()
        offline = self.options.local_files_only or _offline(hf)
        force = self.options.force_download and file not in self.fetched
        if force and offline:
            raise InvalidArgumentError("force_download needs the network, and HF_HUB_OFFLINE forbids it; drop one.")
        wrong = None
        if not force:
            try:
                cached = hf.try_to_load_from_cache(
                    self.repo_id, file, cache_dir=self.options.cache_dir, revision=self.revision
                )
            except ValueError as error:
                raise InvalidArgumentError(f"{self.repo_id} is no name of a Hub repository: {error}") from None
            if isinstance(cached, str):
                wrong = check(Path(cached))
                if wrong is None:
                    return Path(cached)
                _discard(Path(cached))
        if offline:
            if wrong is not None:
                raise IntegrityError(f"{self.repo_id}: {file} in the cache {wrong}; it was removed. {_ONLINE_AGAIN}")
            raise HubError(f"{self.repo_id}: {file} is not in the cache {self._cache(hf)}. {_ONLINE_AGAIN}")
        path = self._download(hf, file, force=force or wrong is not None)
        wrong = check(path)
        if wrong is not None:
            _discard(path)
            raise IntegrityError(
                f"{self.repo_id}: the downloaded {file} {wrong}; it was removed. Try again; should it happen again, "
                "something on the way (a proxy?) changes files, or the repository is damaged."
            )
        self.fetched.add(file)
        return path

    def _download(self, hf: ModuleType, file: str, *, force: bool) -> Path:
        """Downloads a file into the cache through huggingface_hub, which resumes a cut connection."""
        from agssp_zoo.hub_transfer import sweep, transfer

        sweep(Path(self._cache(hf)) / hf.file_download.repo_folder_name(repo_id=self.repo_id, repo_type="model"))
        return transfer(
            hf,
            repo_id=self.repo_id,
            file=file,
            revision=self.revision,
            cache_dir=self._cache(hf),
            token=self.options.token,
            force=force,
            known=bool(self.fetched),
        )

    def _cache(self, hf: ModuleType) -> str:
        """The cache folder in use."""
        return os.fspath(self.options.cache_dir or hf.constants.HF_HUB_CACHE)

    def snapshot(self) -> Path:
        """The folder in the cache where the files of this commit lie."""
        hf = huggingface_hub()
        folder = hf.file_download.repo_folder_name(repo_id=self.repo_id, repo_type="model")
        return Path(self._cache(hf), folder, "snapshots", self.revision)


_ONLINE_AGAIN = (
    "The network may not be used (local_files_only or HF_HUB_OFFLINE): allow it once, or bring the model over with "
    "`agssp-zoo download NAME --to DIR` and give DIR."
)


def _open_repository(repository: _Repository) -> ModelFolder:
    """A repository as a model folder: at the pinned commit with the registry's checksums, else with its own."""
    if repository.pinned is None:
        listing = repository.fetch(CHECKSUMS, _unreadable_checksums)
        sums: Mapping[str, str] = parse_checksums(listing.read_bytes(), f"{repository.repo_id}: {CHECKSUMS}")
        # From here on one commit, whatever happens to the branch meanwhile.
        repository = _Repository(repository.repo_id, listing.parent.name, repository.options, fetched={CHECKSUMS})
        snapshot = listing.parent
    else:
        sums, snapshot = repository.pinned, repository.snapshot()

    def fetch(file: str) -> Path:
        if file not in sums:
            raise ModelNotFoundError(
                f"{repository.repo_id} at {repository.revision} has no {file}; it has {', '.join(sums) or 'nothing'}."
            )
        return repository.fetch(
            file, lambda path: None if sha256_file(path) == sums[file] else "differs from its checksum"
        )

    for file in sums:
        check_file_name(file)
    return ModelFolder(snapshot, sums, fetch)


def _unreadable_checksums(path: Path) -> str | None:
    """Says so when a checksums.json cannot be read."""
    try:
        parse_checksums(path.read_bytes(), path.name)
    except IntegrityError:
        return "is not a list of SHA-256 sums"
    return None


def _discard(path: Path) -> None:
    """Takes a bad file out of the cache: the link in the snapshot and what it points to."""
    with contextlib.suppress(OSError):  # a cache that may not be written to
        if path.is_symlink():
            (path.parent / path.readlink()).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def huggingface_hub() -> Any:
    """huggingface_hub, imported with its telemetry switched off."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub
    from huggingface_hub import constants, file_download  # noqa: F401 - attributes of the package from here on

    constants.HF_HUB_DISABLE_TELEMETRY = True  # someone may have imported it before
    return huggingface_hub


def _offline(hf: ModuleType) -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return bool(hf.constants.HF_HUB_OFFLINE)
