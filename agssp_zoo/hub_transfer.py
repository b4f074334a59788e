"""One file from the Hub into the cache, and what its failures mean.

huggingface_hub downloads, resumes a cut connection and takes the locks. Around it stand: a short first request, so that
a missing network is told within seconds; repetition where that can help; and one clear error for every failure.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agssp_zoo.errors import HubError

T = TypeVar("T")
WAITS = (1.0, 3.0, 9.0)
"""Seconds before each repetition, where the Hub does not say how long to wait."""
LONGEST_WAIT = 60.0
"""A Hub that asks for a longer pause than this is reported instead of waited for, in seconds."""
STALE = 60.0
"""An unfinished download not locked, and not written to for so many seconds, was left by a killed process."""


def transfer(
    hf: Any,
    *,
    repo_id: str,
    file: str,
    revision: str,
    cache_dir: str,
    token: str | bool | None,
    force: bool,
    known: bool,
) -> Path:
    """Downloads a file into the cache.

    Args:
        hf: the module huggingface_hub.
        repo_id: ``owner/repo``.
        file: its name in the repository.
        revision: commit, branch or tag.
        cache_dir: the cache.
        token: see :class:`agssp_zoo.hub.Options`.
        force: whether to download what is in the cache already.
        known: whether the Hub has answered for this repository a moment ago.

    Returns:
        Its path in the cache.

    Raises:
        HubError: it cannot be had; the message says what to do.
    """
    url = hf.hf_hub_url(repo_id, file, revision=revision)

    def attempt() -> str:
        if not known:  # hf_hub_download itself would go on trying for half a minute without a network
            hf.get_hf_file_metadata(url, token=token)
        path: str = hf.hf_hub_download(
            repo_id, file, revision=revision, cache_dir=cache_dir, token=token, force_download=force
        )
        return path

    try:
        return Path(repeat(attempt))
    except Exception as error:
        cause = _cause(error)
        raise HubError(f"{repo_id}: {file} cannot be downloaded: {explain(hf, cause, repo_id, revision)}") from cause


def repeat(attempt: Callable[[], T]) -> T:
    """Calls a function until it succeeds, at most four times; errors that repetition cannot help are raised at once."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except Exception as error:
            pause = _pause(_cause(error), wait)
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable: the last attempt returns or raises")


def explain(hf: Any, error: BaseException, repo_id: str, revision: str) -> str:
    """What an error of huggingface_hub means and what to do about it, in one or two sentences."""
    endpoint = hf.constants.ENDPOINT
    status = _status(error)
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"access is restricted. Ask for it at {endpoint}/{repo_id}, then log in with `hf auth login`."
    if kind == "RevisionNotFoundError":
        return f"the repository has no revision {revision!r}. Give another, or none."
    if kind == "RemoteEntryNotFoundError" or kind == "EntryNotFoundError":
        return f"the repository has no such file at revision {revision!r}. Is it a model folder of agssp-zoo?"
    if kind == "RepositoryNotFoundError" or status in (401, 403, 404):
        return (
            f"{endpoint} has no such repository, or does not show it to you. Check the name; for a private one log in "
            "with `hf auth login`, set HF_TOKEN or pass token."
        )
    if status == 429:
        return "the Hub asks for fewer requests. Wait some minutes, or log in with `hf auth login` for higher limits."
    if status is not None and status >= 500:
        return f"{endpoint} has trouble (HTTP {status}). Try again later."
    if status is not None:
        return f"{endpoint} answered HTTP {status} ({_first_line(error)})."
    if _is_network(error):
        return (
            f"{endpoint} cannot be reached ({_first_line(error)}), and the file is not in the cache. Check the network "
            "and proxy settings; without a network bring the model over with `agssp-zoo download NAME --to DIR`."
        )
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return f"the cache cannot be written to ({error}). Make room, or give another cache_dir or HF_HOME."
    return f"{kind}: {_first_line(error)}"


def sweep(repository_cache: Path) -> None:
    """Removes what killed processes have left half-written in the cache of a repository.

    huggingface_hub writes to ``blobs/<etag>.<random>.incomplete`` while it holds the lock of that etag. Such files are
    never read, they only take room.
    """
    unfinished = list(repository_cache.glob("blobs/*.incomplete"))
    if not unfinished:
        return
    from filelock import FileLock, Timeout

    locks = repository_cache.parent / ".locks" / repository_cache.name
    for path in unfinished:
        try:
            if time.time() - path.stat().st_mtime < STALE:
                continue
            with FileLock(locks / f"{path.name.split('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)
        except (OSError, Timeout):
            continue


def _cause(error: BaseException) -> BaseException:
    """The error below those that only say "failed due to the above error"."""
    wrappers = ("LocalEntryNotFoundError", "ValueError")
    while type(error).__name__ in wrappers and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error was raised for."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException) -> bool:
    """Whether an error comes from below HTTP: no route, no name, a timeout, a cut connection."""
    library = type(error).__module__.partition(".")[0]
    return _status(error) is None and (
        library in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
        or isinstance(error, (ConnectionError, TimeoutError))
    )


def _pause(error: BaseException, wait: float | None) -> float | None:
    """Seconds to wait before trying again; ``None`` where that cannot help or was done often enough."""
    if wait is None:
        return None
    status = _status(error)
    if status in (408, 429, 500, 502, 503, 504):
        asked = getattr(error, "response").headers.get("Retry-After", "")  # noqa: B009 - the type is unknown
        pause = float(asked) if asked.isdigit() else wait
        return pause if pause <= LONGEST_WAIT else None
    if "Consistency check failed" in str(error):  # fewer or more bytes came than were announced
        return wait
    if not _is_network(error):
        return None
    # Nobody there: one more try for a network that is just waking up.
    nobody = type(error).__name__ in ("ConnectError", "ConnectionError", "ProxyError")
    return None if nobody and wait != WAITS[0] else wait


def _first_line(error: BaseException) -> str:
    """An error's message, shortened to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
