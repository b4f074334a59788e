"""Reading part of a file, on this machine or by http(s), with connections that are kept open.

Every process and thread has connections of its own: a socket that two processes share after a fork would mix up
their answers.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from agssp_zoo.errors import DataError

ATTEMPTS = 4
"""How often a request is tried when the connection breaks or the server is busy; waits double from half a second."""

TIMEOUT = 30.0
"""Seconds without an answer after which a request counts as failed."""

_REDIRECTS = 5
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_local = threading.local()


class _Http(http.client.HTTPConnection):
    """A connection that closes when the thread that owned it ends."""

    def __del__(self) -> None:
        self.close()


class _Https(http.client.HTTPSConnection):
    """The same with TLS."""

    def __del__(self) -> None:
        self.close()


def is_url(path: str) -> bool:
    """Whether a path is an http(s) URL."""
    return path.startswith(("http://", "https://"))


def read_range(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Reads ``size`` bytes from ``offset`` on; everything when size is negative.

    Args:
        path: a file, or an http(s) URL whose server answers range requests.
        offset: in bytes.
        size: in bytes.

    Raises:
        DataError: it is not there, shorter than that, or the server does not serve ranges.
    """
    if is_url(path):
        return _download(path, offset, size)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - a plain open is a third faster, once a training image
            stream.seek(offset)
            data = stream.read(size if size >= 0 else -1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if 0 <= size != len(data):
        raise DataError(f"{path}: ends after {offset + len(data)} bytes; the shard is truncated, copy it again.")
    return data


def _download(url: str, offset: int, size: int) -> bytes:
    headers = {"Accept-Encoding": "identity", "User-Agent": "agssp-zoo"}
    if size >= 0:
        headers["Range"] = f"bytes={offset}-{offset + size - 1}"
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.25 * 2**attempt)
        try:
            status, data = _request(url, headers)
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
            continue
        if status == 206 or (status == 200 and size < 0):
            if 0 <= size != len(data):
                problem = f"{len(data)} bytes instead of {size}"
                continue
            return data
        if status == 200:
            raise DataError(f"{url}: the server ignores range requests; download the shards and give their folder.")
        problem = f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
        if status not in _BUSY:
            break
    raise DataError(f"{url}: cannot be read ({problem}).")


def _request(url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """One GET, following redirects: status and body. A body that was not asked for is not read."""
    for _ in range(_REDIRECTS):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.netloc):
            return _by_proxy(url, headers)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection = _connection(parts.scheme, parts.netloc)
        try:
            try:
                connection.request("GET", target, headers=dict(headers))
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                # The server closed a kept connection while it was idle: no failure, but a reason to open another.
                connection.close()
                connection.request("GET", target, headers=dict(headers))
                response = connection.getresponse()
            location = response.getheader("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                response.read()
                url = urllib.parse.urljoin(url, location)
                continue
            if response.status == 200 and "Range" in headers:
                connection.close()
                return 200, b""
            return response.status, response.read()
        except BaseException:
            connection.close()
            raise
    raise OSError(f"more than {_REDIRECTS} redirects")


def _by_proxy(url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status == 200 and "Range" in headers:
                return 200, b""
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def _connection(scheme: str, host: str) -> http.client.HTTPConnection:
    """This process's and thread's connection to a host."""
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.connections = os.getpid(), {}
    connections: dict[tuple[str, str], http.client.HTTPConnection] = _local.connections
    connection = connections.get((scheme, host))
    if connection is None:
        if scheme == "https":
            connection = _Https(host, timeout=TIMEOUT, context=ssl.create_default_context())
        else:
            connection = _Http(host, timeout=TIMEOUT)
        connections[scheme, host] = connection
    return connection
