"""A Hub on the loopback interface: enough of its HTTP for the real huggingface_hub client, and failures on purpose.

Small files are answered in place, safetensors and ONNX files by a redirect to another host, as the Hub does for LFS
files; a commit may carry uploads of both kinds. Every request is logged.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".onnx")


@dataclass
class Repository:
    """Commits (oldest first) as (id, file name -> bytes); private ones need the token."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        parent = self.commits[-1][0] if self.commits else ""
        digest = hashlib.sha1(parent.encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        self.commits.append((digest.hexdigest(), files))
        return digest.hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return next((c for c in self.commits if c[0] == revision), None)


@dataclass
class Fault:
    """What goes wrong: for requests of ``method`` whose path matches, ``times`` times."""

    kind: str
    match: str
    method: str | None
    times: int
    headers: dict[str, str]
    after: int  # bytes sent before a cut
    pause: float  # seconds before each piece of a slow answer


class HubServer:
    """Start with ``with HubServer() as hub``; ``hub.url`` is the HF_ENDPOINT."""

    token = "hf_loopback"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, folder: Path, *, private: bool = False, gated: bool = False) -> str:
        """Serves a folder as a repository; returns its commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(repo_id, Repository(private=private, gated=gated))
        return repository.commit(files)

    def fail(
        self,
        kind: str,
        match: str = "",
        *,
        method: str | None = None,
        times: int = 1,
        headers: dict[str, str] | None = None,
        after: int = 1000,
        pause: float = 0.0,
    ) -> None:
        """From now on: ``kind`` is an HTTP status, or one of cut, reset, wrong, short, slow."""
        self.faults.append(Fault(kind, match, method, times, headers or {}, after, pause))

    def fault(self, method: str, path: str, *, data: bool) -> Fault | None:
        """The failure that this request meets; those of content only hit answers that carry some."""
        with self.lock:
            for fault in self.faults:
                fits = fault.times > 0 and fault.match in path and fault.method in (None, method)
                if fits and (data or fault.kind.isdigit()):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, method: str | None = None, match: str = "") -> list[str]:
        """Paths of the requests so far."""
        return [path for verb, path, _ in self.log if match in path and method in (None, verb)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients may be killed
            super().handle()

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        else:
            self.body = self.rfile.read(length)
        self.hub.log.append((self.command, path, dict(self.headers)))
        fault = self.hub.fault(self.command, path, data=False)
        if fault is not None:
            self._answer(int(fault.kind), b"on purpose", fault.headers)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path.startswith("/cdn/"):
            self._send_data(self.hub.blobs[path.removeprefix("/cdn/")], path, {})
        elif path.startswith("/upload/"):
            self.hub.blobs[path.removeprefix("/upload/")] = self.body
            self._answer(200)
        elif path == "/api/repos/create":
            self._create()
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch()
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree|revision)/([^/]+)", path):
            getattr(self, f"_{match[2]}")(match[1], match[3])
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._answer(404, b"the loopback Hub does not know this path")

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # --- reading

    def _open(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit asked for; ``None`` after an error was answered."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._authorized()):
            status = 404 if self._authorized() else 401
            self._answer(status, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repository.gated and not self._authorized():
            self._answer(401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif (found := repository.at(revision)) is None:
            self._answer(404, headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            return found
        return None

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        found = self._open(repo_id, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            return self._answer(404, headers=error)
        content = files[name]
        if name.endswith(LFS_SUFFIXES):
            sha256 = hashlib.sha256(content).hexdigest()
            self.hub.blobs[sha256] = content
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit}
            return self._answer(302, headers={**linked, "Location": f"{self.hub.cdn}/{sha256}"})
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self._send_data(content, self.path, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _send_data(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        total, start = len(content), 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
        fault = self.hub.fault(self.command, path, data=True) if self.command == "GET" else None
        if fault is not None and fault.kind == "wrong":
            content = bytes(b ^ 0xFF for b in content)
        if fault is not None and fault.kind == "short":
            content, total = content[: total // 2], total // 2
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind in ("cut", "reset"):
            self.wfile.write(content[start : start + fault.after])
            self.wfile.flush()
            if fault.kind == "reset":  # with pending data thrown away: the client sees ECONNRESET
                time.sleep(0.05)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True
        elif fault is not None and fault.kind == "slow":
            piece = max(1, (total - start) // 8)
            for at in range(start, total, piece):
                time.sleep(fault.pause)
                self.wfile.write(content[at : at + piece])
        else:
            self.wfile.write(content[start:])

    def _tree(self, repo_id: str, revision: str) -> None:
        if (found := self._open(repo_id, revision)) is not None:
            entries = []
            for name, content in found[1].items():
                entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                if name.endswith(LFS_SUFFIXES):
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self._json(entries)

    def _revision(self, repo_id: str, revision: str) -> None:
        if (found := self._open(repo_id, revision)) is not None:
            siblings = [{"rfilename": name} for name in found[1]]
            self._json({"_id": "0", "id": repo_id, "modelId": repo_id, "sha": found[0], "siblings": siblings})

    # --- writing

    def _create(self) -> None:
        if not self._authorized():
            return self._answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self._answer(409, json.dumps({"url": url}).encode(), {"Content-Type": "application/json"})
        repository = self.hub.repositories[repo_id] = Repository(private=bool(wanted.get("private")))
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": url, "name": repo_id})

    def _preupload(self, repo_id: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LFS_SUFFIXES) else "regular"} for f in files
        ]
        self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _lfs_batch(self) -> None:
        objects = json.loads(self.body)["objects"]
        answer = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/upload/{o['oid']}"}}}
            if o["oid"] not in self.hub.blobs
            else o
            for o in objects
        ]
        self._json({"transfer": "basic", "objects": answer})

    def _commit(self, repo_id: str, revision: str) -> None:
        if not self._authorized():
            return self._answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        repository = self.hub.repositories[repo_id]
        files = dict(repository.commits[-1][1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
        commit = repository.commit(files)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


@dataclass
class Answer:
    """What a client process came to."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        """Its stdout as JSON."""
        value: dict[str, object] = json.loads(self.out)
        return value


def client_environment(hub_url: str, home: Path, **extra: str) -> dict[str, str]:
    """The environment of a client process that talks to the loopback Hub and keeps its cache in ``home``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AGSSP_", "HUGGING", "TRANSFORMERS"))}
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        kept.pop(proxy, None)
        kept.pop(proxy.upper(), None)
    return {**kept, "HF_ENDPOINT": hub_url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), **extra}


def python(code: str, hub_url: str, home: Path, *, timeout: float = 120, **extra: str) -> Answer:
    """Runs code in a fresh process, in an empty folder below ``home``."""
    return run([sys.executable, "-c", code], hub_url, home, timeout=timeout, **extra)


def run(command: list[str], hub_url: str, home: Path, *, timeout: float = 120, **extra: str) -> Answer:
    """Runs a command in a fresh process, as :func:`python` does."""
    place = home / "cwd"
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        env=client_environment(hub_url, home, **extra),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
